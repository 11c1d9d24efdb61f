"""The router: holds the table, admits, queues, chooses a replica, sends, and sends again what was not started.

Law: a call that is accepted here gets exactly one outcome. It waits in the queue of its deployment, never in front
of a chosen replica (late binding): whatever slot frees first takes the oldest call. The request path asks the
controller nothing; the last snapshot decides. The replica has the last word: what it refuses comes back to
its old place in the queue until the replica says *ready*.
"""

from __future__ import annotations

import asyncio
import logging
import random
import weakref
from collections import deque
from collections.abc import Callable

from skate.core.clock import Clock
from skate.core.errors import (
    BackPressureError,
    DeploymentUnavailableError,
    NotFoundError,
    NotRunningError,
    ReplicaDiedError,
    SkateError,
)
from skate.core.pace import Pace
from skate.core.specs import (
    UNKNOWN_DEPLOYMENT,
    Counts,
    DeploymentTarget,
    RequestRouterTarget,
    Route,
    Snapshot,
)
from skate.dataplane.call import KEPT_MAX, LOSSES_MAX, Call
from skate.dataplane.endings import REASON_MAX, died, instance_gone, timed_out, where_is
from skate.dataplane.ledger import Account, Ledger, Outcome
from skate.dataplane.link import AHEAD_BYTES, Link
from skate.dataplane.policy import Policy, load_policy, make_policy
from skate.dataplane.routing.admission import Outflow, may_queue, refusal, retries_of, retry_after_s
from skate.dataplane.routing.choice import two_choices
from skate.dataplane.routing.policies import built_in
from skate.dataplane.wire.connection import CALLS_MAX
from skate.dataplane.wire.frames import AHEAD, ASKS, GRANTED

logger = logging.getLogger("skate.router")

DROPPED_PER_S = 20  # lines of the log about requests that were cancelled or timed out
OVERDUE = "the time of the request is over"
EARLY_MAX = 10_000  # calls kept while the first snapshot has not come
AHEAD_MAX = 64  # calls beyond its slots that an only replica is sent: they wait there instead of a round trip away


