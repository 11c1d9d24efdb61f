"""The supervisor's family: forked, asked to stop, killed, reaped, remembered, and adopted from a supervisor that died.

Law: signals go only to what is surely ours, never to a stranger who got the same process id: a child has not been
reaped yet, of an adopted one we hold a pidfd. When one has ended, for whatever reason, the rest of its process group
(what user code started) is killed too. Every change is told before it has an effect, so whoever takes over knows it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from skate.core.clock import Clock
from skate.core.specs import ProcessSpec
from skate.engine import child
from skate.engine.base import EngineError, ProcessSeen
from skate.engine.standby import Forgotten, Known

PROCESSES_MAX = 4096  # known ones, dead or alive
GRACE_MAX_S = 24 * 3600.0


@dataclass(slots=True, eq=False)
class Member:
    """One process. ``exit_code`` None: it lives, or it has ``ended`` and nobody could see how."""

    id: str
    role: str
    title: str
    pid: int
    slot: int
    ended: bool = False
    exit_code: int | None = None
    stopping: bool = False
    kill_at: float | None = None
    pidfd: int | None = None  # of an adopted one

    @property
    def alive(self) -> bool:
        return not self.ended

    def seen(self) -> ProcessSeen:
        return ProcessSeen(self.id, self.role, self.pid, self.alive, self.exit_code)

    def known(self) -> Known:
        """What the standby must know of it."""
        return Known(
            self.id,
            self.role,
            self.title,
            self.pid,
            self.slot,
            self.ended,
            self.exit_code,
            self.stopping,
            self.kill_at,
        )


class Family:
    """All processes by id, in the order of their starting."""

    def __init__(self, birth: child.Birth, clock: Clock, tell: Callable[[Known | Forgotten], None]) -> None:
        self._birth = birth
        self._clock = clock
        self._tell = tell
        self._members: dict[str, Member] = {}

    def start(self, spec: ProcessSpec) -> Member:
        """Forks it. EngineError when the id is taken or the machine refuses."""
        if spec.id in self._members:
            raise EngineError(f"a process {spec.id!r} is known already: stop and forget it first, or use another id")
        if len(self._members) >= PROCESSES_MAX:
            raise EngineError(f"{PROCESSES_MAX} processes are known, no more are allowed: forget the dead ones")
        slot = self._birth.exits.take()
        member = Member(spec.id, spec.role, spec.title, 0, slot)

        def known(pid: int) -> None:
            member.pid = pid
            self._members[spec.id] = member
            self._tell(member.known())

        try:
            child.fork(spec, self._birth, slot, known)
        except OSError as error:
            self._birth.exits.give_back(slot)
            raise EngineError(f"the operating system does not let {spec.title!r} be forked: {error}") from error
        return member

    def stop(self, id: str, grace_s: float) -> None:
        """Asks once, and kills it when ``grace_s`` has passed; of several graces the earliest end counts."""
        member = self._members.get(id)
        if member is None or not member.alive:
            return
        deadline = self._clock.now() + (min(grace_s, GRACE_MAX_S) if grace_s > 0.0 else 0.0)
        member.kill_at = deadline if member.kill_at is None else min(member.kill_at, deadline)
        asked, member.stopping = member.stopping, True
        self._tell(member.known())
        if not asked:
            _signal(member, signal.SIGTERM)

    def stop_all(self, grace_s: float) -> None:
        for id in self._members:
            self.stop(id, grace_s)

    def forget(self, id: str) -> None:
        """Drops a dead one."""
        member = self._members.get(id)
        if member is None:
            return
        if member.alive:
            raise EngineError(f"the process {id!r} is alive: stop it before it is forgotten")
        del self._members[id]
        self._birth.exits.give_back(member.slot)
        self._tell(Forgotten(id))

    def reap(self) -> tuple[list[Member], set[int]]:
        """Those that ended since the last time, and the ids of other children of this process that did."""
        by_pid = {member.pid: member for member in self._members.values() if member.alive and member.pidfd is None}
        ended: list[Member] = []
        others: set[int] = set()
        while (found := _dead_child()) is not None:
            pid, code = found
            member = by_pid.get(pid)
            if member is None:
                others.add(pid)
            else:  # as long as it is not reaped, its id is nobody else's
                _kill_group(pid)
                self._ended(member, code)
                ended.append(member)
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return ended, others

    def _ended(self, member: Member, code: int | None) -> None:
        member.ended, member.exit_code, member.kill_at = True, code, None
        self._tell(member.known())

    def kill_overdue(self) -> None:
        """Kills those whose grace is over."""
        now = self._clock.now()
        for member in self._members.values():
            if member.alive and member.kill_at is not None and member.kill_at <= now:
                member.kill_at = None
                if _signal(member, signal.SIGKILL):
                    _kill_group(member.pid)

    def next_deadline(self) -> float | None:
        """When ``kill_overdue`` has something to do."""
        deadlines = [m.kill_at for m in self._members.values() if m.alive and m.kill_at is not None]
        return min(deadlines, default=None)

    def find(self, id: str) -> Member | None:
        """The process of that id, dead or alive."""
        return self._members.get(id)

    def size(self) -> int:
        """How many are known."""
        return len(self._members)

    def anyone_alive(self) -> bool:
        return any(member.alive for member in self._members.values())

    def seen(self) -> list[ProcessSeen]:
        return [member.seen() for member in self._members.values()]

    # -- a change of supervisors

    def hear(self, note: Known | Forgotten) -> None:
        """The primary has told this; the family is the primary's."""
        if isinstance(note, Forgotten):
            member = self._members.pop(note.id, None)
            if member is not None:
                self._birth.exits.give_back(member.slot)
                _close(member)
            return
        member = self._members.get(note.id)
        if member is None:
            self._birth.exits.keep(note.slot)
            member = self._members[note.id] = Member(note.id, note.role, note.title, note.pid, note.slot)
        member.ended, member.exit_code = note.ended, note.exit_code
        member.stopping, member.kill_at = note.stopping, note.kill_at
        if member.ended:
            _close(member)

    def adopt(self) -> list[Member]:
        """Those alive are ours from now on, by a pidfd each; asks again what was asked to stop. The living ones."""
        living = [member for member in self._members.values() if member.alive]
        for member in living:
            if member.pidfd is None:
                member.pidfd = _open(member.pid)
            if member.pidfd is None:
                self.adopted_ended(member)
            elif member.stopping:  # the primary may have died before it could say so
                _signal(member, signal.SIGTERM)
        return [member for member in living if member.alive]

    def adopted_ended(self, member: Member) -> None:
        """An adopted one has ended: how, only itself could say."""
        if _is_ours(member.pid) is not False:  # else it is a stranger's id by now
            _kill_group(member.pid)
        _close(member)
        self._ended(member, self._birth.exits.code(member.slot))

    def close_pidfds(self) -> None:
        """What a forked child does with its copies."""
        for member in self._members.values():
            _close(member)


