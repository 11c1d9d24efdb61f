"""Slots: how many calls a replica runs at once, and whose turn it is when one frees. Pure: no loop, no clock.

Law: never more than ``limit`` calls run or are promised. A caller that was refused is remembered once and gets
the next free slot in turn with the others (READY), so nobody has to ask again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable


class Slots:
    """Counts slots taken and promised. ``grant`` is called with the caller that gets a promise."""

    __slots__ = ("_grant", "_promised", "_waiting", "closed", "limit", "ongoing", "promised")

    def __init__(self, limit: int, grant: Callable[[Hashable], None]) -> None:
        self.limit = limit
        self.ongoing = 0
        self.promised = 0
        self.closed = False  # draining: nothing is accepted any more
        self._grant = grant
        self._promised: dict[Hashable, int] = {}
        self._waiting: deque[Hashable] = deque()

    def take(self, caller: Hashable, granted: bool) -> bool:
        """Takes a slot for a call; False refuses it, and the caller will be told when it is its turn."""
        if self.closed:
            return False
        if granted and self._promised.get(caller, 0):
            self._unpromise(caller, 1)
        elif self.ongoing + self.promised >= self.limit:
            if caller not in self._waiting:
                self._waiting.append(caller)
            return False
        self.ongoing += 1
        return True

    def free(self) -> None:
        """A call has ended."""
        self.ongoing -= 1
        if self._waiting:
            self._promise()

    def release(self, caller: Hashable, count: int) -> None:
        """A caller gives promised slots back."""
        self._unpromise(caller, min(count, self._promised.get(caller, 0)))
        self._promise()

    def forget(self, caller: Hashable) -> None:
        """A caller is gone with its promises."""
        if caller in self._waiting:
            self._waiting.remove(caller)
        self._unpromise(caller, self._promised.get(caller, 0))
        self._promise()

    def resize(self, limit: int) -> None:
        """Changes the limit; calls that run are left alone."""
        self.limit = limit
        self._promise()

    def _unpromise(self, caller: Hashable, count: int) -> None:
        if count:
            self.promised -= count
            left = self._promised[caller] - count
            if left:
                self._promised[caller] = left
            else:
                del self._promised[caller]

    def _promise(self) -> None:
        while self._waiting and not self.closed and self.ongoing + self.promised < self.limit:
            caller = self._waiting.popleft()
            self.promised += 1
            self._promised[caller] = self._promised.get(caller, 0) + 1
            self._grant(caller)
