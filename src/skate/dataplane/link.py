"""A link: one replica as a router sees it. Law: it knows what is in flight and whether more may go; others decide.

Its connection is opened from the first call of its deployment on and opened again, slower and slower, when it is lost.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from skate.core.specs import ReplicaTarget
from skate.dataplane.transport.peers import Peer, connect

if TYPE_CHECKING:
    from skate.dataplane.call import Call
    from skate.dataplane.router import Lane

logger = logging.getLogger("skate.router")

STEADY_S = 1.0  # a connection that lived this long is opened again at once when it is lost
CONNECT_BACKOFF_S = (0.02, 0.05, 0.1, 0.2, 0.5)  # between attempts to reach a replica that the snapshot names
LOAD_FRESH_S = 0.1  # after this silence what a replica said of its load (mostly other routers' calls) is forgotten
AHEAD_BYTES = 64 * 1024  # of a call that may wait at the replica


class Link:
    """One replica as this router sees it: the connection, what is in flight, and whether it may get more."""

    __slots__ = (
        "__weakref__",
        "blocked",
        "failures",
        "granted",
        "in_flight",
        "lane",
        "leaving",
        "peer",
        "probe",
        "since",
        "target",
        "task",
    )

    def __init__(self, lane: Lane, target: ReplicaTarget) -> None:
        self.lane = lane
        self.target = target
        self.peer: Peer | None = None
        self.task: asyncio.Task[None] | None = None  # connecting
        self.failures = 0  # attempts to connect that failed or did not last
        self.since = 0.0  # when the connection was opened
        self.in_flight = 0
        self.blocked = False  # it refused; it will say when it is ready
        self.granted = 0  # slots it promised us
        self.probe: Call | None = None  # sent while blocked, to learn whether there are more slots than those promised
        self.leaving = False  # no longer in the snapshot: finish what is in flight, then close

    def has_room(self) -> bool:
        return (
            self.peer is not None
            and not self.leaving
            and (self.granted > 0 or (not self.blocked and self.in_flight < self.lane.room))
        )

    def takes(self, call: Call) -> bool:
        """Whether this call may go to a replica that has room: one that would have to wait there must be small."""
        return self.in_flight < self.lane.limit or self.granted > 0 or (call.complete and len(call.body) <= AHEAD_BYTES)

    def load(self, now: float) -> int:
        """Calls in hand there: what it last said, as long as that is fresh, and at least our own."""
        peer = self.peer
        if peer is None or peer.load < self.in_flight or now - peer.heard_at > LOAD_FRESH_S:
            return self.in_flight
        return peer.load

    async def connect(self) -> None:
        """Opens the connection, again and again while the snapshot names the replica."""
        router = self.lane.router
        while not self.leaving:
            if self.failures:
                await router.clock.sleep(CONNECT_BACKOFF_S[min(self.failures, len(CONNECT_BACKOFF_S)) - 1])
            try:
                peer = await connect(self.target.address, router.name)
            except Exception as error:
                logger.debug("replica %s cannot be reached yet: %s", self.target.id, error)
                self.failures += 1
                continue
            self.since = router.clock.now()
            peer.on_ready = lambda count: self.lane.ready(self, count)
            peer.on_lost = lambda _: self._lost()
            self.peer = peer
            self.task = None
            if self.leaving or peer.closed:
                self._lost()
                peer.close()
                return
            self.lane.measure_room()
            self.lane.dispatch()
            return
        self.task = None

    def _lost(self) -> None:
        lane, router = self.lane, self.lane.router
        # A replica that answers and hangs up must not be called in a busy loop.
        self.failures = self.failures + 1 if router.clock.now() - self.since < STEADY_S else 0
        self.peer = None
        self.blocked = False
        self.granted = 0
        self.probe = None
        if not self.leaving and lane.links.get(self.target.id) is self:
            router.connect(self)
        lane.measure_room()
        lane.dispatch()

    def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
        if self.peer is not None:
            self.peer.close()
