"""The supervisor: a small process that forks all others of an instance and outlives every one of them.

Law: one thread, no event loop, nothing of a request and nothing of a decision; so it has no reason to die and can
fork at any moment. It has imported what its children need, which is why they start in milliseconds and share memory.
It ends everything, and removes the runtime directory, when it is asked to (SIGTERM, SIGINT), when its owner's
lifeline is cut, when the controller ends by its own will (exit code 0), or when the controller never worked. One that
has worked is started again for as long as it takes: what serves needs no controller, and its end would help nobody.
Should it be killed all the same, a fork of it that waited for this (``standby``) goes on in its place, as itself.
"""

from __future__ import annotations

import gc
import importlib
import os
import resource
import select
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec
from setproctitle import setproctitle

from skate.core.clock import Clock, SystemClock
from skate.engine import runtime_dir
from skate.engine.base import EngineError, ForgetProcess, StartProcess, StopProcess
from skate.engine.child import CAUGHT, Birth, held_back
from skate.engine.door import Door
from skate.engine.exits import ExitBoard
from skate.engine.family import PROCESSES_MAX, Family, Member
from skate.engine.lifeline import Lifeline
from skate.engine.messages import Answer, Ask, Ended, SupervisorConfig
from skate.engine.output import Shelf
from skate.engine.standby import Course, Heir, Note, Standby

ORPHANED_GRACE_S = 0.5  # the owner is gone, nobody waits for an answer any more
UNKILLABLE_S = 2.0  # after SIGKILL; a process that hangs in the kernel is left to it
RESTART_DELAY_S = 0.1  # before the second restart in a row; doubles
RESTART_DELAY_MAX_S = 0.5
WORKED_S = 1.0  # a controller that lived for so long has worked: what it needs is there
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # by a standby; the last is sent to orphans that are stopped
DESCRIPTORS_OWN = 512  # of a supervisor, beside one for each adopted process: connections above all


def restart_delay_s(deaths: int, deaths_max: int, worked: bool) -> float | None:
    """How long to wait after so many recent deaths of the controller before the next start; None: give up.

    ``worked``: some controller of this instance has worked; then it is never given up.
    """
    if deaths > deaths_max and not worked:
        return None
    if deaths <= 1:
        return 0.0
    return min(RESTART_DELAY_S * 2.0 ** min(deaths - 2, 16), RESTART_DELAY_MAX_S)


def calm_s(takeovers: int, takeovers_max: int, worked: bool) -> float | None:
    """How long a supervisor rests after so many recent takeovers before it does anything; None: give up.

    Those that are killed are not slowed down, only those that die of what they do, as fast as they can.
    """
    if takeovers <= takeovers_max:
        return 0.0
    return RESTART_DELAY_MAX_S if worked else None


