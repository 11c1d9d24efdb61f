"""The process engine: the owner's side (``launch``) and the controller's side (``ProcessEngine``).

Law: the owner starts exactly one process, the supervisor, and holds one end of a pipe; when the owner is gone, by
whatever signal, the supervisor ends everything. A second pipe tells the owner the other way round: only supervisors
(the present one and its standby) hold its write end, so it is open as long as the instance lives, whoever serves it.
The controller talks to the supervisor over ``engine.sock`` and keeps nothing: one that comes back connects and
observes. When the line breaks because a standby takes over, what was asked is asked again, and done once.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from skate.core.clock import Clock, SystemClock
from skate.core.environment import handed_on
from skate.core.errors import WireError
from skate.core.specs import ProcessSpec
from skate.engine import runtime_dir as directories
from skate.engine.base import Action, Changed, EngineError, ProcessSeen, StartProcess
from skate.engine.lifeline import Lifeline
from skate.engine.messages import (
    ANSWER_MAX_BYTES,
    ASK_MAX_BYTES,
    Answer,
    Ask,
    Ended,
    FrameReader,
    ListProcesses,
    SupervisorConfig,
    frame,
    read_told,
)
from skate.engine.output import log_path

ANSWER_LIMIT_S = 30.0  # the supervisor answers within milliseconds, unless it still imports what the user preloads
PENDING_MAX = 1024
SUPERVISOR = "supervisor"  # its log is named so
LINES_MAX = 3  # that may break under one question: supervisors do not die in a row
SECOND_ASKING_S = 3.0  # after it the supervisor has killed its children, waited, and must be gone
LOOK_S = 0.02  # between two looks who is the supervisor now
GONE_S = 2.0  # for a process that ends to leave its last trace

_PROGRAM = (
    "import sys; root = sys.argv[1]; root in sys.path or sys.path.insert(0, root); "
    "from skate.engine.supervisor import main; main()"
)


# -- the owner ----------------------------------------------------------------------------------


class _Spawned(subprocess.Popen[bytes]):
    """Not waiting for it is no mistake: it ends by its lifeline, or lives on when detached."""

    def __del__(self) -> None:
        pass


class _Outcome:
    """The read end of the pipe whose write end supervisors hold; the last one writes its exit code."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._code: int | None = None
        self._over = False
        self._lock = threading.Lock()

    def over(self, timeout_s: float = 0.0) -> bool:
        """Are all supervisors gone, or is that so within the time?"""
        with self._lock:
            if not self._over:
                poll = select.poll()
                poll.register(self._fd, 0)  # its closing is told unasked; what was written stays for later
                self._over = bool(poll.poll(timeout_s * 1000.0))
                if self._over:
                    self._code = next(iter(os.read(self._fd, 1)), None)
                    os.close(self._fd)
            return self._over

    def code(self) -> int | None:
        """The exit code, if it was over and somebody had time to say it."""
        return self._code

    def close(self) -> None:
        """Counts as over from now on."""
        with self._lock:
            if not self._over:
                self._over = True
                os.close(self._fd)


