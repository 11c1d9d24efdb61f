"""One chaos from its first call to silence: clients, deeds, polls of the status, and what comes out of them."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from chaos import apps, judge
from chaos.calls import HUNG_S, KINDS, Kind, Way, World, connected, make
from chaos.hands import Failed, Hands
from chaos.judge import Story
from chaos.place import Place
from chaos.schedule import Deed, deeds
from skate import serve
from skate.engine import standby
from soak.watch import unbalanced

THREADS = 32
POLL_S = 0.25
AWAY_MAX_S = 5.0  # without an answer of the controller: its next start is delayed by half a second at most
SETTLE_S = 30.0  # until everything is as wanted after the last deed: a start may be slowed down by ten seconds
REST_S = 10.0  # until nothing is open after the last client left
DEEDS_S = 90.0  # for those that are under way at the end
ASK_S = 5.0  # for every replica to be found by calls at random
ASKS = 16  # of those calls at once
PAUSE_S = 0.05  # between looks at something that is waited for
REHEARSALS = 3
FAULTS_MAX = 200


@dataclass
class Result:
    """Everything that a chaos saw. ``faults`` must be empty."""

    seed: int
    seconds: float
    story: Story = field(default_factory=Story)
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    deeds: Counter[str] = field(default_factory=Counter)
    polls: int = 0
    away_s: float = 0.0  # the longest time without an answer of the controller
    settled_s: float = 0.0  # from the last deed until everything was as wanted
    ledger: dict[str, int] = field(default_factory=dict)
    link: dict[str, Any] = field(default_factory=dict)  # what the subtest of the cut link saw


class Course:
    """See the module. The instance runs already."""

    def __init__(
        self,
        result: Result,
        place: Place,
        log: Path,
        session: int,
        todo: list[Deed],
        say: Callable[[str], None],
    ) -> None:
        self.result = result
        self.log = log
        self.todo = todo
        self.say = say
        self.hands = Hands(place, result.story, apps.FIRST, session)
        self.lies = judge.Lies()
        self.proxies: list[int] = []
        self.over = False
        self.under_way: dict[asyncio.Task[None], Deed] = {}

    def fault(self, text: str) -> None:
        if len(self.result.faults) < FAULTS_MAX:
            self.result.faults.append(text)

    async def run(self) -> None:
        """All of it."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        for name, want in apps.FIRST.items():
            await self.hands.deploy(name, want)
        status = await self.hands.status()
        self._look(status)
        port = int(status.proxies["0"].address.rpartition(":")[2])
        world = connected(port, self.result.seed, lambda: self.proxies)
        await self._rehearse(world)
        self.say(f"{len(self.todo)} deeds in {self.result.seconds:g} s under {len(KINDS)} kinds of calls ...")
        self.began = monotonic()
        clients = [
            asyncio.create_task(self._client(world, kind)) for kind in KINDS.values() for _ in range(kind.workers)
        ]
        poll = asyncio.create_task(self._poll())
        await self._deeds()
        await self._settle()
        self.over = True
        await self._end(clients, poll)
        self._gather(world)
        await self._rest()

    async def _rehearse(self, world: World) -> None:
        for kind in KINDS.values():
            way = Way(world.port, world.proxies)
            for _ in range(REHEARSALS):
                record = await make(world, kind, way)
                if record.word != judge.OK:
                    self.fault(f"in the rehearsal: {kind.name}: {record.word}: {record.text}")
            way.leave()

    async def _client(self, world: World, kind: Kind) -> None:
        way = Way(world.port, world.proxies)
        chance = random.Random(world.chance.random())
        await asyncio.sleep(chance.random() * kind.pause_s)
        while not self.over:
            await make(world, kind, way)
            await asyncio.sleep(kind.pause_s * (0.5 + chance.random()))
        way.leave()

    async def _end(self, clients: list[asyncio.Task[None]], poll: asyncio.Task[None]) -> None:
        await asyncio.wait(clients, timeout=HUNG_S + 5)
        for task in [*clients, poll]:
            if task is not poll and not task.done():
                self.fault("a client hangs")
            if not task.done():
                task.cancel()
        for ended in await asyncio.gather(*clients, poll, return_exceptions=True):
            if isinstance(ended, Exception):
                self.fault(f"a client or the poll failed: {type(ended).__name__}: {ended}")

    # -- deeds ----------------------------------------------------------------------------------

    async def _deeds(self) -> None:
        for deed in self.todo:
            await asyncio.sleep(max(0.0, self.began + deed.at_s - monotonic()))
            self.result.deeds[deed.kind] += 1
            self.under_way[asyncio.create_task(self._do(deed))] = deed
        await asyncio.sleep(max(0.0, self.began + self.result.seconds - monotonic()))
        if self.under_way:
            await asyncio.wait(self.under_way, timeout=DEEDS_S)
        for task, deed in self.under_way.items():
            if not task.done():
                self.fault(f"{deed.kind!r}, begun at {deed.at_s:.1f} s, is still under way")
                task.cancel()
        await asyncio.gather(*self.under_way, return_exceptions=True)

    async def _do(self, deed: Deed) -> None:
        try:
            await self.hands.do(deed)
        except Failed as error:
            self.fault(f"at {deed.at_s:.1f} s {deed.kind!r}: {error}")
        except Exception as error:
            self.fault(f"at {deed.at_s:.1f} s {deed.kind!r} raised {type(error).__name__}: {error}")

    # -- statuses -------------------------------------------------------------------------------

    async def _poll(self) -> None:
        said_at = monotonic()
        while not self.over:
            try:
                status = await asyncio.to_thread(serve.status)
            except Exception:
                status = None  # the controller is away; for how long is measured
            now = monotonic()
            self.result.away_s = max(self.result.away_s, now - said_at)
            if status is not None and status.controller_pid:
                said_at = now
                self._look(status)
            await asyncio.sleep(POLL_S)

    def _look(self, status: Any) -> None:
        self.result.polls += 1
        self.proxies = [proxy.pid for proxy in status.proxies.values() if proxy.pid]
        if wrong := unbalanced(status):
            self.fault(f"the ledger does not balance: {wrong}")
        for text in [
            *judge.inconsistent(status),
            *self.lies.look(judge.said_ready(status), judge.lives, monotonic()),
        ]:
            self.fault(f"the status lies: {text}")

    async def _settle(self) -> None:
        """Waits until everything is as it is wanted, by what is said and by what answers."""
        began = monotonic()
        left = ["?"]
        while left and monotonic() < began + SETTLE_S:
            status = await self.hands.status()
            left = judge.unsettled(status, self.hands.wants, {})
            if not left:
                left = judge.unsettled(status, self.hands.wants, await self._answers(status))
            await asyncio.sleep(PAUSE_S if left else 0)
        self.result.settled_s = monotonic() - began
        for text in left:
            self.fault(f"{SETTLE_S:g} s after the last deed: {text}")

    async def _answers(self, status: Any) -> dict[str, list[Any]]:
        """What the replicas of each deployment answer, asked until each that is shown as ready has."""
        seen: dict[str, list[Any]] = {}
        for name, app in status.applications.items():
            for deployment in app.deployments.values():
                if name == apps.ELASTIC:
                    continue  # asking would change it; the versions of its answers are judged
                handle = serve.get_deployment_handle(deployment.name, name).options(timeout_s=judge.DEADLINE_S)
                ready = {replica.id for replica in deployment.replicas if replica.phase == "ready"}
                told = seen.setdefault(f"{name}/{deployment.name}", [])
                end = monotonic() + ASK_S
                while ready - {answer[1] for answer in told} and monotonic() < end:
                    told += await asyncio.gather(*(_value(handle.who.remote()) for _ in range(ASKS)))
        return seen

    # -- the end --------------------------------------------------------------------------------

    def _gather(self, world: World) -> None:
        story = self.result.story
        story.records, story.made = world.records, world.made
        story.executed = Counter(self.log.read_text().split()) if self.log.exists() else {}
        self.result.faults += judge.shortened(judge.verdict(story))
        for text in sorted(self.hands.strange):
            self.fault(f"a control call raised what is no error of Skate: {text}")
        if self.result.away_s > AWAY_MAX_S:
            self.fault(f"for {self.result.away_s:.1f} s nobody said a status")
        if self.hands.skipped:
            self.result.remarks.append(f"skipped for want of a target: {Counter(self.hands.skipped)}")

    async def _rest(self) -> None:
        """Nothing may be open once the last client has left."""
        end = monotonic() + REST_S
        while (status := await self.hands.status()).calls.open and monotonic() < end:
            await asyncio.sleep(PAUSE_S)
        if status.calls.open:
            where = {name: calls.open for name, calls in status.calls_by_deployment.items() if calls.open}
            self.fault(f"calls are still open {REST_S:g} s after the last client left: {where}")
        if wrong := unbalanced(status):
            self.fault(f"the ledger does not balance at the end: {wrong}")
        self.result.ledger = msgspec.structs.asdict(status.calls)


async def _value(response: Any) -> Any:
    return await response


def session_of(status: Any) -> int:
    """Every process of an instance is in one."""
    return os.getsid(status.controller_pid)


def todo(seed: int, seconds: float, place: Place, only: list[str]) -> list[Deed]:
    """The deeds that can be done here."""
    able = {"disk": not place.why_no_disk, "standby": standby.possible()}
    return deeds(seed, seconds, [name for name, is_so in able.items() if is_so], only)
