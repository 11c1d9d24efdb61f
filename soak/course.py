"""One soak from its first call to silence: clients, deaths, polls and samples, and what comes out of them."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import re
import signal
from collections.abc import Callable
from time import monotonic
from typing import Any

import msgspec

from skate import serve
from skate.core.errors import SkateError
from soak import apps
from soak.client import Cut, Line
from soak.judge import (
    DIED,
    EXAMPLES_MAX,
    MACHINE_MAX,
    Kill,
    Tally,
    cut_by_death,
    growth,
    machine_slower,
    more_files,
    third_of,
    told_of_death,
)
from soak.kinds import KINDS, Kind, World, connected
from soak.pulse import pulse
from soak.report import Result, measured
from soak.watch import Watch, unbalanced

WARM_MAX_S = 45.0
WARM_SHARE = 0.25  # of the whole: caches, pools and the allocator find their sizes
HUNG_S = 20.0  # for any single call: far above every deadline it has
REST_S = 15.0  # until nothing is open after the last client left
IDLE_S = 2.0  # for closed connections to be gone
CONTROLLER_S = 10.0  # until a controller that was killed is there again
POLL_S = 0.5  # of the ledger
SAMPLE_S = 1.0  # of the processes
PULSE_S = 0.1  # of the machine
KILL_S = (0.3, 1.5)  # between two deaths, random
FAULTS_MAX = 100
NUMBERS = re.compile(r"[0-9a-f]{6,}|\d+")


class Course:
    """See the module. Times are seconds since the clients began."""

    def __init__(
        self, seconds: float, kills: bool, seed: int, only: list[str] | None, say: Callable[[str], None]
    ) -> None:
        self.seconds = seconds
        self.warm_s = min(WARM_MAX_S, WARM_SHARE * seconds)
        self.kills = kills
        self.chance = random.Random(seed)
        self.say = say
        self.kinds = [kind for kind in KINDS.values() if not only or any(word in kind.name for word in only)]
        self.tallies = {kind.name: Tally(kind.name, kind.words) for kind in self.kinds}
        self.result = Result(seconds, self.warm_s, list(self.tallies.values()))
        for name, app in apps.APPS.items():
            serve.run(app, name=name, route_prefix=f"/{name}")
        status = serve.status()
        self.world: World = connected(int(status.proxies["0"].address.rpartition(":")[2]), seed)
        self.watch = Watch(os.getsid(status.controller_pid))
        self.began = monotonic()
        self.over = False

    def now(self) -> float:
        return monotonic() - self.began

    def fault(self, text: str) -> None:
        if len(self.result.faults) < FAULTS_MAX:
            self.result.faults.append(text)

    # -- the course -----------------------------------------------------------------------------

    async def run(self) -> None:
        """All of it."""
        self.say(f"rehearsing {len(self.kinds)} kinds of calls ...")
        for kind in self.kinds:
            line = Line(self.world.port)
            for _ in range(3):
                await self._call(kind, line)
            line.leave()
        await self._rest()
        files = await self._idle({})
        self.began = monotonic()
        self.say(f"all at once for {self.seconds:g} s ...")
        clients = [asyncio.create_task(self._client(kind)) for kind in self.kinds for _ in range(kind.workers)]
        watchers = [asyncio.create_task(task) for task in (self._poll(), self._sample(), self._kill(), self._feel())]
        await asyncio.sleep(self.seconds)
        self.over = True
        await asyncio.wait(clients, timeout=2 * HUNG_S)
        for task in clients:
            if not task.done():
                self.fault("a client hangs")
                task.cancel()
        for task in (*clients, *watchers):
            try:
                await task
            except asyncio.CancelledError:
                pass
        self.say("silence; every slot must be free ...")
        self._judge_ledger(await self._rest())
        self._judge_processes(files, await self._idle(files))
        await self._meet()
        await self._rest()
        for tally in self.result.tallies:
            self.result.faults += tally.complaints()
        self._judge_latency()

    async def _client(self, kind: Kind) -> None:
        line = Line(self.world.port)
        chance = random.Random(self.chance.random())
        await asyncio.sleep(chance.random() * kind.pause_s)
        while not self.over:
            await self._call(kind, line)
            await asyncio.sleep(kind.pause_s * (0.5 + chance.random()))
        line.leave()

    async def _call(self, kind: Kind, line: Line) -> None:
        tally = self.tallies[kind.name]
        tally.made += 1
        began = self.now()
        try:
            async with asyncio.timeout(HUNG_S):
                word = await kind.act(self.world, line)
        except TimeoutError:
            word, text = "hung", f"nothing after {HUNG_S} s"
        except Exception as error:
            word, text = self._named(kind, error, began)
        else:
            text = word
        tally.seen[word] += 1
        if word in kind.words:
            third = third_of(self.now(), self.warm_s, self.seconds)
            if third is not None:
                tally.times[third].add(self.now() - began)
            return
        line.leave()
        if word != DIED and len(tally.examples) < EXAMPLES_MAX:
            tally.examples.append(f"{self.now():.1f} s: {text}")

    def _named(self, kind: Kind, error: Exception, began: float) -> tuple[str, str]:
        """The word for a call that raised, and its text."""
        text = f"{type(error).__name__}: {error}"
        if kind.mortal:
            kills = self.result.kills
            if told_of_death(text, kills):
                return DIED, text
            if isinstance(error, Cut) and cut_by_death(began - 0.1, self.now(), kills):
                return DIED, text
        return NUMBERS.sub("#", text)[:100], text[:400]

    # -- beside it ------------------------------------------------------------------------------

    async def _status(self) -> Any:
        """What the controller says; asked again for a while when it does not answer, for it is killed, too."""
        end = monotonic() + CONTROLLER_S
        while True:
            try:
                return await asyncio.to_thread(serve.status)
            except SkateError as error:
                if monotonic() > end:
                    self.fault(f"no status within {CONTROLLER_S:g} s: {type(error).__name__}: {error}")
                    raise
            await asyncio.sleep(0.05)

    async def _poll(self) -> None:
        while not self.over:
            status = await self._status()
            self.result.ledger_polls += 1
            if wrong := unbalanced(status):
                self.fault(f"at {self.now():.1f} s the ledger does not balance: {wrong}")
            await asyncio.sleep(POLL_S)

    async def _sample(self) -> None:
        while not self.over:
            await asyncio.to_thread(self.watch.look, self.now())
            await asyncio.sleep(SAMPLE_S)

    async def _feel(self) -> None:
        """The pulse of the machine, beside all that."""
        async with pulse() as machine:
            while not self.over:
                began = self.now()
                await machine.beat()
                if (third := third_of(self.now(), self.warm_s, self.seconds)) is not None:
                    self.result.pulse[third].add(self.now() - began)
                await asyncio.sleep(PULSE_S)

    async def _kill(self) -> None:
        """Deaths in the first third: the controller's, which no call may notice, then those of replicas."""
        if not self.kills or not any(kind.mortal for kind in self.kinds):
            return
        await asyncio.sleep(self.warm_s)
        end = self.warm_s + (self.seconds - self.warm_s) / 3 - 1
        os.kill((await self._status()).controller_pid, signal.SIGKILL)
        while not self.over and self.now() < end:
            status = await self._status()
            app, deployment = self.chance.choice(apps.MORTALS)
            replicas = status.applications[app].deployments[deployment].replicas
            ready = [replica for replica in replicas if replica.phase == "ready"]
            if ready:
                replica = self.chance.choice(ready)
                self.result.kills.append(Kill(replica.id, self.now()))
                try:
                    os.kill(replica.pid, signal.SIGKILL)
                except ProcessLookupError:
                    self.result.kills.pop()
            await asyncio.sleep(self.chance.uniform(*KILL_S))

    # -- the end --------------------------------------------------------------------------------

    async def _rest(self) -> Any:
        """The status, once no call is open."""
        end = monotonic() + REST_S
        while (status := await self._status()).calls.open and monotonic() < end:
            await asyncio.sleep(0.05)
        if status.calls.open:
            where = {name: calls.open for name, calls in status.calls_by_deployment.items() if calls.open}
            self.fault(f"{where} calls are still open {REST_S:g} s after the last client left")
        return status

    async def _idle(self, before: dict[int, int]) -> dict[int, int]:
        """Descriptors of all processes at rest: as many as before, if that comes true soon."""
        end = monotonic() + IDLE_S
        while True:
            gc.collect()
            await asyncio.sleep(0.2)
            found = self.watch.idle()
            if monotonic() > end or (before and not more_files(before, found)):
                return found

    def _judge_ledger(self, status: Any) -> None:
        if wrong := unbalanced(status):
            self.fault(f"the ledger does not balance at the end: {wrong}")
        self.result.ledger = msgspec.structs.asdict(status.calls)
        told = status.calls_by_deployment.get(apps.TOLD, status.calls)
        for word in ("ok", "refused"):  # the ledger of one deployment is what its callers saw
            seen = sum(tally.seen[word] for tally in self.tallies.values() if "to the narrow" in tally.name)
            if seen != getattr(told, word):
                self.fault(f"{apps.TOLD}: callers saw {seen} {word}, the ledger has {getattr(told, word)}")

    async def _meet(self) -> None:
        """As many calls as there are slots must run at once: none has leaked, and nothing holds one."""
        for (app, deployment), (replicas, slots) in apps.SLOTS.items():
            handle = serve.get_deployment_handle(deployment, app)
            responses = [handle.meet.remote(slots) for _ in range(replicas * slots)]
            try:
                async with asyncio.timeout(2 * apps.MEET_S):
                    met = await asyncio.gather(*(_value(response) for response in responses))
            except Exception as error:
                self.fault(f"{app}/{deployment}: the calls that should meet failed: {type(error).__name__}: {error}")
                continue
            if min(met) < slots:
                self.fault(f"{app}/{deployment}: {min(met)} of {slots} slots of a replica were free at the end")

    def _judge_latency(self) -> None:
        change = machine_slower(self.result.pulse)
        if not 1 / MACHINE_MAX < change < MACHINE_MAX:
            self.result.remarks.append(
                f"latency is not judged: between the middle and the last third the machine itself became {change:.2f} "
                "times as slow; others used it"
            )
            return
        for tally in self.result.tallies:
            if slower := tally.slower():
                self.result.drifts.append(slower)

    def _judge_processes(self, before: dict[int, int], after: dict[int, int]) -> None:
        self.result.watched = sorted(self.watch.seen.values(), key=lambda one: one.title)
        for pid, (was, now) in more_files(before, after).items():
            title = self.watch.seen[pid].title if pid in self.watch.seen else str(pid)
            self.fault(f"{title}: {now} descriptors at rest, {was} before the soak")
        for one in self.result.watched:
            steady = measured(one, self.result)
            found = growth(*steady) if steady is not None else None
            if found is not None and found.kb > found.bound_kb:
                drift = f"{one.title}: memory grew by {found.kb:.0f} kB, the bound is {found.bound_kb:.0f} kB"
                self.result.drifts.append(drift)


async def _value(response: Any) -> Any:
    return await response


logging.getLogger("websockets").setLevel(logging.WARNING)