class Launched:
    """A running instance, as its starter holds it. ``pid``: its first supervisor, whose session all processes share."""

    def __init__(self, process: _Spawned, runtime_dir: str, lifeline: Lifeline | None, outcome: _Outcome) -> None:
        self.pid = process.pid
        self.runtime_dir = runtime_dir
        self._process = process
        self._lifeline = lifeline
        self._outcome = outcome
        self._starter = os.getpid()
        self._asked = -1  # pidfd of the supervisor that was told to end, if it is not the first

    @property
    def engine_address(self) -> str:
        return f"unix:{os.path.join(self.runtime_dir, directories.ENGINE_SOCKET)}"

    @property
    def logs(self) -> str:
        """The folder of what its processes print."""
        return os.path.join(self.runtime_dir, directories.LOGS)

    @property
    def exit_code(self) -> int | None:
        """The last supervisor's, once the instance has ended; 1 when it gave up, negative when it was killed."""
        if self.alive():
            return None
        code = self._outcome.code()
        return code if code is not None else self._process.poll() or -signal.SIGKILL

    def alive(self) -> bool:
        """Does a supervisor run?"""
        self._process.poll()  # the first one may have died while another goes on
        return not self._outcome.over()

    def close(self, timeout_s: float = 10.0) -> None:
        """Ends the instance: asks, waits up to ``timeout_s``, then kills. Nothing of it is left. Safe to repeat.

        In a forked copy of the starter this does nothing: the instance is not the copy's.
        """
        if os.getpid() != self._starter:
            return
        for limit_s in (timeout_s, SECOND_ASKING_S):
            if self._signalled(signal.SIGTERM, limit_s):
                break
        else:
            if self._lifeline is not None:
                self._lifeline.cut()
            self._signalled(signal.SIGKILL, SECOND_ASKING_S)
        if self._lifeline is not None:
            self._lifeline.cut()
        self._sweep()

    def _signalled(self, signum: signal.Signals, limit_s: float) -> bool:
        """Sends it to the supervisor, and to whoever is that next, until all are gone or the time is up."""
        clock = SystemClock()
        until = clock.now() + limit_s
        sent: int | None = None
        while not self._outcome.over(0.0 if sent is None else LOOK_S):
            pid = directories.read_pid(self.runtime_dir) or self.pid
            if pid != sent:
                sent = pid
                if signum == signal.SIGKILL:
                    self._send(directories.read_pid(self.runtime_dir, directories.STANDBY), signum)
                self._send(pid, signum)
            elif clock.now() > until:
                return False
        return True

    def _send(self, pid: int | None, signum: signal.Signals) -> None:
        """To that process if it is one of ours; as long as we hold the descriptor it cannot be another's id."""
        if pid == self.pid:
            self._process.send_signal(signum)
        elif pid is not None:  # only where there are pidfds another one than the first can be it
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                try:
                    if os.getsid(pid) == self.pid:
                        signal.pidfd_send_signal(pidfd, signum)
                        self._asked, pidfd = pidfd, self._asked
                finally:
                    if pidfd >= 0:
                        os.close(pidfd)

    def _sweep(self) -> None:
        """Waits until the last supervisor is gone to its last bit, and removes what it could not."""
        clock = SystemClock()
        until = clock.now() + GONE_S
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GONE_S)
        if self._asked >= 0:
            last = select.poll()
            last.register(self._asked, select.POLLIN)
            last.poll(GONE_S * 1000.0)
            os.close(self._asked)
            self._asked = -1
        while os.path.isdir(self.runtime_dir) and not directories.remove_stale(self.runtime_dir):
            if clock.now() > until:
                return
            threading.Event().wait(LOOK_S)

    def let_go(self) -> None:
        """The instance is not this process's any more; it lives on."""
        self._outcome.close()


def launch(
    runtime_dir: str,
    controller: ProcessSpec,
    *,
    modules: Sequence[str] = (),
    preload: Sequence[str] = (),
    sys_path: Sequence[str] = (),
    detached: bool = False,
    grace_s: float = 5.0,
    restarts_max: int = 10,
    standby_after_s: float = 0.5,
    output: int | None = None,
    hold: Callable[[], int] | None = None,
) -> Launched:
    """Starts an instance: its directory, its supervisor, and through that the controller. Does not wait for them.

    ``modules`` (of Skate) and ``preload`` (of the user) are imported once, before replicas are forked; ``grace_s`` is
    what the processes get when the instance is asked to end. ``output``: a descriptor for what they print, instead of
    the starter's own (detached: instead of the log). ``standby_after_s``: when the supervisor's standby is forked at
    the earliest; until then its death is the end. ``hold``: called as soon as the directory is ours; supervisors keep
    the descriptor open that it returns (the lock of the state directory).
    Raises AlreadyRunningError if ``runtime_dir`` is in use, and what ``hold`` raises.
    """
    claimed = directories.claim(runtime_dir)
    state_fd: int | None = None
    lifeline = None if detached else Lifeline()
    outcome, outcome_fd = os.pipe()
    try:
        state_fd = None if hold is None else hold()
        config = SupervisorConfig(
            runtime_dir=runtime_dir,
            controller=controller,
            lock_fd=claimed.lock_fd,
            lifeline_fd=None if lifeline is None else lifeline.read_fd,
            outcome_fd=outcome_fd,
            modules=tuple(modules),
            preload=tuple(preload),
            sys_path=tuple(sys_path),
            grace_s=grace_s,
            restarts_max=restarts_max,
            standby_after_s=standby_after_s,
            state_fd=state_fd,
        )
        process = _spawn(config, output)
    except BaseException:
        if lifeline is not None:
            lifeline.close_reader()
            lifeline.cut()
        os.close(outcome)
        directories.remove(claimed)
        raise
    finally:
        os.close(outcome_fd)  # the supervisor has its own
        if state_fd is not None:
            os.close(state_fd)  # likewise
    if lifeline is not None:
        lifeline.close_reader()
    os.close(claimed.lock_fd)  # the supervisor's copy holds the lock from now on
    return Launched(process, runtime_dir, lifeline, _Outcome(outcome))


def _spawn(config: SupervisorConfig, output: int | None) -> _Spawned:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = [sys.executable, "-P", "-c", _PROGRAM, root]
    ends = (config.lock_fd, config.lifeline_fd, config.outcome_fd, config.state_fd)
    inherited = [fd for fd in ends if fd is not None]
    log = None
    if config.lifeline_fd is None and output is None:
        output = log = _open_log(config.runtime_dir)
    try:
        with tempfile.TemporaryFile() as file:  # whole before the supervisor runs: it never waits for us
            file.write(msgspec.msgpack.encode(config))
            file.seek(0)
            return _Spawned(
                command,
                stdin=file,
                stdout=output,
                stderr=output,
                env=handed_on(),
                pass_fds=inherited,
                start_new_session=True,
            )
    finally:
        if log is not None:
            os.close(log)


