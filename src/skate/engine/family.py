"""The supervisor's children: forked, asked to stop, killed, reaped, remembered.

Law: signals go only to what was not reaped yet, so never to a stranger who got the same process id. When a child
has ended, for whatever reason, the rest of its process group (what user code started) is killed too.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass

from skate.core.clock import Clock
from skate.core.specs import ProcessSpec
from skate.engine import child
from skate.engine.base import EngineError, ProcessSeen

PROCESSES_MAX = 4096  # known ones, dead or alive
GRACE_MAX_S = 24 * 3600.0


@dataclass(slots=True)
class Member:
    """One child."""

    id: str
    role: str
    title: str
    pid: int
    exit_code: int | None = None
    stopping: bool = False
    kill_at: float | None = None

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    def seen(self) -> ProcessSeen:
        return ProcessSeen(self.id, self.role, self.pid, self.alive, self.exit_code)


class Family:
    """All children by id, in the order of their starting."""

    def __init__(self, birth: child.Birth, clock: Clock) -> None:
        self._birth = birth
        self._clock = clock
        self._members: dict[str, Member] = {}

    def start(self, spec: ProcessSpec) -> Member:
        """Forks it. EngineError when the id is taken or the machine refuses."""
        if spec.id in self._members:
            raise EngineError(f"a process {spec.id!r} is known already: stop and forget it first, or use another id")
        if len(self._members) >= PROCESSES_MAX:
            raise EngineError(f"{PROCESSES_MAX} processes are known, no more are allowed: forget the dead ones")
        try:
            pid = child.fork(spec, self._birth)
        except OSError as error:
            raise EngineError(f"the operating system does not let {spec.title!r} be forked: {error}") from error
        member = Member(spec.id, spec.role, spec.title, pid)
        self._members[spec.id] = member
        return member

    def stop(self, id: str, grace_s: float) -> None:
        """Asks once, and kills it when ``grace_s`` has passed; of several graces the earliest end counts."""
        member = self._members.get(id)
        if member is None or not member.alive:
            return
        deadline = self._clock.now() + (min(grace_s, GRACE_MAX_S) if grace_s > 0.0 else 0.0)
        member.kill_at = deadline if member.kill_at is None else min(member.kill_at, deadline)
        if not member.stopping:
            member.stopping = True
            with suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGTERM)

    def stop_all(self, grace_s: float) -> None:
        for id in self._members:
            self.stop(id, grace_s)

    def forget(self, id: str) -> None:
        """Drops a dead one."""
        member = self._members.get(id)
        if member is not None and member.alive:
            raise EngineError(f"the process {id!r} is alive: stop it before it is forgotten")
        self._members.pop(id, None)

    def reap(self) -> list[Member]:
        """Those that ended since the last time."""
        by_pid = {member.pid: member for member in self._members.values() if member.alive}
        ended: list[Member] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            member = by_pid.get(pid)
            if member is not None:
                member.exit_code = os.waitstatus_to_exitcode(status)
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
                ended.append(member)

    def kill_overdue(self) -> None:
        """Kills those whose grace is over."""
        now = self._clock.now()
        for member in self._members.values():
            if member.alive and member.kill_at is not None and member.kill_at <= now:
                member.kill_at = None
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(member.pid, signal.SIGKILL)

    def next_deadline(self) -> float | None:
        """When ``kill_overdue`` has something to do."""
        deadlines = [m.kill_at for m in self._members.values() if m.alive and m.kill_at is not None]
        return min(deadlines, default=None)

    def anyone_alive(self) -> bool:
        return any(member.alive for member in self._members.values())

    def seen(self) -> list[ProcessSeen]:
        return [member.seen() for member in self._members.values()]