class Lane:
    """One deployment in this router: its replicas and the calls that wait for a slot, oldest first."""

    def __init__(self, router: Router, target: DeploymentTarget) -> None:
        self.router = router
        self.target = target
        self.account = router.ledger.account(target.key)
        self.limit = min(target.max_ongoing_requests, CALLS_MAX)  # calls of this router that one replica runs
        self.room = self.limit  # calls of this router at one replica; more than it runs while there is no other
        self.links: dict[str, Link] = {}
        self.alone = False  # calls are sent ahead to the only replica that can be reached
        self.only: Link | None = None  # of one replica: that one
        self.leaving: set[Link] = set()
        self.waiting: deque[Call] = deque()
        self.queued = 0  # waiting ones that have not ended
        self.dispatching = False
        self.outflow = Outflow()  # looked at when calls are refused
        self.asked: RequestRouterTarget | None = None  # what ``policy`` is made from
        self.policy: Policy | None = None  # who chooses among several replicas; None: two random choices
        self.loading: asyncio.Task[None] | None = None  # of the policy
        self.used = False  # connections are opened from the first call on
        self.gone: SkateError | None = None  # the deployment is no longer in the snapshot: why calls cannot wait here

    # -- snapshot -------------------------------------------------------------------------------

    def update(self, target: DeploymentTarget) -> None:
        self.target = target
        if target.request_router != self.asked:
            self._ask_for_policy(target.request_router)
        left_alone = bool(self.links) and not target.replicas
        self.limit = min(target.max_ongoing_requests, CALLS_MAX)
        wanted = {replica.id: replica for replica in target.replicas}
        for id in [id for id in self.links if id not in wanted]:
            self._let_go(self.links.pop(id))
        for id, replica in wanted.items():
            if id not in self.links:
                self.links[id] = link = Link(self, replica)
                if self.used or target.max_queued_requests >= 0:  # a limit counts from the first call on
                    self.router.connect(link)
        if target.unavailable is not None and not target.replicas:
            self._fail_waiting(DeploymentUnavailableError(target.unavailable))
        self.measure_room()
        self.dispatch()
        if left_alone and self.queued:
            self.router.say_starved()

    def measure_room(self) -> None:
        """Sends ahead while one replica is all there is, and takes back what waits there when another one comes.

        That way a call never waits in front of one replica while another has a slot. Where the user limits how many may
        wait, all wait here: only here they can be counted.
        """
        self.only = next(iter(self.links.values())) if len(self.links) == 1 else None
        usable = [link for link in self.links.values() if link.peer is not None]
        before, alone = self.alone, len(usable) < 2 and self.target.max_queued_requests < 0
        self.alone = alone
        self.room = self.limit + AHEAD_MAX if alone else self.limit
        if alone:
            return
        for link in usable:
            # It may run fewer than the limit of today: any call may wait there that was sent while it was alone.
            if link.peer is not None and link.in_flight > (0 if before else self.limit):
                link.peer.recall()

    def _ask_for_policy(self, wanted: RequestRouterTarget | None) -> None:
        self.stop()
        self.asked = wanted
        kind = built_in(wanted.path) if wanted is not None else None
        if wanted is not None and kind is not None:
            self.policy = make_policy(self, wanted, kind)
        elif wanted is not None:
            self.loading = self.router.loop.create_task(self._load_policy(wanted))

    async def _load_policy(self, wanted: RequestRouterTarget) -> None:
        self.policy = await load_policy(self, wanted)
        self.loading = None
        self.dispatch()

    def stop(self) -> None:
        """Chooses by two random choices from now on."""
        if self.loading is not None:
            self.loading.cancel()
        if self.policy is not None:
            self.policy.close()
        self.policy = self.loading = None

    def _let_go(self, link: Link) -> None:
        link.leaving = True
        if link.in_flight == 0:
            link.close()
            return
        self.leaving.add(link)
        if link.peer is not None:
            link.peer.recall()

    def remove(self, error: SkateError | None = None) -> None:
        """The deployment is gone; ``error``: what those who wait are told."""
        self.stop()
        for link in self.links.values():
            self._let_go(link)
        self.links.clear()
        self.only = None
        text = f"deployment {self.target.key!r} was deleted while the call waited"
        self.gone = error or DeploymentUnavailableError(text)
        self._fail_waiting(self.gone)

    def _fail_waiting(self, error: SkateError) -> None:
        waiting, self.waiting = self.waiting, deque()
        for call in waiting:
            call.end(Outcome.REFUSED, error)

    # -- calls ----------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        call.lane = self
        if not self.used:
            self.used = True
            for known in self.links.values():
                self.router.connect(known)
        target = self.target
        if target.retry or call.retries:
            self._settle_retries(call)
        if self.queued == 0 or self.policy is not None:
            link = self._choose() if self.policy is None else self.policy.choose_first(call)
            if link is not None and link.takes(call):
                self._send(call, link)
                return
        if target.unavailable is not None and not self.links:
            call.end(Outcome.REFUSED, DeploymentUnavailableError(target.unavailable))
        elif not may_queue(self.queued, target.max_queued_requests):
            call.end(Outcome.REFUSED, self._full())
        else:
            self.queued += 1
            call.queued = True
            self.waiting.append(call)
            if self.policy is not None:
                self.policy.plan()
            if self.queued == 1 and not self.links:
                self.router.say_starved()

    def _full(self) -> BackPressureError:
        target, outcomes = self.target, self.account.outcomes
        self.outflow = self.outflow.seen(self.router.clock.now(), outcomes[Outcome.OK] + outcomes[Outcome.USER_ERROR])
        after_s = target.retry_after_s
        if after_s is None:
            after_s = retry_after_s(self.queued, self.outflow.per_s)
        text = refusal(target.key, self.queued, target.max_queued_requests)
        return BackPressureError(text, target.backpressure_status, after_s)

    def _settle_retries(self, call: Call) -> None:
        if len(call.body) > KEPT_MAX:
            call.retries = 0
        elif call.retries is None:
            call.retries = retries_of(self.target.retry, call.head.method)

    def dispatch(self) -> None:
        """Sends waiting calls, oldest first, while a replica has room."""
        if self.dispatching:  # a call that could not be sent has ended in there; the loop below goes on with the next
            return
        self.dispatching = True
        try:
            if self.policy is not None:
                self.policy.dispatch()
                return
            while self.queued:
                link = self._choose()
                if link is None or not link.takes(self._first()):
                    return
                self._send(self._next(), link)
        finally:
            self.dispatching = False

    def _choose(self) -> Link | None:
        if (only := self.only) is not None:
            return only if only.has_room() else None
        free = [link for link in self.links.values() if link.has_room()]
        if not free:
            return None
        if len(free) == 1:
            return free[0]
        chance, now = self.router.chance, self.router.loop.time()
        return free[two_choices([link.load(now) for link in free], chance(), chance())]

    def _send(self, call: Call, link: Link) -> None:
        peer = link.peer
        assert peer is not None
        granted = link.granted > 0
        how = GRANTED if granted else 0
        if self.room > self.limit and call.complete and len(call.body) <= AHEAD_BYTES:
            how |= AHEAD
        if link.probe is call or not call.complete:
            how |= ASKS
        now = self.router.clock.now()
        if call.deadline is not None and call.deadline <= now:  # its timer is late: the loop had other things to do
            if link.probe is call:
                link.probe = None
            self.router.expire(call)
            return
        call.link = link
        call.sent_at = now
        link.in_flight += 1
        self.account.placed += 1
        try:
            call.wire_id = peer.open(call, call.encoded_head(now), call.body, call.complete, how)
        except Exception as error:  # it cannot be sent, to nobody: too large, or its head holds what has no UTF-8
            call.end(Outcome.REFUSED, error)
            return
        if granted:
            link.granted -= 1
        if call.more:
            for data, last in call.more:
                peer.send(call.wire_id, data, last)
        if not call.complete:
            call.wake()

    def _take_back(self, call: Call) -> None:
        """The call is in the queue again, at the place that its arrival gives it."""
        if self.gone is not None:  # nobody looks at this queue any more; a new deployment of that name has another
            heir = self.router.lanes.get(call.deployment_key)
            if heir is None:
                call.end(Outcome.REFUSED, self.gone)
            else:
                heir.submit(call)
            return
        if self.target.unavailable is not None and not self.links:
            call.end(Outcome.REFUSED, DeploymentUnavailableError(self.target.unavailable))
            return
        passed: list[Call] = []
        while self.waiting and self.waiting[0].sequence < call.sequence:
            passed.append(self.waiting.popleft())
        self.waiting.appendleft(call)
        self.waiting.extendleft(reversed(passed))
        call.queued = True
        self.queued += 1
        if self.queued == 1 and not self.links:
            self.router.say_starved()

    # -- what becomes of calls ------------------------------------------------------------------

    def call_ended(self, call: Call) -> None:
        link = call.link
        if call.queued:
            call.queued = False
            self.queued -= 1
            if not self.queued:
                self.waiting.clear()
            elif len(self.waiting) > 2 * self.queued + 64:  # ended calls must not pile up behind one that waits
                self.waiting = deque(call for call in self.waiting if call.outcome is None)
        elif link is not None:
            self._release(call, link)
            if self.queued:
                self.dispatch()

    def _release(self, call: Call, link: Link) -> None:
        call.link = None
        link.in_flight -= 1
        self.account.placed -= 1
        if link.probe is call:
            link.probe, link.blocked = None, False
        if link.leaving and link.in_flight == 0:
            self.leaving.discard(link)
            link.close()

    def call_refused(self, call: Call, returned: bool) -> None:
        """``returned``: asked back, or its replica is ending; whether there are slots is another matter."""
        link = call.link
        assert link is not None
        self._release(call, link)
        link.blocked = link.blocked or not returned
        self._take_back(call)
        self.dispatch()

    def call_lost(self, call: Call) -> None:
        link = call.link
        assert link is not None
        self._release(call, link)
        if call.started and not call.may_be_repeated:
            call.end(Outcome.LOST, died(call, link.target.id))
            return
        call.losses += 1
        if call.losses >= LOSSES_MAX:
            text = f"request {call.request_id} to {self.target.key!r} lost {call.losses} replicas before it started"
            call.end(Outcome.LOST, ReplicaDiedError(text + "; its replicas keep dying"))
            return
        if call.started:
            call.started = False
            call.retries = (call.retries or 0) - 1
            call.gather()
        self.account.retried += 1
        self._take_back(call)
        self.dispatch()

    def ready(self, link: Link, count: int) -> None:
        """A replica that had refused promises ``count`` slots.

        Beyond those one call asks for more, and the others wait for what becomes of it: if all went, most would be
        refused and come back, once for every slot that frees.
        """
        link.granted += count
        self.dispatch()
        if link.granted and link.peer is not None:
            link.peer.release(link.granted)
            link.granted = 0
        if link.probe is not None:
            return
        link.blocked = False
        if self.queued and link.has_room():
            link.probe = self._next() if self.policy is None else self.policy.next_for(link)
            if link.probe is not None:
                self._send(link.probe, link)
                link.blocked = link.probe is not None

    def call_started(self, call: Call) -> None:
        """The replica has accepted a call that asked for more than was promised."""
        link = call.link
        if link is not None and link.probe is call:
            link.probe, link.blocked = None, False
            self.dispatch()

    def _first(self) -> Call:
        """The oldest call that waits; there is one."""
        while (call := self.waiting[0]).outcome is not None:
            self.waiting.popleft()
        return call

    def _next(self) -> Call:
        """The same, taken from the queue."""
        call = self._first()
        self.waiting.popleft()
        call.queued = False
        self.queued -= 1
        return call


