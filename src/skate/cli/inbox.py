"""Where the main thread of a command waits: for events from its other threads, and for signals as events.

Law: a signal is a value like any other event; it is taken up between two steps, never in the middle of one. So
Ctrl-C can hit no moment in which something was started and nobody knows of it yet. The second Ctrl-C does not wait.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Generic, TypeVar

E = TypeVar("E")

EVENTS_MAX = 1000
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED_CODE = 130  # 128 + SIGINT, as shells say it


class Inbox(Generic[E]):
    """Events in the order of their posting. ``post`` may be called on any thread, ``take`` on one."""

    def __init__(self) -> None:
        self._events: deque[E] = deque()
        self._lock = threading.Lock()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._signalled: list[int] = []

    def post(self, event: E, *, latest: bool = False) -> None:
        """Adds an event. ``latest``: it makes an event of its type that is still the last one superfluous."""
        with self._lock:
            if latest and self._events and type(self._events[-1]) is type(event):
                self._events.pop()
            if len(self._events) < EVENTS_MAX:
                self._events.append(event)
        with contextlib.suppress(OSError):  # full: it wakes up anyway; closed: nobody waits any more
            self._writer.send(b"\0")

    def take(self, timeout_s: float | None) -> list[E]:
        """All events that are there; waits for one up to ``timeout_s``."""
        select.select([self._reader], [], [], timeout_s)
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)
        with self._lock:
            taken = list(self._events)
            self._events.clear()
        return taken

    @property
    def interrupted(self) -> bool:
        """Whether a signal has asked for the end."""
        return bool(self._signalled)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    @contextlib.contextmanager
    def signals(self, on_forced_end: Callable[[], None]) -> Iterator[None]:
        """Within this block signals set ``interrupted``, and a second Ctrl-C ends the process at once."""

        def heard(number: int, frame: FrameType | None) -> None:
            if self._signalled and number == signal.SIGINT:
                on_forced_end()
                os._exit(INTERRUPTED_CODE)
            self._signalled.append(number)

        before = {number: signal.signal(number, heard) for number in SIGNALS}
        woken = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)
