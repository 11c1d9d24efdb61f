"""The standby: a copy of the supervisor that sleeps until the supervisor has died, and then is the supervisor.

Law: whatever must survive the primary is told to the standby before it has an effect. A fork gives the standby all
that the primary knows at that moment, by memory; after it every change comes as a note over a pipe. A standby that does
not read is killed and forked anew, so the primary never waits for it. It does nothing else: no socket, no timer.

Why a fork that waits, and not a program that is started when needed: it has everything imported and shares its memory,
so it takes over within milliseconds. It needs pidfds (Linux); where there are none there is no standby, and the
death of the supervisor is the end of the instance.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

import msgspec

from skate.core.clock import Clock
from skate.engine.messages import FrameReader

LINE_BYTES = 1024 * 1024  # some thousand notes, should the machine be too busy to let the standby read
NOTE_MAX_BYTES = 64 * 1024
READ_BYTES = 256 * 1024
AGAIN_S = 0.1  # before the next standby, when the last one died young; doubles
AGAIN_MAX_S = 5.0
YOUNG_S = 10.0


class Known(msgspec.Struct, frozen=True, array_like=True, tag="known"):
    """A process of the family as it is now; ``slot`` is its place on the board of exit codes."""

    id: str
    role: str
    title: str
    pid: int
    slot: int
    ended: bool = False
    exit_code: int | None = None
    stopping: bool = False
    kill_at: float | None = None


class Forgotten(msgspec.Struct, frozen=True, array_like=True, tag="forgotten"):
    """A process that is known no more."""

    id: str


class Course(msgspec.Struct, frozen=True, array_like=True, tag="course"):
    """What is ahead of the instance, on the monotonic clock that all processes of a machine share."""

    deaths: tuple[float, ...]  # of controllers
    restart_at: float | None
    end_at: float | None
    exit_code: int
    born_at: float | None = None  # the controller that was started last
    worked: bool = False  # some controller has


Note: TypeAlias = Known | Forgotten | Course

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Note] = msgspec.msgpack.Decoder(Known | Forgotten | Course)


def possible() -> bool:
    """Can processes be watched that are not our children?"""
    if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False  # an old kernel, or one that forbids it
    return True


class Heir:
    """The standby's own side: what it listens to until it is needed."""

    def __init__(self, primary: int, line: int) -> None:
        self._primary = primary  # a pidfd: readable when that process has ended
        self._line = line
        self._reader = FrameReader(NOTE_MAX_BYTES)
        os.set_blocking(line, False)

    def wait(self, hear: Callable[[Note], None]) -> None:
        """Returns when the primary has died and everything that it told was heard."""
        poll = select.poll()
        poll.register(self._primary, select.POLLIN)
        poll.register(self._line, select.POLLIN)
        dead = False
        while not dead:
            ready = [fd for fd, _ in poll.poll()]
            dead = self._primary in ready
            if not self._read(hear) and not dead:
                poll.unregister(self._line)  # it has closed the line and ends
        os.close(self._line)
        os.close(self._primary)

    def _read(self, hear: Callable[[Note], None]) -> bool:
        """Hears what has come; False at the end of the line."""
        while True:
            try:
                data = os.read(self._line, READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            for body in self._reader.feed(data):
                hear(_decoder.decode(body))


class Standby:
    """The standby as the primary holds it; ``pid`` is None while there is none."""

    def __init__(self, clock: Clock, after_s: float) -> None:
        """The first one is due ``after_s`` from now."""
        self._clock = clock
        self.pid: int | None = None
        self.again_at: float | None = clock.now() + after_s if possible() else None
        self._since = 0.0
        self._young_deaths = 0
        self._line = -1

    def due(self) -> bool:
        """Is it time to fork one?"""
        return self.pid is None and self.again_at is not None and self.again_at <= self._clock.now()

    def fork(self) -> Heir | None:
        """Forks one: None in this process, in the new one what it shall wait for. Later again if that is refused."""
        self._since, self.again_at = self._clock.now(), None
        read_fd, write_fd = os.pipe()
        primary = os.pidfd_open(os.getpid())  # made here: the standby could find another process under our id
        with suppress(OSError):  # it may be above what the user's pipes may have; then it is a shorter one
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, LINE_BYTES)
        try:
            pid = os.fork()
        except OSError:
            for fd in (read_fd, write_fd, primary):
                os.close(fd)
            self._plan()
            return None
        if pid == 0:
            os.close(write_fd)
            self._line = -1
            return Heir(primary, read_fd)
        os.close(read_fd)
        os.close(primary)
        os.set_blocking(write_fd, False)
        self.pid, self._line = pid, write_fd
        return None

    def tell(self, note: Note) -> None:
        """Lets the standby know; when this returns it will, whatever becomes of us. Never waits."""
        if self._line < 0:
            return
        body = _encode(note)
        data = len(body).to_bytes(4, "big") + body
        try:
            told = len(body) <= NOTE_MAX_BYTES and os.write(self._line, data) == len(data)
        except OSError:
            told = False  # it has died, or does not read
        if not told and self.pid is not None:  # what knows only a part must never take over
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.close_line()

    def died(self) -> None:
        """It was reaped; another one is due, later if they keep dying."""
        self.pid = None
        self.close_line()
        self._plan()

    def _plan(self) -> None:
        now = self._clock.now()
        self._young_deaths = self._young_deaths + 1 if now - self._since < YOUNG_S else 0
        wait_s = min(AGAIN_S * 2.0 ** min(self._young_deaths - 1, 16), AGAIN_MAX_S) if self._young_deaths else 0.0
        self.again_at = now + wait_s

    def end(self) -> None:
        """No standby any more, and none to come."""
        self.again_at = None
        self.close_line()
        if self.pid is not None:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            self.pid = None

    def close_line(self) -> None:
        """Closes our end; what a forked child does with its copy."""
        if self._line >= 0:
            os.close(self._line)
            self._line = -1
