"""Several routers and several replicas under random events: what must hold at every moment, and what when all is quiet.

One seed is one story of random submits, cancellations, deadlines, answers, failures, code that cannot be interrupted,
deaths, births, drains, other limits, broken connections and snapshots, over connections of memory that deliver
at random speed. Every story ends in quiet: nobody does anything any more but answer. A failing story names its seed;
``asyncio.run(play(seed))`` repeats it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from skate.controlplane.decide.ledger import balances, total
from skate.core.clock import ManualClock
from skate.core.specs import DeploymentTarget, LedgerReport, ReplicaTarget, RequestRouterTarget, Snapshot
from skate.dataplane.call import Call
from skate.dataplane.ledger import Outcome
from skate.dataplane.replica.slots import PARKED, REFUSED, Slots
from skate.dataplane.router import Router
from skate.dataplane.routing.policies import BUILT_IN, CallView, Candidate, RequestRouter
from skate.dataplane.transport import memory
from skate.dataplane.transport.exchange import Exchange, Session
from skate.dataplane.transport.peers import Listener, listen
from skate.dataplane.wire.head import PYTHON, CallHead

SEEDS = 300
EVENTS = 100
QUIET_TURNS = 5000  # of the loop, within which everything that is under way must have arrived
KEYS = ("app/A", "app/B")


class Uneven(memory.MemoryTransport):
    """Delivers in order, but each portion some turns of the loop later than it was written."""

    chance: ClassVar[random.Random] = random.Random()

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__(loop, protocol)
        self._pipe: deque[bytes | None] = deque()

    def write(self, data: Any) -> None:
        if not self._closing:
            self._put(bytes(data))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._protocol.connection_lost, None)
            self._put(None)

    def _put(self, data: bytes | None) -> None:
        self._pipe.append(data)
        if len(self._pipe) == 1:
            self._later(self.chance.choice((0, 0, 1, 3, 8)))

    def _later(self, turns: int) -> None:
        if turns:
            self._loop.call_soon(self._later, turns - 1)
        else:
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        data, other = self._pipe[0], self._other
        assert other is not None
        if data is None:
            other.close()
        else:
            other.deliver(data)
        self._pipe.popleft()
        if self._pipe:
            self._later(self.chance.choice((0, 0, 1, 3, 8)))


class Wild(RequestRouter):
    """Does everything that a chooser must not do, now and then; what it says must be so does not wait."""

    patience_s = 0.0
    wild: ClassVar[random.Random] = random.Random()

    def choose(self, call: CallView, candidates: Sequence[Candidate]) -> Candidate | None:
        what = self.wild.random()
        if what < 0.1:
            raise ValueError("wild")
        return None if what < 0.2 else "nobody" if what < 0.3 else self.wild.choice(candidates)  # type: ignore[return-value]


class Told(Call):
    """A call that notes what became of it, and checks that it ends once."""

    def __init__(self, world: World, key: str, id: str, deadline: float | None) -> None:
        super().__init__(key, CallHead(PYTHON, "m", id), deadline)
        self.world = world
        self.ends = 0
        self.executions = 0
        self.losses_seen = 0
        self.straight = True  # never refused, never lost
        self.chunked = False  # a part of its answer has come
        self.again = 0  # times that it was started and sent again

    def on_end(self, error: BaseException | None) -> None:
        self.ends += 1
        assert (error is None) == (self.outcome is Outcome.OK)

    def wire_lost(self, error: Exception | None) -> None:
        self.straight = False
        self.losses_seen += 1
        self.again += self.started and bool(self.retries) and not self.chunked
        super().wire_lost(error)

    def wire_chunk(self, body: bytes, headed: bool, last: bool) -> None:
        self.chunked = True
        super().wire_chunk(body, headed, last)
        assert self.outcome is not None or (not self.retries and not self.body)

    def wire_refused(self, returned: bool) -> None:
        self.straight = False
        super().wire_refused(returned)


class Replica:
    """What a worker is to routers: slots, and the calls that hold them until their code has ended."""

    def __init__(self, world: World, key: str, id: str, limit: int) -> None:
        self.world, self.key, self.id, self.limit = world, key, id, limit
        self.slots: Slots[Exchange] = Slots(limit, lambda session: session.grant(1), self.begin)  # type: ignore[attr-defined]
        self.works: list[Exchange] = []
        self.began: dict[Session, list[str]] = {}
        self.listener: Listener | None = None

    @property
    def address(self) -> str:
        return f"memory:model-{self.id}"

    async def start(self) -> None:
        self.listener = await listen(self.address, self.accept, self.id)
        listening = self.listener.listening
        listening.load = lambda: self.slots.load
        listening.on_release = self.slots.release
        listening.on_recall = self.give_back
        listening.on_session_lost = self.slots.forget

    def accept(self, exchange: Exchange) -> None:
        verdict = self.slots.offer(exchange.session, exchange, exchange.granted, exchange.ahead)
        self.world.parked += verdict == PARKED
        if verdict == REFUSED:
            exchange.refuse()
        elif verdict == PARKED and exchange not in self.works:
            exchange.on_cancel = lambda *why: self.slots.withdraw(exchange)

    def give_back(self, session: Session) -> None:
        for exchange in self.slots.give_back(session):
            self.world.recalled += 1
            exchange.refuse(returned=True)

    def drain(self) -> None:
        for exchange in self.slots.close():
            exchange.refuse(returned=True)

    def resize(self, limit: int) -> None:
        self.limit = limit
        self.slots.resize(limit)

    def begin(self, exchange: Exchange) -> None:
        exchange.begin()
        self.works.append(exchange)
        assert len(self.works) <= self.limit, f"{self.id} runs more than {self.limit}"
        self.began.setdefault(exchange.session, []).append(exchange.head.request_id)
        self.world.calls[exchange.head.request_id].executions += 1
        exchange.on_cancel = lambda reason, cause: self.cancelled(exchange)

    def cancelled(self, exchange: Exchange) -> None:
        if self.world.chance.random() < 0.6:  # the rest cannot be interrupted and keeps its slot
            self.finish(exchange)

    def answer(self, exchange: Exchange) -> None:
        if self.world.chance.random() < 0.2:
            exchange.fail(ValueError("no"))
        else:
            exchange.reply(b"yes")

    def finish(self, exchange: Exchange) -> None:
        """The code of the call has ended; its answer may have gone long before."""
        if exchange in self.works:
            self.works.remove(exchange)
            self.slots.free()

    async def die(self) -> None:
        assert self.listener is not None
        await self.listener.close()


@dataclass
class World:
    """Everything in one story."""

    chance: random.Random
    clock: ManualClock = field(default_factory=ManualClock)
    routers: list[Router] = field(default_factory=list)
    replicas: list[Replica] = field(default_factory=list)
    draining: list[Replica] = field(default_factory=list)
    dead: list[Replica] = field(default_factory=list)
    calls: dict[str, Told] = field(default_factory=dict)
    parked: int = 0
    recalled: int = 0
    choosers: dict[str, RequestRouterTarget | None] = field(default_factory=dict)

    async def begin(self) -> None:
        for key in KEYS:
            names = (None, None, "SameNode", "RoundRobin", "ConsistentHash", "Wild")
            name = self.chance.choice(names)
            self.choosers[key] = RequestRouterTarget(f"skate.routers:{name}") if name is not None else None
        self.routers = [Router(f"router {i}", self.clock, self.chance.random) for i in range(self.chance.randint(1, 3))]
        for key in KEYS:
            for _ in range(self.chance.randint(1, 3)):
                await self.bear(key)
        for router in self.routers:
            if self.chance.random() < 0.8:  # the others begin with early calls
                self.tell(router)

    # -- events ---------------------------------------------------------------------------------

    async def bear(self, key: str) -> None:
        number = len(self.replicas) + len(self.draining) + len(self.dead)
        replica = Replica(self, key, f"r{number}", self.chance.choice((1, 1, 2, 3)))
        await replica.start()
        self.replicas.append(replica)

    def tell(self, router: Router) -> None:
        """How things are, to one router; the news reaches each at another time."""
        deployments: dict[str, DeploymentTarget | None] = {}
        for key in KEYS:
            mine = [replica for replica in self.replicas if replica.key == key]
            app, name = key.split("/")
            limit = max([replica.limit for replica in mine], default=1)  # more than some replicas accept
            queue = self.chance.choice((-1, -1, -1, 3))
            seen = tuple(ReplicaTarget(replica.id, replica.address) for replica in mine)
            retry = self.chance.choice((0, 0, 1, {"m": 1}))
            chooser = self.choosers[key] if self.chance.random() < 0.9 else None
            deployments[key] = DeploymentTarget(
                app, name, limit, queue, seen, None, retry=retry, request_router=chooser
            )
        router.apply(Snapshot(router.generation + 1, self.chance.random() < 0.3, deployments, ()))

    def submit(self) -> None:
        router, key = self.chance.choice(self.routers), self.chance.choice(KEYS)
        for _ in range(self.chance.choice((1, 1, 1, 6))):
            id = f"c{len(self.calls)}"
            deadline = self.clock.now() + 1000 if self.chance.random() < 0.2 else None
            call = self.calls[id] = Told(self, key, id, deadline)
            call.routing_key = self.chance.choice((None, "hot", "hot", id))
            call.retries = self.chance.choice((None, None, 0, 1, 2))
            router.submit(call, b"body")

    def works(self) -> list[tuple[Replica, Exchange]]:
        return [(replica, work) for replica in (*self.replicas, *self.draining) for work in replica.works]

    def work_on(self) -> None:
        works = self.works()
        if works:
            replica, work = self.chance.choice(works)
            if self.chance.random() < 0.1:
                work.send_nowait(b"a part")
                return
            replica.answer(work)
            if self.chance.random() < 0.8:  # else there is more to do, after the answer
                replica.finish(work)

    def give_up(self) -> None:
        calls = [call for call in self.calls.values() if call.outcome is None]
        if calls:
            call = self.chance.choice(calls)
            if call.deadline is not None and call.router is not None:
                call.router.expire(call)
            else:
                call.cancel("the story says so")

    async def lose_a_replica(self) -> None:
        replicas = self.replicas if self.chance.random() < 0.6 else self.draining
        if replicas:
            replica = replicas.pop(self.chance.randrange(len(replicas)))
            self.dead.append(replica)
            await replica.die()

    def drain(self) -> None:
        if self.replicas:
            replica = self.replicas.pop(self.chance.randrange(len(self.replicas)))
            replica.drain()
            self.draining.append(replica)

    def resize(self) -> None:
        if self.replicas:
            self.chance.choice(self.replicas).resize(self.chance.choice((1, 1, 2, 3, 5)))

    def break_a_connection(self) -> None:
        links = [link for router in self.routers for lane in router.lanes.values() for link in lane.links.values()]
        peers = [link.peer for link in links if link.peer is not None]
        if peers:
            self.chance.choice(peers).close()

    async def event(self) -> None:
        what = self.chance.random()
        if what < 0.35:
            self.submit()
        elif what < 0.68:
            self.work_on()
        elif what < 0.78:
            self.give_up()
        elif what < 0.81:
            await self.lose_a_replica()
        elif what < 0.83:
            self.drain()
        elif what < 0.87:
            await self.bear(self.chance.choice(KEYS))
        elif what < 0.95:
            self.tell(self.chance.choice(self.routers))
        elif what < 0.97:
            self.break_a_connection()
        elif what < 0.975:
            self.chance.choice(self.routers).instance_ended()
        elif what < 0.99:
            self.resize()
        self.clock.advance(0.1)
        for _ in range(self.chance.choice((0, 0, 1, 2, 7))):
            self.check()
            await asyncio.sleep(0)

    # -- what must hold -------------------------------------------------------------------------

    def check(self) -> None:
        """At every moment."""
        for call in self.calls.values():
            assert call.ends == (call.outcome is not None), f"{call.request_id} ended {call.ends} times"
        for router in self.routers:
            ledger = router.ledger
            mine = [call for call in self.calls.values() if call.router is router]
            assert ledger.accepted == len(mine) and ledger.open == sum(call.outcome is None for call in mine)
            reports = router.counts()
            for key in KEYS:
                calls = [call for call in mine if call.deployment_key == key and call.outcome is None]
                told = reports.get(key, LedgerReport())
                stages = (sum(call.link is None for call in calls), sum(call.started for call in calls))
                assert (told.queued, told.started, told.open) == (*stages, len(calls))
                assert told.sent == len(calls) - sum(stages)
            assert all(balances(report) for report in (*reports.values(), ledger.report()))
            assert ledger.report() == total(reports.values())
            for lane in router.lanes.values():
                assert lane.queued == sum(call.queued for call in lane.waiting) >= 0
                for link in (*lane.links.values(), *lane.leaving):
                    assert link.in_flight == sum(call.link is link for call in mine) and link.granted == 0
        for replica in self.replicas:
            slots = replica.slots
            assert slots.ongoing == len(replica.works)
            assert not slots.promised or slots.ongoing + slots.promised <= replica.limit

    def check_quiet(self) -> None:
        """When nothing is under way."""
        for router in self.routers:
            for lane in router.lanes.values():
                usable = [link for link in lane.links.values() if link.peer is not None]
                router.counts()
                started = {link: sum(sink.started for sink in link.peer.sinks.values()) for link in usable}
                ahead = [link for link in usable if link.in_flight > max(lane.limit, started[link])]
                assert len(usable) < 2 or not ahead, (
                    f"calls wait at {ahead[0].target.id}, one of {len(usable)} replicas"
                )
        for replica in self.replicas:
            assert not replica.slots.promised, f"{replica.id} has promised a slot that nobody uses"
            assert replica.slots.load == replica.slots.ongoing or replica.slots.ongoing >= replica.limit
            if replica.slots.ongoing >= replica.limit:
                continue
            for router in self.routers:
                lane = router.lanes[replica.key]
                link = lane.links[replica.id]
                assert not lane.queued, (
                    f"{replica.id} is idle ({replica.slots.ongoing} of {replica.limit}) while {lane.queued} calls wait "
                    f"at {router.name} (blocked: {link.blocked}, in flight: {link.in_flight}, limit: {lane.limit})"
                )

    def check_story(self) -> None:
        """At the end."""
        for call in self.calls.values():
            assert call.outcome is not None, f"{call.request_id} did not end"
            assert call.again <= 2
            assert call.executions <= 1 + call.losses_seen, f"{call.request_id} was executed {call.executions} times"
        for replica in (*self.replicas, *self.draining, *self.dead):
            for ids in replica.began.values():
                order = [int(id[1:]) for id in ids if self.calls[id].straight]
                assert order == sorted(order), f"{replica.id} began {order}"

    # -- the end --------------------------------------------------------------------------------

    async def quiet(self) -> None:
        """Until nothing is under way any more."""
        ready: Any = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
        for _ in range(QUIET_TURNS):
            await asyncio.sleep(0)
            if not ready and not self.clock._sleepers:
                return
            self.clock.advance(0.1)
        raise AssertionError(f"still not quiet after {QUIET_TURNS} turns")

    async def end(self) -> None:
        for replica in self.draining:
            for work in list(replica.works):
                replica.answer(work)
                replica.finish(work)
            await replica.die()
        for key in KEYS:
            if all(replica.key != key for replica in self.replicas):
                await self.bear(key)
        for router in self.routers:
            self.tell(router)
        await self.quiet()
        while self.works():
            self.check()
            self.check_quiet()
            for replica, work in self.works()[: self.chance.randint(1, 4)]:
                replica.answer(work)
                replica.finish(work)
            await self.quiet()
        self.check()
        self.check_quiet()
        self.check_story()


async def play(seed: int) -> tuple[World, dict[str, int]]:
    """One story; how its calls ended."""
    Uneven.chance, Wild.wild = random.Random(-seed), random.Random(-seed)
    world = World(random.Random(seed))
    await world.begin()
    for _ in range(EVENTS):
        await world.event()
    if world.chance.random() < 0.8:
        await world.end()
    for router in world.routers:
        await router.close()
        assert router.ledger.open == 0
    for call in world.calls.values():
        assert call.ends == 1, f"{call.request_id} ended {call.ends} times"
    for replica in (*world.replicas, *world.draining):
        await replica.die()
    await world.quiet()
    ends = {outcome.name: sum(call.outcome is outcome for call in world.calls.values()) for outcome in Outcome}
    return world, ends | {"sent again": sum(call.again for call in world.calls.values())}


def test_every_story_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MemoryTransport", Uneven)
    monkeypatch.setitem(BUILT_IN, "Wild", Wild)
    ends = dict.fromkeys((*(outcome.name for outcome in Outcome), "sent again"), 0)
    parked = recalled = 0

    async def all_of_them() -> None:
        nonlocal parked, recalled
        for seed in range(SEEDS):
            try:
                world, ended = await play(seed)
                parked, recalled = parked + world.parked, recalled + world.recalled
                for outcome, count in ended.items():
                    ends[outcome] += count
            except Exception as error:
                raise AssertionError(f"seed {seed}: {error}") from error

    asyncio.run(all_of_them())
    assert min(ends.values()) > SEEDS / 10, f"the stories do not tell of everything: {ends}"
    assert parked > SEEDS and recalled > SEEDS / 10, f"{parked} calls waited at a replica, {recalled} were asked back"
