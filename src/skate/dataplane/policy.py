"""A deployment's own chooser of replicas in this process: found, asked, and never trusted.

Law: no call is lost by it. A class that cannot be loaded, that raises or answers nonsense, is said in one line of the
log and two random choices decide. The user's modules are imported on a thread: the router goes on meanwhile. Calls
that the chooser lets wait keep their place in the lane's queue; those behind them are asked for, too.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any

from skate.authoring.code import resolve_within
from skate.core.specs import RequestRouterTarget
from skate.dataplane.routing.choice import two_choices
from skate.dataplane.routing.policies import CallView, Candidate, PowerOfTwo, RequestRouter
from skate.dataplane.wire.head import HTTP, WEBSOCKET, decode_http

if TYPE_CHECKING:
    from skate.dataplane.call import Call
    from skate.dataplane.link import Link
    from skate.dataplane.router import Lane

logger = logging.getLogger("skate.router")

PASSED_MAX = 100  # calls that are passed over, because their chooser lets them wait, in looking for one that may go
PATIENCE_MIN_S = 0.01  # between two looks at calls that have waited long enough


class Policy:
    """The chooser of a lane, and what becomes of its answers."""

    def __init__(self, lane: Lane, chooser: Any) -> None:
        self.lane = lane
        self.chooser = chooser
        self.patience_s = _patience_of(chooser)
        self._timer: asyncio.TimerHandle | None = None
        self._complained = False

    # -- one call -------------------------------------------------------------------------------

    def choose_first(self, call: Call) -> Link | None:
        """The same for a call that has just come; those that wait already were asked for when there was last room."""
        return self.choose(call) if self.lane.queued < PASSED_MAX else None

    def choose(self, call: Call) -> Link | None:
        """The replica that gets this call now; None: it waits."""
        links = self.lane.links.values()
        free = [link for link in links if link.has_room() and link.takes(call)]
        if not free or len(links) == 1:
            return free[0] if free else None
        router = self.lane.router
        now = router.loop.time()
        candidates = [
            Candidate(link.target.id, link.target.node, link.load(now), link.in_flight, self.lane.limit, link in free)
            for link in links
        ]
        try:
            chosen = self.chooser.choose(_view(call), candidates)
            link = None if chosen is None else self.lane.links[chosen.id]
        except BaseException as error:  # nothing is awaited here: whatever it is, it is the user's
            self._complain(error)
        else:
            if link is not None and link in free:
                return link
            if router.clock.now() - call.accepted_at < self.patience_s:
                return None
        return free[two_choices([link.load(now) for link in free], router.chance(), router.chance())]

    def _complain(self, error: BaseException) -> None:
        if not self._complained:
            self._complained = True
            text = (
                "the request router %s of %s raised %s or chose what is no candidate; two random choices decide instead"
            )
            name = type(self.chooser).__name__
            logger.warning(text, name, self.lane.target.key, type(error).__name__, exc_info=error)

    # -- the queue ------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Sends those waiting calls that the chooser gives to a replica, oldest first."""
        lane = self.lane
        passed: list[Call] = []
        while lane.queued and len(passed) < PASSED_MAX and self._has_room_for(lane._first()):
            call = lane._next()
            link = self.choose(call)
            if link is None:
                passed.append(call)
            else:
                lane._send(call, link)
        self._put_back(passed)

    def next_for(self, link: Link) -> Call | None:
        """The oldest waiting call that the chooser gives to this replica, taken from the queue."""
        lane = self.lane
        passed: list[Call] = []
        found: Call | None = None
        while lane.queued and found is None and len(passed) < PASSED_MAX:
            call = lane._next()
            if self.choose(call) is link:
                found = call
            else:
                passed.append(call)
        self._put_back(passed)
        return found

    def _put_back(self, passed: list[Call]) -> None:
        waiting = [call for call in passed if call.outcome is None]
        for call in waiting:
            call.queued = True
        self.lane.waiting.extendleft(reversed(waiting))
        self.lane.queued += len(waiting)
        self.plan()

    def _has_room_for(self, call: Call) -> bool:
        return any(link.has_room() and link.takes(call) for link in self.lane.links.values())

    # -- patience -------------------------------------------------------------------------------

    def plan(self) -> None:
        """Looks again when the oldest call has waited long enough, if others than the one it waits for are free."""
        lane = self.lane
        if self._timer is None and lane.queued and self.patience_s < math.inf and self._has_room_for(lane._first()):
            left_s = lane._first().accepted_at + self.patience_s - lane.router.clock.now()
            self._timer = lane.router.loop.call_later(max(PATIENCE_MIN_S, left_s), self._look)

    def _look(self) -> None:
        self._timer = None
        self.lane.dispatch()

    def close(self) -> None:
        """It is asked no more."""
        if self._timer is not None:
            self._timer.cancel()


def _view(call: Call) -> CallView:
    head = call.head
    app, _, deployment = call.deployment_key.partition("/")
    headers = decode_http(head.http).headers if head.kind == HTTP or head.kind == WEBSOCKET else ()
    return CallView(head.request_id, app, deployment, head.method, call.routing_key, headers)


def _patience_of(chooser: Any) -> float:
    try:
        return max(0.0, float(chooser.patience_s))
    except (AttributeError, TypeError, ValueError):
        return RequestRouter.patience_s


async def load_policy(lane: Lane, wanted: RequestRouterTarget) -> Policy | None:
    """The policy that a deployment names, where it is the user's own; None where it cannot be had."""
    try:
        found = await asyncio.get_running_loop().run_in_executor(None, _imported, wanted)
    except Exception as error:
        _unusable(lane, wanted, error)
        return None
    return make_policy(lane, wanted, found)


def make_policy(lane: Lane, wanted: RequestRouterTarget, kind: Any) -> Policy | None:
    """The policy of this class; None where two random choices do, or where it cannot be made."""
    if kind is PowerOfTwo:
        return None
    try:
        chooser = kind(**wanted.kwargs)
        if not callable(chooser.choose):
            raise TypeError("its 'choose' is no method")
        if isinstance(chooser, RequestRouter):
            chooser.node, chooser.chance = lane.router.node, lane.router.chance
    except BaseException as error:  # a SystemExit of the user's would end this whole process
        _unusable(lane, wanted, error)
        return None
    return Policy(lane, chooser)


def _unusable(lane: Lane, wanted: RequestRouterTarget, error: BaseException) -> None:
    text = "the request router %s of %s cannot be used: %s; two random choices decide instead"
    logger.warning(text, wanted.path, lane.target.key, error)


def _imported(wanted: RequestRouterTarget) -> Any:
    """The class, imported with the application's search path in front of this process's own."""
    return resolve_within(wanted.path, [*wanted.sys_path, *([wanted.cwd] if wanted.cwd is not None else [])])