class Router:
    """The calls of one process, on one loop."""

    def __init__(self, name: str, clock: Clock, chance: Callable[[], float] = random.random, node: str = "") -> None:
        self.name = name
        self.node = node  # the machine it runs on
        self.clock = clock
        self.chance = chance
        self.loop = asyncio.get_running_loop()
        self.ledger = Ledger()
        self.lanes: dict[str, Lane] = {}
        self.routes: tuple[Route, ...] = ()
        self.generation = 0
        self.on_routes: Callable[[tuple[Route, ...]], None] | None = None
        self.on_activity: Callable[[], None] | None = None  # told at most once until ``activity_seen``
        self.on_starved: Callable[[], None] | None = None  # told when a call begins to wait where no replica is
        self.known = asyncio.Event()  # a snapshot has arrived
        self.ended = False  # the instance is gone; until a snapshot comes, from a new one
        self.closed = False
        self._links: weakref.WeakSet[Link] = weakref.WeakSet()  # all, also those of deployments that are gone
        self._sequence = 0
        self._quiet = True
        self._dropped = Pace(DROPPED_PER_S)
        self._early: list[Call] = []  # calls that came before the first snapshot

    # -- snapshots ------------------------------------------------------------------------------

    def apply(self, snapshot: Snapshot) -> None:
        """Takes a snapshot; the last one wins."""
        if self.closed:
            return
        self.generation = snapshot.generation
        self.ended = False
        if snapshot.whole:
            for key in [key for key in self.lanes if key not in snapshot.deployments]:
                self.lanes.pop(key).remove()
        for key, target in snapshot.deployments.items():
            if target is None:
                lane = self.lanes.pop(key, None)
                if lane is not None:
                    lane.remove()
            elif key in self.lanes:
                self.lanes[key].update(target)
            else:
                self.lanes[key] = lane = Lane(self, target)
                lane.update(target)
        if snapshot.routes is not None and snapshot.routes != self.routes:
            self.routes = snapshot.routes
            if self.on_routes is not None:
                self.on_routes(self.routes)
        self.known.set()
        early, self._early = self._early, []
        for call in early:
            if call.outcome is None:
                self._place(call)

    def instance_ended(self) -> None:
        """The instance is gone, not only its controller: what waits and what comes fails."""
        self.ended = True
        for lane in self.lanes.values():
            lane.remove(instance_gone())
        self.lanes.clear()
        early, self._early = self._early, []
        for call in early:
            call.end(Outcome.REFUSED, instance_gone())

    # -- calls ----------------------------------------------------------------------------------

    def submit(self, call: Call, body: bytes, complete: bool = True) -> None:
        """Accepts a call. It ends exactly once from here on, possibly before this returns."""
        now = self.clock.now()
        self._sequence += 1
        call.sequence = self._sequence
        call.accepted_at = now
        call.body = body
        call.complete = complete
        lane = self.lanes.get(call.deployment_key)
        call.account = account = self._account(call.deployment_key) if lane is None else lane.account
        account.accepted += 1
        if self._quiet and self.on_activity is not None:
            self._quiet = False
            self.on_activity()
        call.router = self
        context = call.context
        if context is not None:
            if context.cancel_reason is not None:
                reason = f"the request it belongs to was cancelled before it was made: {context.cancel_reason}"
                call.cancel(reason, context.cancel_cause or "cancelled")
                return
            context.children.add(call)
        if call.deadline is not None:
            if call.deadline <= now:
                self.expire(call)
                return
            call.timer = self.loop.call_later(call.deadline - now, self.expire, call)
        if lane is not None:
            lane.submit(call)
        else:
            self._place(call)

    def _account(self, key: str) -> Account:
        """Where calls are counted for which there is no lane: as unknown, once it is known what there is."""
        return self.ledger.account(UNKNOWN_DEPLOYMENT if self.known.is_set() else key)

    def _place(self, call: Call) -> None:
        """What becomes of a call for which there is no lane yet."""
        lane = self.lanes.get(call.deployment_key)
        if len(self._early) >= EARLY_MAX:
            self._early = [early for early in self._early if early.outcome is None]
        if lane is not None:
            lane.submit(call)
        elif self.closed:
            call.end(Outcome.REFUSED, NotRunningError("this process has let go of its Skate instance"))
        elif self.ended:
            call.end(Outcome.REFUSED, instance_gone())
        elif not self.known.is_set() and len(self._early) < EARLY_MAX:
            self._early.append(call)
        else:
            known = ", ".join(sorted(self.lanes)) or "none"
            error = NotFoundError(f"there is no deployment {call.deployment_key!r}; running are: {known}")
            call.end(Outcome.REFUSED, error)

    def expire(self, call: Call) -> None:
        """The deadline of a call has passed."""
        if call.outcome is None:
            error = timed_out(call, self.clock.now())
            call.drop(Outcome.TIMED_OUT, error, OVERDUE, "timed_out")

    def count(self, call: Call) -> None:
        """Books the outcome of a call (called once for each, by the call)."""
        assert call.outcome is not None and call.account is not None
        call.ended_at = self.clock.now()
        call.account.outcomes[call.outcome] += 1
        if self._quiet and self.on_activity is not None:
            self._quiet = False
            self.on_activity()

    def say_dropped(self, call: Call, reason: str) -> None:
        """One line for a request that was given up and belongs to no other; not more of them than can be read."""
        now = self.clock.now()
        skipped = self._dropped.allow(now)
        if skipped is not None:
            more = f" ({skipped} more were given up and not named)" if skipped else ""
            after_s = max(0.0, now - call.accepted_at)
            why = f"{reason[:REASON_MAX]}{more}"
            text = "request %s to %s given up after %.3g s while %s: %s"
            logger.info(text, call.request_id, call.deployment_key, after_s, where_is(call), why)

    def say_starved(self) -> None:
        """A call waits where no replica is: whoever starts replicas shall know at once."""
        if self.on_starved is not None:
            self.on_starved()

    def activity_seen(self) -> None:
        """The counts were read; ``on_activity`` comes again with the next change."""
        self._quiet = True

    # -- connections ----------------------------------------------------------------------------

    def connect(self, link: Link) -> None:
        """Opens the connection to a replica in the background, again and again while the snapshot names it."""
        if link.task is None and link.peer is None and not link.leaving:
            self._links.add(link)
            link.task = self.loop.create_task(link.connect())

    def counts(self) -> Counts:
        """The counts of every deployment that ever had a call. What replicas have begun is looked up for it, call by
        call: most of them say so by their marks only, and nothing is counted for it on a call's way.
        """
        for account in self.ledger.accounts.values():
            account.started = 0
        for link in self._links:
            peer = link.peer
            if peer is None or not link.in_flight:
                continue
            for id, sink in tuple(peer.sinks.items()):
                if isinstance(sink, Call):
                    # Only looked at: the mark may cover a call whose refusal is on its way, which must keep its body.
                    link.lane.account.started += sink.started or peer.has_started(id)
        return self.ledger.reports()

    async def close(self) -> None:
        """Cancels what is under way and closes all connections; what comes later is refused."""
        self.closed = True
        calls = [*self._early, *(call for lane in self.lanes.values() for call in lane.waiting)]
        for link in list(self._links):
            link.leaving = True
            if link.peer is not None:
                calls += [sink for sink in link.peer.sinks.values() if isinstance(sink, Call)]
        for call in calls:
            call.cancel("the process that made the call ends", "caller_lost")
        for link in list(self._links):
            link.close()
        for lane in self.lanes.values():
            lane.stop()
        self._early.clear()
        self.lanes.clear()