class Supervisor:
    """One instance's supervisor, from its first fork to the removal of its directory."""

    def __init__(self, config: SupervisorConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._own = runtime_dir.RuntimeDir(config.runtime_dir, config.lock_fd)
        self._deaths: deque[float] = deque()  # of controllers
        self._takeovers: deque[float] = deque()
        self._restart_at: float | None = None
        self._born_at: float | None = None  # the controller that was started last
        self._worked = False  # some controller has
        self._calm_s = 0.0  # to rest, once there is a standby
        self._end_at: float | None = None  # set: ending, and over at that time whatever is left
        self._exit_code = 0
        self._standby = Standby(clock, config.standby_after_s)
        self._lifeline = Lifeline()
        address = os.path.join(config.runtime_dir, runtime_dir.ENGINE_SOCKET)
        self._selector = selectors.DefaultSelector()
        self._door = Door(address, self._selector, self._answer)
        lifelines = [self._lifeline.read_fd]
        if config.lifeline_fd is not None:
            lifelines.append(config.lifeline_fd)
        logs = os.path.join(config.runtime_dir, runtime_dir.LOGS)
        self._shelf = Shelf(logs)
        birth = Birth(
            f"unix:{address}",
            tuple(lifelines),
            logs,
            config.lifeline_fd is not None,
            ExitBoard(PROCESSES_MAX),
            self._close_in_child,
        )
        self._family = Family(birth, clock, self._tell)
        self._listen()
        runtime_dir.write_pid(config.runtime_dir)

    def _listen(self) -> None:
        self._wake, self._wake_write = _listen_to_signals()
        self._selector.register(self._wake, selectors.EVENT_READ, self._on_signals)
        if self._config.lifeline_fd is not None:
            self._selector.register(self._config.lifeline_fd, selectors.EVENT_READ, self._on_owner_gone)

    def run(self) -> int:
        """Serves until the end; the exit code. May return in another process than it was called in."""
        try:
            self._start_controller()
            self._import_all()
            self._door.open()  # not before: what is forked shall find everything imported
            while self._end_at is None or (self._family.anyone_alive() and self._clock.now() < self._end_at):
                if self._end_at is None and self._standby.due():
                    self._fork_standby()  # returns here, and one day in the standby, which has no standby then
                    continue
                self._rest()
                self._turn(self._timeout_s())
        except Exception:
            if self._standby.pid is not None:
                traceback.print_exc()
                os._exit(1)  # as if killed: the standby goes on, the processes live
            self._exit_code = 1
            self._over()
            raise
        self._over()
        return self._exit_code

    def _over(self) -> None:
        """Nothing runs any more, or nothing that can be killed."""
        self._standby.end()
        self._lifeline.cut()
        self._door.close_sockets()
        if self._config.state_fd is not None:
            os.close(self._config.state_fd)  # first: whoever finds the runtime directory free starts an instance
        failed = self._exit_code != 0
        runtime_dir.remove(self._own, keep_logs=failed and self._config.lifeline_fd is None)
        with suppress(OSError):  # the owner is gone
            os.write(self._config.outcome_fd, bytes((self._exit_code,)))

    def _import_all(self) -> None:
        """The controller runs meanwhile; it needs nothing of this."""
        for name in (*self._config.modules, *self._config.preload):
            self._turn(0.0)
            if self._end_at is not None:
                return
            try:
                importlib.import_module(name)
            except Exception:
                whose = "preload module" if name in self._config.preload else "module"
                self._give_up(f"the {whose} {name!r} does not import:\n{traceback.format_exc()}")
                return
        threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        if threads:
            _say(f"a preloaded module has started threads ({', '.join(threads)}); they do not live in replicas")
        gc.freeze()

    def _turn(self, timeout_s: float | None) -> None:
        for key, events in self._selector.select(timeout_s):
            handle: Callable[[int], None] = key.data
            handle(events)
        self._family.kill_overdue()
        if self._restart_at is not None and self._restart_at <= self._clock.now():
            self._start_controller()

    def _timeout_s(self) -> float | None:
        standby_at = self._standby.again_at if self._end_at is None else None
        times = (self._family.next_deadline(), self._restart_at, self._end_at, standby_at)
        due = min((time for time in times if time is not None), default=None)
        return None if due is None else max(due - self._clock.now(), 0.0)

    # -- the controller

    def _start_controller(self) -> None:
        self._restart_at, self._born_at = None, self._clock.now()
        self._tell_course()
        try:
            self._family.start(self._config.controller)
        except EngineError as error:
            self._controller_died(f"could not be started: {error}")

    def _ended(self, member: Member) -> None:
        if self._config.lifeline_fd is not None and (crash := self._shelf.crash(member.id, member.exit_code)):
            _say(f"{member.title} crashed, and has written into its log:\n{crash}")
        if member.role in ("replica", "builder"):  # others come back under the same name
            self._shelf.ended(member.id)
        if member.id != self._config.controller.id:
            self._door.tell(Ended(member.seen()))
            return
        code = member.exit_code
        if self._end_at is None and code == 0:
            self._end(self._config.grace_s)
        elif self._end_at is None:
            self._controller_died(_how(code))
        self._family.forget(member.id)  # last: a standby that took over meanwhile would find it and do the same

    def _controller_died(self, how: str) -> None:
        self._worked = self._has_worked()
        self._born_at = None
        deaths, within = self._note(self._deaths), f"within {self._config.restart_window_s:g} s"
        delay = restart_delay_s(deaths, self._config.restarts_max, self._worked)
        if delay is None:
            self._give_up(
                f"the controller {how}; it died {deaths} times {within}, never worked, and is not started again; "
                "its errors are above. The instance ends"
            )
            return
        when = f"{delay:g} s from now" if delay else "at once"
        _say(f"the controller {how} ({deaths} times {within}); it is started again {when}, and what serves goes on")
        self._restart_at = self._clock.now() + delay
        self._tell_course()

    def _has_worked(self) -> bool:
        """Whether this instance's controller has lived long enough, once."""
        return self._worked or (self._born_at is not None and self._clock.now() - self._born_at >= WORKED_S)

    def _note(self, times: deque[float]) -> int:
        """Adds this moment; how many there are within the window."""
        now = self._clock.now()
        times.append(now)
        while times[0] < now - self._config.restart_window_s:
            times.popleft()
        return len(times)

    # -- what may happen

    def _answer(self, ask: Ask) -> Answer:
        what = ask.what
        try:
            if isinstance(what, StartProcess):
                if self._end_at is not None:
                    raise EngineError("the instance is ending, nothing is started any more")
                return Answer(ask.seq, seen=(self._family.start(what.spec).seen(),))
            if isinstance(what, StopProcess | ForgetProcess):
                if what.id == self._config.controller.id:
                    raise EngineError("the controller belongs to the supervisor; end the whole instance instead")
                if isinstance(what, StopProcess):
                    self._family.stop(what.id, what.grace_s)
                else:
                    self._family.forget(what.id)
            else:
                seen = self._family.seen()
                return Answer(ask.seq, seen=tuple(one for one in seen if one.id != self._config.controller.id))
        except EngineError as error:
            return Answer(ask.seq, str(error))
        except Exception as error:  # whatever it is, it is no reason to die
            return Answer(ask.seq, f"the supervisor failed at this: {error!r}")
        return Answer(ask.seq)

    def _on_signals(self, events: int) -> None:
        try:
            signums = set(self._wake.recv(4096))
        except BlockingIOError:
            return
        ended, others = self._family.reap()
        if self._standby.pid in others:
            self._standby.died()
        for member in ended:
            self._ended(member)
        if signums & {signal.SIGTERM, signal.SIGINT}:
            self._end(self._config.grace_s if self._end_at is None else 0.0)  # asked twice: now

    def _on_owner_gone(self, events: int) -> None:
        assert self._config.lifeline_fd is not None
        self._selector.unregister(self._config.lifeline_fd)
        self._end(ORPHANED_GRACE_S)

    def _give_up(self, why: str) -> None:
        _say(why)
        self._exit_code = 1
        self._end(ORPHANED_GRACE_S)

    def _end(self, grace_s: float) -> None:
        self._restart_at = None
        end_at = self._clock.now() + grace_s + UNKILLABLE_S
        self._end_at = end_at if self._end_at is None else min(self._end_at, end_at)
        self._tell_course()
        self._family.stop_all(grace_s)

    def _close_in_child(self) -> None:
        """A child keeps none of our descriptors: no end of a pipe that tells our life, no lock, no socket."""
        self._lifeline.cut()  # its copy of the write end, if the hook of the fork has left it
        self._door.close_sockets()
        self._standby.close_line()
        self._family.close_pidfds()
        self._close_own()
        os.close(self._config.lock_fd)
        os.close(self._config.outcome_fd)
        if self._config.state_fd is not None:
            os.close(self._config.state_fd)

    def _close_own(self) -> None:
        self._wake.close()
        self._wake_write.close()
        self._selector.close()

    # -- the standby

    def _tell(self, note: Note) -> None:
        self._standby.tell(note)

    def _tell_course(self) -> None:
        told = Course(tuple(self._deaths), self._restart_at, self._end_at, self._exit_code, self._born_at, self._worked)
        self._tell(told)

    def _fork_standby(self) -> None:
        """Forks it and returns; in the standby it returns when that has become the supervisor."""
        primary = os.getpid()
        with held_back(), self._lifeline.shared():
            heir = self._standby.fork()
            if heir is not None:
                self._wait_for(heir)
        if heir is not None:
            self._take_over(primary)
        elif self._standby.pid is not None:
            self._note_pid(runtime_dir.STANDBY, self._standby.pid)

    def _note_pid(self, name: str, pid: int) -> None:
        """For those who signal us. What the disk does not take is no reason to die: there is the lifeline, too."""
        try:
            runtime_dir.write_pid(self._config.runtime_dir, name, pid)
        except OSError as error:
            _say(f"the process id {pid} of the {name} cannot be noted: {error}")

    def _wait_for(self, heir: Heir) -> None:
        """The life of the standby. It heeds no signal: the primary says when all ends."""
        try:
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            for signum in IGNORED:
                signal.signal(signum, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT)  # what is blocked is not ignored, only late
            self._door.close_guests()
            self._close_own()
            setproctitle("skate: standby")
            heir.wait(self._hear)
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # nothing here is ours yet; the primary forks another one

    def _hear(self, note: Note) -> None:
        if isinstance(note, Course):
            self._deaths = deque(note.deaths)
            self._restart_at, self._end_at, self._exit_code = note.restart_at, note.end_at, note.exit_code
            self._born_at, self._worked = note.born_at, note.worked
        else:
            self._family.hear(note)

    def _take_over(self, primary: int) -> None:
        """This process is the supervisor from now on."""
        setproctitle("skate: supervisor")
        _say(f"the supervisor ({primary}) has died; {os.getpid()} goes on in its place")
        self._selector = selectors.DefaultSelector()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        self._door.hand_over(self._selector)
        self._door.open()
        self._listen()
        self._note_pid(runtime_dir.PID, os.getpid())
        _allow_descriptors(self._family.size() + DESCRIPTORS_OWN)
        for member in self._family.adopt():
            self._watch(member)
        worked = self._has_worked()
        self._look_for_controller()
        takeovers, within = self._note(self._takeovers), f"within {self._config.restart_window_s:g} s"
        rest = calm_s(takeovers, self._config.restarts_max, worked)
        if rest is None:
            self._give_up(f"the supervisor died {takeovers} times {within}, before anything worked. The instance ends")
        elif rest:
            _say(f"the supervisor died {takeovers} times {within}; this one rests {rest:g} s before it goes on")
            self._calm_s = rest
        self._standby = Standby(self._clock, 0.0)

    def _rest(self) -> None:
        """Waits, heeding nothing; whoever kills it meanwhile finds the standby in its place."""
        if self._calm_s:
            select.poll().poll(self._calm_s * 1000.0)
            self._calm_s = 0.0

    def _watch(self, member: Member) -> None:
        """An adopted process is no child: its pidfd says when it has ended."""
        pidfd = member.pidfd
        assert pidfd is not None

        def on_end(events: int) -> None:
            self._selector.unregister(pidfd)
            self._family.adopted_ended(member)
            self._ended(member)

        self._selector.register(pidfd, selectors.EVENT_READ, on_end)

    def _look_for_controller(self) -> None:
        """It may have died with the primary, or before it, and nobody has forked it again."""
        member = self._family.find(self._config.controller.id)
        if member is not None and not member.alive:
            self._ended(member)
        elif member is None and self._restart_at is None and self._end_at is None:
            self._controller_died("was gone")


def _listen_to_signals() -> tuple[socket.socket, socket.socket]:
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    for signum in CAUGHT:
        signal.signal(signum, lambda signum, frame: None)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT)  # the owner may have started us with some blocked
    return reader, writer


def _allow_descriptors(wanted: int) -> None:
    """Each adopted process takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "was killed"
    return f"was killed by {_signal_name(-exit_code)}" if exit_code < 0 else f"ended with exit code {exit_code}"


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads any more
        print(f"[skate: supervisor] {text}", file=sys.stderr, flush=True)


def _read_config() -> SupervisorConfig:
    """From stdin, which is a file without a name; no argument shows anything of it."""
    config = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=SupervisorConfig)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for fd in (config.lock_fd, config.lifeline_fd, config.outcome_fd, config.state_fd):
        if fd is not None:
            os.set_inheritable(fd, False)
    return config


def _put_in_front(paths: Sequence[str]) -> None:
    known = set(sys.path)
    sys.path[:0] = [path for path in paths if path not in known]


def main() -> None:
    """What ``python -m skate.engine.supervisor`` runs; ``engine.process.launch`` starts it."""
    gc.disable()  # the children enable it again; so the pages that they share stay untouched
    setproctitle("skate: supervisor")
    config = _read_config()
    _put_in_front(config.sys_path)
    sys.argv[:] = ["skate"]
    sys.exit(Supervisor(config, SystemClock()).run())


if __name__ == "__main__":
    main()
