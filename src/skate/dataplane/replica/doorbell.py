"""Hears that bytes come for the loop, beside the loop: for a thread that must know when somebody wants something of it.

Law: nothing is read and nothing ticks; the kernel wakes who waits here together with the loop. Edges count, not levels:
what came before ``empty`` is forgotten, what comes after it ends the next ``wait`` at once. Where the system has no
epoll (macOS), ``wait`` ends every ``BLIND_S`` instead.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress

BLIND_S = 5.0


class Doorbell:
    """The sockets that somebody may ring at, and a cord to pull from inside the house. One thread waits."""

    def __init__(self) -> None:
        self._inside, self._cord = os.pipe()
        os.set_blocking(self._inside, False)
        os.set_blocking(self._cord, False)
        self._poll = select.epoll() if hasattr(select, "epoll") else None
        self.hear(self._inside)

    def hear(self, fd: int) -> None:
        """Hears this socket from now on, until it is closed."""
        if self._poll is not None:
            with suppress(OSError, ValueError):  # closed already
                self._poll.register(fd, select.EPOLLIN | select.EPOLLET)

    def ring(self) -> None:
        """Ends the wait."""
        with suppress(OSError):  # it is full of rings already, or closed
            os.write(self._cord, b"\0")

    def empty(self) -> None:
        """Forgets what was heard until now."""
        if self._poll is not None:
            self._poll.poll(0)

    def wait(self, limit_s: float | None = None) -> bool:
        """Waits until something comes, at most ``limit_s``; whether something has."""
        if self._poll is None:
            select.select([self._inside], [], [], BLIND_S if limit_s is None else min(limit_s, BLIND_S))
            heard = False
        else:
            heard = bool(self._poll.poll(limit_s))
        with suppress(OSError):  # nobody has pulled the cord
            os.read(self._inside, 4096)
        return heard

    def close(self) -> None:
        """Nobody may wait any more."""
        if self._poll is not None:
            self._poll.close()
        os.close(self._inside)
        os.close(self._cord)
