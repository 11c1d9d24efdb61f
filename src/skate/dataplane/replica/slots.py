"""Slots: how many calls a replica runs at once, which ones wait here, and whose turn it is when a slot frees. Pure.

Law: never more than ``limit`` calls run or are promised. A call that its router sent ahead waits here, not begun, for
the next free slot; calls begin in the order in which they came. A router that was refused is remembered once and gets a
free slot in turn with the others and with what waits here (READY), so nobody has to ask again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

PARKED_MAX = 64  # calls sent ahead that wait here; enough to fill the slots while the next ones are on their way

REFUSED, PARKED, BEGUN = range(3)


class Slots(Generic[T]):
    """Counts slots taken and promised. ``grant`` is called with the caller that gets a promise, ``begin`` with the
    call (whatever ``offer`` was given for it) that has a slot now.
    """

    __slots__ = (
        "_begin",
        "_grant",
        "_parked",
        "_promised",
        "_turn_of_parked",
        "_waiting",
        "closed",
        "limit",
        "ongoing",
        "promised",
    )

    def __init__(self, limit: int, grant: Callable[[Hashable], None], begin: Callable[[T], None]) -> None:
        self.limit = limit
        self.ongoing = 0
        self.promised = 0
        self.closed = False  # draining: nothing is accepted any more
        self._grant = grant
        self._begin = begin
        self._promised: dict[Hashable, int] = {}
        self._waiting: deque[Hashable] = deque()
        self._parked: deque[tuple[Hashable, T]] = deque()
        self._turn_of_parked = True

    @property
    def load(self) -> int:
        """Calls in hand, begun or not."""
        return self.ongoing + len(self._parked)

    def offer(self, caller: Hashable, call: T, granted: bool = False, ahead: bool = False) -> int:
        """Takes a call if it may come in: BEGUN or PARKED. REFUSED: its caller is told when it is its turn.

        ``granted``: it uses a promise. ``ahead``: it may wait here.
        """
        if self.closed:
            return REFUSED
        if granted and self._promised.get(caller, 0):
            self._unpromise(caller, 1)
            if self._parked:  # they came earlier
                self._parked.append((caller, call))
                self._begin_parked()
                return PARKED
        elif self.ongoing + self.promised >= self.limit:
            if ahead and len(self._parked) < PARKED_MAX:
                self._parked.append((caller, call))
                return PARKED
            if caller not in self._waiting:
                self._waiting.append(caller)
            return REFUSED
        self.ongoing += 1
        self._begin(call)
        return BEGUN

    def free(self) -> None:
        """A call has ended."""
        self.ongoing -= 1
        if self._parked or self._waiting:
            self._settle()

    def withdraw(self, call: T) -> None:
        """A call that waits here is no longer wanted; one that does not is left alone."""
        self._parked = deque(pair for pair in self._parked if pair[1] is not call)

    def give_back(self, caller: Hashable) -> list[T]:
        """The calls of this caller that wait here, oldest first; they are its own again."""
        mine = [call for whose, call in self._parked if whose == caller]
        self._parked = deque(pair for pair in self._parked if pair[0] != caller)
        return mine

    def close(self) -> list[T]:
        """Accepts nothing any more; the calls that waited here."""
        self.closed = True
        parked, self._parked = self._parked, deque()
        return [call for _, call in parked]

    def release(self, caller: Hashable, count: int) -> None:
        """A caller gives promised slots back."""
        self._unpromise(caller, min(count, self._promised.get(caller, 0)))
        self._settle()

    def forget(self, caller: Hashable) -> None:
        """A caller is gone with its promises and with what waits here for it."""
        if caller in self._waiting:
            self._waiting.remove(caller)
        self.give_back(caller)
        self._unpromise(caller, self._promised.get(caller, 0))
        self._settle()

    def resize(self, limit: int) -> None:
        """Changes the limit. Calls that run are left alone; promises beyond the limit are taken back, and whoever had
        them is the next to get one: a call that still comes for such a promise is refused like any other.
        """
        self.limit = limit
        while self.promised and self.ongoing + self.promised > limit:
            caller = next(reversed(self._promised))
            self._unpromise(caller, 1)
            if caller not in self._waiting:
                self._waiting.appendleft(caller)
        self._settle()

    def _unpromise(self, caller: Hashable, count: int) -> None:
        if count:
            self.promised -= count
            left = self._promised[caller] - count
            if left:
                self._promised[caller] = left
            else:
                del self._promised[caller]

    def _settle(self) -> None:
        """Gives free slots away, in turn to what waits here and to the callers that were refused."""
        while not self.closed and self.ongoing + self.promised < self.limit:
            if self._parked and (self._turn_of_parked or not self._waiting):
                self._turn_of_parked = False
                self._begin_parked()
            elif self._waiting:
                self._turn_of_parked = True
                caller = self._waiting.popleft()
                self.promised += 1
                self._promised[caller] = self._promised.get(caller, 0) + 1
                self._grant(caller)
            else:
                return

    def _begin_parked(self) -> None:
        _, call = self._parked.popleft()
        self.ongoing += 1
        self._begin(call)
