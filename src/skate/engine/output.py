"""What the processes of an instance print: a file for each in ``logs/`` of the runtime directory, and what it becomes.

Law: a print never fails because of its log. The file is the process's own standard output and error, so what a C
library says, or a crash, stands in it too; of a foreground instance those go on to where they went before, and what
goes through Python goes to both. Each file has a bound: when it is full its text becomes the one before
(``….log.1``) and it begins anew, in place, so whoever else writes into it goes on. Of processes that have ended the
newest stay.
"""

from __future__ import annotations

import faulthandler
import io
import os
import select
import shutil
import signal
import sys
import threading
from collections import deque
from contextlib import suppress
from hashlib import sha256
from typing import Any, TextIO
from urllib.parse import quote

LOG_BYTES_MAX = 4 << 20  # of one file; there is at most one more of the same process
LOOK_AFTER_BYTES = 64 << 10
LOOK_AGAIN_S = 60.0  # at the size, for what does not go through Python
ENDED_MAX = 50  # logs of processes that have ended
NAME_BYTES_MAX = 200  # of a file; file systems take 255
BLOCKED_S = 1.0  # for a terminal that takes nothing
CRASH_BYTES_MAX = 16_384
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
CRASH_HEAD = b"Fatal Python error: "

LOG, FORMER = ".log", ".log.1"


# -- names of files -----------------------------------------------------------------------------------


def stem(id: str) -> str:
    """What the file of a process is called, without its ending: readable, and safe for any id."""
    name = quote(id, safe=" #@:,+=()")
    return name if len(name) <= NAME_BYTES_MAX else f"{name[:NAME_BYTES_MAX]}~{sha256(id.encode()).hexdigest()[:12]}"


def log_path(logs: str, id: str) -> str:
    """Where the process of that id writes."""
    return os.path.join(logs, stem(id) + LOG)


# -- in a process -------------------------------------------------------------------------------------


class Log:
    """A file that is written to its bound and then begins anew. Any thread may write."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._turning = threading.Lock()
        self._unseen = LOOK_AFTER_BYTES  # written since the last look at the size

    def write(self, data: memoryview) -> None:
        """Adds the data, as much as the disk takes."""
        self._unseen += len(data)
        with suppress(OSError):
            while data:
                data = data[os.write(self.fd, data) :]
        if self._unseen >= LOOK_AFTER_BYTES:
            self.keep_bounded()

    def keep_bounded(self) -> None:
        """Begins anew when it is full."""
        self._unseen = 0
        with suppress(OSError):
            if os.fstat(self.fd).st_size > LOG_BYTES_MAX and self._turning.acquire(blocking=False):
                try:
                    with suppress(OSError):  # no room for two: then only the newest stays
                        shutil.copy(self.path, self.path.removesuffix(LOG) + FORMER)
                    os.ftruncate(self.fd, 0)
                finally:
                    self._turning.release()


class Stream(io.RawIOBase):
    """Standard output or error of a process: into its log, and where ``shown`` to where it went before."""

    def __init__(self, name: str, fd: int, log: Log, shown: bool) -> None:
        self.name = name
        self.mode = "w"
        self._fd = fd
        self._log = log
        self._shown = shown

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return self._shown and os.isatty(self._fd)

    def write(self, data: Any) -> int:
        """All of it, always."""
        view = memoryview(data).cast("B")
        self._log.write(view)
        if self._shown:
            self._show(view)
        return view.nbytes

    def _show(self, data: memoryview) -> None:
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                if not select.select([], [self._fd], [], BLOCKED_S)[1]:
                    return
            except OSError:  # nobody reads any more
                self._shown = False
                return


def attach(logs: str, id: str, shown: bool) -> Log | None:
    """Makes a file in ``logs`` this process's output; None, and nothing is changed, where that cannot be.

    ``shown``: what goes through Python also goes to where it went before, and other output goes there only.
    """
    try:
        os.makedirs(logs, 0o700, exist_ok=True)
        log = Log(log_path(logs, id))
    except OSError as error:
        print(f"[skate] {id} has no log of its own: {error}", file=sys.stderr)
        return None
    if not shown:
        for fd in (1, 2):
            os.dup2(log.fd, fd)
    sys.stdout = _text(sys.stdout, Stream("<stdout>", 1, log, shown))
    sys.stderr = _text(sys.stderr, Stream("<stderr>", 2, log, shown))
    faulthandler.enable(log.fd)
    return log


def _text(before: TextIO, raw: Stream) -> TextIO:
    """What user code prints is seen at once, and not lost with the process."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=before.encoding or "utf-8", errors=before.errors, line_buffering=True
    )


# -- for the supervisor -------------------------------------------------------------------------------


class Shelf:
    """The logs of processes that have ended."""

    def __init__(self, logs: str) -> None:
        self._logs = logs
        self._ended: deque[str] = deque()

    def ended(self, id: str) -> None:
        """One more; the oldest may have to go. Of one that has said nothing, nothing stays."""
        with suppress(OSError):
            path = log_path(self._logs, id)
            if not os.stat(path).st_size:
                os.unlink(path)
                return
        self._ended.append(id)
        while len(self._ended) > ENDED_MAX:
            base = os.path.join(self._logs, stem(self._ended.popleft()))
            for ending in (LOG, FORMER):
                with suppress(OSError):
                    os.unlink(base + ending)

    def crash(self, id: str, exit_code: int | None) -> str:
        """What the process wrote of the thread that crashed, for those who see only the terminal; else ``""``."""
        if exit_code is None or -exit_code not in CRASHES:
            return ""
        try:
            with open(log_path(self._logs, id), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - CRASH_BYTES_MAX))
                said = file.read()
        except OSError:
            return ""
        place = said.rfind(CRASH_HEAD)
        return "" if place < 0 else b"\n".join(said[place:].split(b"\n\n")[:2]).decode(errors="replace").rstrip()
