"""Who chooses the replica of a call: the interface for users, and the choosers that there are. Pure.

Law: a chooser sees values and answers with one of them; it sends nothing, waits for nothing, asks no clock and no dice
but those it is given. Calls wait in the router, oldest first: whenever a slot may be free the chooser is asked, call
by call, and a call for which it says None stays where it is while those behind it are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from skate.dataplane.routing.choice import two_choices
from skate.dataplane.routing.ring import Ring

PATIENCE_S = 1.0  # how long a call may wait for the replica that a chooser wants for it while others are free
KEY_HEADER = "x-routing-key"


class CallView(NamedTuple):
    """A call as a chooser sees it. ``method`` is ``__call__`` for HTTP; ``routing_key`` that of ``handle.options``."""

    request_id: str
    app: str
    deployment: str
    method: str
    routing_key: str | None = None
    raw_headers: Sequence[tuple[bytes, bytes]] = ()

    def header(self, name: str) -> str | None:
        """The value of a header of the HTTP request (any case; the first of several), None where there is none."""
        wanted = name.lower().encode("latin-1", "replace")
        return next((value.decode("latin-1") for key, value in self.raw_headers if key.lower() == wanted), None)


class Candidate(NamedTuple):
    """A replica as a chooser sees it.

    ``load``: calls it has in hand, as it last said, and at least ``in_flight``, those of this router. ``limit``: calls
    it takes at once. ``has_room``: it may be chosen now.
    """

    id: str
    node: str
    load: int
    in_flight: int
    limit: int
    has_room: bool


def _middle() -> float:
    return 0.5


class RequestRouter:
    """What a chooser of your own is derived from: write ``choose``, and ``__init__`` for its keyword arguments.

    One object lives in each process that sends calls, for each deployment; it may keep what it likes in attributes.
    ``choose`` runs in the loop of that process: it must be quick (microseconds) and must not wait. ``node`` is where
    that process runs, ``chance`` a source of random numbers, 0 <= x < 1. Should ``choose`` raise, two random choices
    decide instead.
    """

    patience_s: float = PATIENCE_S  # seconds after which a call that was told to wait takes any replica that is free
    node: str = ""
    chance: Callable[[], float] = staticmethod(_middle)

    def choose(self, call: CallView, candidates: Sequence[Candidate]) -> Candidate | None:
        """One of the candidates that has room, or None: the call shall wait. There are two candidates at least."""
        raise NotImplementedError

    def less_loaded(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """The less loaded of two random ones with room; None when there is none."""
        free = [candidate for candidate in candidates if candidate.has_room]
        if not free:
            return None
        return free[two_choices([one.load for one in free], self.chance(), self.chance())]


class PowerOfTwo(RequestRouter):
    """Of two random replicas with room the less loaded one. What is used where nothing is said."""

    def choose(self, call: CallView, candidates: Sequence[Candidate]) -> Candidate | None:
        return self.less_loaded(candidates)


class SameNode(RequestRouter):
    """Two random choices among the replicas on the caller's machine; among all when none of those has room."""

    def choose(self, call: CallView, candidates: Sequence[Candidate]) -> Candidate | None:
        near = [candidate for candidate in candidates if candidate.node == self.node]
        return self.less_loaded(near) or self.less_loaded(candidates)


class RoundRobin(RequestRouter):
    """One after the other; who has no room is passed over."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, call: CallView, candidates: Sequence[Candidate]) -> Candidate | None:
        count = len(candidates)
        for step in range(count):
            at = (self._next + step) % count
            if candidates[at].has_room:
                self._next = at + 1
                return candidates[at]
        return None


class ConsistentHash(RequestRouter):
    """Calls with the same key go to the same replica, as long as that one is not much busier than the others.

    The key is ``handle.options(routing_key=)``, else the request's header ``header``; calls without a key go by two
    random choices. ``virtual_nodes``: points of each replica on the ring; more spread keys better and cost memory.
    ``load_factor``: a replica takes its keys until it has half of its ``max_ongoing_requests`` in hand, and beyond that
    while it has at most so many times the average in hand; what is more goes to the next one on the ring that has
    less, or to the next one with room, so that a hot key cannot drown a replica while others are free, and no call
    waits while any replica has room (Mirrokni et al., "Consistent Hashing with Bounded Loads", 2016).

    When a replica comes or goes only about 1/n of the keys move.
    """

    def __init__(self, header: str = KEY_HEADER, virtual_nodes: int = 100, load_factor: float = 1.25) -> None:
        if not isinstance(header, str) or not header:
            raise ValueError(f"header must be the name of a header, not {header!r}")
        if not 1 <= virtual_nodes <= 10_000:
            raise ValueError(f"virtual_nodes must be from 1 to 10000, not {virtual_nodes!r}")
        if not load_factor >= 1:
            raise ValueError(f"load_factor must be 1 or more, not {load_factor!r}")
        self.header = header
        self.virtual_nodes = virtual_nodes
        self.load_factor = load_factor
        self._ring = Ring((), virtual_nodes)

    def choose(self, call: CallView, candidates: Sequence[Candidate]) -> Candidate | None:
        key = call.routing_key if call.routing_key is not None else call.header(self.header)
        if key is None:
            return self.less_loaded(candidates)
        by_id = {candidate.id: candidate for candidate in candidates}
        if self._ring.members != tuple(by_id):
            self._ring = Ring(tuple(by_id), self.virtual_nodes)
        fair = math.ceil(self.load_factor * (sum(one.load for one in candidates) + 1) / len(candidates))
        second: Candidate | None = None
        for id in self._ring.walk(key):
            candidate = by_id[id]
            if not candidate.has_room:
                continue
            if candidate.load < max(fair, candidate.limit // 2):
                return candidate
            second = second or candidate
        return second


BUILT_IN: dict[str, type[RequestRouter]] = {
    kind.__name__: kind for kind in (PowerOfTwo, SameNode, RoundRobin, ConsistentHash)
}
HOMES = ("skate.routers", __name__)  # modules under which they are known


def built_in(path: str) -> type[RequestRouter] | None:
    """The chooser of ours that an import path leads to; None for the user's own."""
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    return BUILT_IN.get(name) if module in HOMES else None
