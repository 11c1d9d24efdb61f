"""The segments that this process lends: few, warm, within a budget.

Law: a pool never waits and never raises; when it has nothing to lend it says so, and the value goes through the
socket. What nobody uses is given back, so that memory follows the load. The first touch of a page costs about ten
times a copy to a page that is there: therefore segments are kept, in sizes of powers of two (a page that was never
touched costs nothing).

``tend`` is to be called every ``TEND_S`` seconds with the time on any one clock.
"""

from __future__ import annotations

import math
import os
import resource
import threading

from skate.core.clock import Clock
from skate.dataplane.shared.segment import AVAILABLE, AWAITED, FREE, HEAD_SIZE, HELD, KEPT, Hold, Segment
from skate.dataplane.wire.parts import Extent

BUDGET = 1 << 30  # bytes that the segments of one process may take
LENT_MAX = 256  # segments of one process, if it may open as many files as that needs
FILES_SHARE = 8  # a process uses at most this part of the files it may open; a segment of ours takes two
SIZE_MIN = 1 << 17  # bytes of the smallest segment
PROBES = 4  # segments of a size looked at on either end of the list before another one is made
TEND_S = 5.0  # between two looks at what may be given back
KEEP = 64 << 20  # bytes that stay ready while they were used in the last KEEP_S
IDLE_S = 10.0  # after this, what is free beyond KEEP is given back
KEEP_S = 60.0  # after this all of it is
DISOWN_S = 10.0  # what a receiver keeps longer than this is the receiver's, and no longer counted here
LOOK_S = 0.01  # between two looks at whether all has been fetched
AWAITED_S = 300.0  # what was sent and not fetched for so long is given up: who comes later finds nothing


def files_max(share: int = FILES_SHARE) -> int:
    """How many files may be open for shared memory, given how many this process may open at all."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft // share


class Pool:
    """All segments of one process; any thread may ask for one."""

    def __init__(self, budget: int = BUDGET, lent_max: int = LENT_MAX) -> None:
        self.budget = budget
        self._lent_max = lent_max
        self._begin()

    def forget(self) -> None:
        """Begins anew, in a child that was forked: what is lent is its parent's."""
        for segment in self._all():
            segment.close()
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._sizes: dict[int, list[Segment]] = {}  # by size, the one that was lent last at the end
        self._spent = 0  # bytes of all segments
        self._probe: Segment | None = None
        self._generation = int.from_bytes(os.urandom(8)) >> 1  # none is met again in another process by chance
        self._count_max = min(self._lent_max, files_max() // 2) if AVAILABLE else 0

    def lend(self, size: int) -> tuple[Segment, Hold] | None:
        """A segment with room for ``size`` bytes behind its head, to be written by the caller; None: there is none."""
        wanted = max(SIZE_MIN, 1 << (size + HEAD_SIZE - 1).bit_length())
        if not self._count_max or size + HEAD_SIZE > self.budget:
            return None
        with self._lock:
            cost = size + HEAD_SIZE
            taken = self._take(wanted) or self._make(wanted, cost) or self._take_larger(wanted)
            if taken is not None and taken[0].cost < cost:
                self._spent += cost - taken[0].cost
                taken[0].cost = cost
            return taken

    def _next_generation(self) -> int:
        self._generation = (self._generation + 1) & ((1 << 63) - 1)
        return self._generation

    def _take(self, size: int) -> tuple[Segment, Hold] | None:
        lent = self._sizes.get(size)
        if not lent:
            return None
        last = len(lent) - 1
        # The last ones are warm, but their receivers may have them still; the first ones were lent long ago.
        places = range(last, -1, -1) if last < 2 * PROBES else (*range(last, last - PROBES, -1), *range(PROBES))
        for place in places:
            hold = lent[place].take(self._next_generation())
            if hold is not None:
                segment = lent.pop(place)
                lent.append(segment)
                return segment, hold
        return None

    def _take_larger(self, size: int) -> tuple[Segment, Hold] | None:
        return next((taken for other in sorted(self._sizes) if other > size and (taken := self._take(other))), None)

    def _make(self, size: int, cost: int) -> tuple[Segment, Hold] | None:
        if not self._has_room(cost):
            self._give_back(cost)
            if not self._has_room(cost):
                return None
        try:
            segment = Segment(size, self._next_generation())
        except OSError:  # no file, no memory, not allowed: there is another way
            return None
        self._sizes.setdefault(size, []).append(segment)
        return segment, segment.hold()

    def _has_room(self, cost: int) -> bool:
        return self._spent + cost <= self.budget and self._count() < self._count_max

    def _count(self) -> int:
        return sum(map(len, self._sizes.values()))

    def _give_back(self, cost: int) -> None:
        """Closes free segments of other sizes, until there is room for ``cost`` bytes."""
        for segment in self._all():
            if segment.state() == FREE:
                self._drop(segment)
                if self._has_room(cost):
                    return

    def _all(self) -> list[Segment]:
        return [segment for lent in self._sizes.values() for segment in lent]

    def _drop(self, segment: Segment) -> None:
        self._sizes[segment.size].remove(segment)
        self._spent -= segment.cost
        segment.close()

    @property
    def spent(self) -> int:
        """Bytes that the segments take."""
        return self._spent

    def awaited(self) -> int:
        """How many segments were sent and have not been fetched yet."""
        with self._lock:
            return sum(segment.state() == AWAITED for segment in self._all())

    def probe(self) -> Extent | None:
        """A segment without content that others may try to open; None where there is no shared memory."""
        if not self._count_max:
            return None
        with self._lock:
            if self._probe is None:
                try:
                    self._probe = Segment(HEAD_SIZE, self._next_generation())
                except OSError:
                    return None
            return self._probe.extent

    def tend(self, now: float) -> None:
        """Gives back what nobody has used for a while, and what others have kept for a while."""
        with self._lock:
            ready = 0
            for segment in self._all():
                state = segment.state()
                if segment.seen is None or segment.seen[0] != state:
                    segment.seen = state, now
                ready += segment.cost if state == FREE else 0
                patience_s = _PATIENCE_S[state]
                if state == FREE and ready <= KEEP:
                    patience_s = KEEP_S
                if now - segment.seen[1] >= patience_s:
                    self._drop(segment)


_PATIENCE_S = {FREE: IDLE_S, KEPT: DISOWN_S, AWAITED: AWAITED_S, HELD: math.inf}

pool = Pool()
os.register_at_fork(after_in_child=pool.forget)


async def tend(clock: Clock) -> None:
    """Tends the pool of this process for ever."""
    while True:
        await clock.sleep(TEND_S)
        pool.tend(clock.now())


async def fetched(clock: Clock, limit_s: float) -> None:
    """Waits until all that was sent has been fetched, at most ``limit_s``: what a process lends goes when it ends."""
    end = clock.now() + limit_s
    while pool.awaited() and clock.now() < end:
        await clock.sleep(LOOK_S)