def _dead_child() -> tuple[int, int] | None:
    """A child that has ended, not yet reaped where the system can say so, and its exit code."""
    try:
        if hasattr(os, "waitid"):
            seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if seen is None:
                return None
            return seen.si_pid, seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status
        pid, status = os.waitpid(-1, os.WNOHANG)
        return (pid, os.waitstatus_to_exitcode(status)) if pid else None
    except ChildProcessError:
        return None


def _open(pid: int) -> int | None:
    """A pidfd of that process if it is one of this instance; None when it has ended or cannot be watched."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError:  # no descriptor is left for it: what cannot be watched must not run
        if _is_ours(pid):
            os.kill(pid, signal.SIGKILL)
        return None
    if _is_ours(pid):
        return pidfd
    os.close(pidfd)
    return None


def _is_ours(pid: int) -> bool | None:
    """All processes of an instance are in the session of its first supervisor. None: there is no such process.

    As long as something of its group runs, the id of a process that has ended is not given to another one.
    """
    try:
        return os.getsid(pid) == os.getsid(0)
    except ProcessLookupError:
        return None


def _signal(member: Member, signum: signal.Signals) -> bool:
    """Sends it if the process still runs."""
    try:
        if member.pidfd is not None:
            signal.pidfd_send_signal(member.pidfd, signum)
        else:
            os.kill(member.pid, signum)
    except ProcessLookupError:
        return False
    return True


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _close(member: Member) -> None:
    if member.pidfd is not None:
        os.close(member.pidfd)
        member.pidfd = None