def _open_log(runtime_dir: str) -> int:
    """For what a detached supervisor itself has to say."""
    logs = os.path.join(runtime_dir, directories.LOGS)
    os.mkdir(logs, 0o700)
    return os.open(log_path(logs, SUPERVISOR), os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)


# -- the controller -----------------------------------------------------------------------------


class ProcessEngine:
    """The Engine whose processes the supervisor at ``address`` (``unix:/…/engine.sock``) forks."""

    def __init__(self, address: str, clock: Clock) -> None:
        if not address.startswith("unix:"):
            raise EngineError(f"the engine's address {address!r} does not begin with 'unix:'")
        self._path = address.removeprefix("unix:")
        self._clock = clock
        self._callbacks: list[Changed] = []
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()

    async def observe(self) -> list[ProcessSeen]:
        for _ in range(LINES_MAX - 1):
            with suppress(_LineLostError):
                return list((await self._ask(ListProcesses())).seen)
        return list((await self._ask(ListProcesses())).seen)

    async def perform(self, action: Action) -> ProcessSeen | None:
        for _ in range(LINES_MAX - 1):
            try:
                return await self._perform(action)
            except _LineLostError:
                if isinstance(action, StartProcess):  # it was forked, or it was not; to stop or forget twice is no harm
                    for one in await self.observe():
                        if one.id == action.spec.id:
                            return one
        return await self._perform(action)

    async def _perform(self, action: Action) -> ProcessSeen | None:
        seen = (await self._ask(action)).seen
        return seen[0] if seen else None

    def on_change(self, callback: Changed) -> None:
        self._callbacks.append(callback)

    async def close(self) -> None:
        """The connection only; the processes are the supervisor's."""
        if self._link is not None:
            self._link.close()
            await self._link.closed.wait()

    async def _ask(self, what: Action | ListProcesses) -> Answer:
        async with self._connecting:
            if self._link is None or self._link.closed.is_set():
                self._link = await self._connect()
            link = self._link
        answered = link.ask(what)
        limit = asyncio.ensure_future(self._clock.sleep(ANSWER_LIMIT_S))
        either: set[asyncio.Future[Any]] = {answered, limit}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                raise EngineError(f"the supervisor did not answer within {ANSWER_LIMIT_S:g} s")
        finally:
            limit.cancel()
            answered.cancel()
        answer = answered.result()
        if answer.error is not None:
            raise EngineError(answer.error)
        return answer

    async def _connect(self) -> _Link:
        loop = asyncio.get_running_loop()
        try:
            _, link = await loop.create_unix_connection(lambda: _Link(self._changed), self._path)
        except OSError as error:
            raise EngineError(f"no supervisor listens on {self._path} ({error}); the instance has ended") from error
        return link

    def _changed(self, seen: ProcessSeen | None) -> None:
        for callback in self._callbacks:
            callback(seen)


class _LineLostError(EngineError):
    """Whether it was done is not known."""


class _Link(asyncio.Protocol):
    """One connection to the supervisor."""

    def __init__(self, changed: Changed) -> None:
        self.closed = asyncio.Event()
        self._changed = changed
        self._reader = FrameReader(ANSWER_MAX_BYTES)
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self._seq = 0
        self._transport: asyncio.Transport | None = None
        self._cause: Exception | None = None
        self._closing = False

    def ask(self, what: Action | ListProcesses) -> asyncio.Future[Answer]:
        """Sends the question; its answer, or EngineError when the connection is lost."""
        if self._transport is None or self.closed.is_set():
            raise _LineLostError("the connection to the supervisor is closed")
        if len(self._pending) >= PENDING_MAX:
            raise EngineError(f"{PENDING_MAX} questions to the supervisor are unanswered; it seems to hang")
        self._seq += 1
        seq = self._seq
        data = frame(Ask(seq, what), ASK_MAX_BYTES)
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        answered.add_done_callback(lambda _: self._pending.pop(seq, None))
        self._pending[seq] = answered
        self._transport.write(data)
        return answered

    def close(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop transports are no asyncio.Transport, so there is nothing to assert
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._reader.feed(data):
                self._hear(read_told(body))
        except WireError as error:
            self._cause = error
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set()
        unasked = not self._closing or self._cause is not None
        cause = self._cause or error
        for answered in list(self._pending.values()):
            if not answered.done():
                answered.set_exception(
                    _LineLostError(f"the connection to the supervisor was lost: {cause or 'it ended'}")
                )
        if unasked:  # what runs is unknown now: look again
            self._changed(None)

    def _hear(self, told: Answer | Ended) -> None:
        if isinstance(told, Ended):
            self._changed(told.seen)
            return
        answered = self._pending.get(told.seq)
        if answered is not None and not answered.done():
            answered.set_result(told)
