"""A link that is cut: a router here, a replica in another network namespace, a pair of virtual cables between them.

Law: everything lies in namespaces of this process and its child, so the kernel takes it away with them. Calls go on all
the time; the cable is pulled and put back, for shorter and for longer than the connection waits for signs of life. Each
call must end in time, none may be executed twice unless it may be, and after the last cut all must be answered again.

``python -m chaos.link JSON`` prints one line of JSON: what it saw, its faults, or why it is not allowed here.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import uvloop

from chaos.apps import LOG, note
from chaos.calls import named
from chaos.judge import OK, Record, shortened
from chaos.place import NEW_NETWORK, unshare
from skate import serve
from skate.authoring.graph import build
from skate.core.clock import SystemClock
from skate.core.specs import DeploymentTarget, ReplicaConfig, ReplicaTarget, Snapshot
from skate.dataplane import caller as callers
from skate.dataplane.caller import Caller
from skate.dataplane.handle import DeploymentHandle
from skate.dataplane.replica import worker
from skate.dataplane.router import Router
from skate.dataplane.transport import framed
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.peers import listen
from skate.dataplane.uplink import Uplink
from skate.engine.base import Life

NEAR, FAR, PORT = "10.77.0.1", "10.77.0.2", 7001
SILENT_S = 1.0  # a link that says nothing for so long is given up; ten times as long outside of this test
DEADLINE_S = 3.0
SLACK_S = 2.0
CUT_S = ((0.05, 0.5), (1.5, 2.5))  # shorter and longer than the link may be silent
CALM_S = (0.1, 0.4)  # between two cuts
CALLERS = 12
AGAIN = 2  # executions more that are allowed to every third call
BACK_S = 8.0  # after the last cut: until a call is answered
SECONDS_MAX = 60.0


@serve.deployment(max_ongoing_requests=8)
class Remote:
    async def do(self, id: str) -> str:
        note(id)
        await asyncio.sleep(0.002)
        return id


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)


# -- the far end ----------------------------------------------------------------------------------


def far(controller: str) -> None:
    """A replica in a network namespace of its own; it waits for its cable."""
    unshare(NEW_NETWORK)
    print("apart", flush=True)
    sys.stdin.readline()
    run("ip", "addr", "add", f"{FAR}/30", "dev", "far")
    run("ip", "link", "set", "far", "up")
    framed.SILENT_S = SILENT_S
    spec = build(Remote.bind(), "link", None, sys_path=(), cwd=os.getcwd()).deployments[0]
    config = ReplicaConfig("link/Remote#1", spec, f"tcp:{FAR}:{PORT}", controller)
    uvloop.run(worker.run(msgspec.msgpack.encode(config), Life(SystemClock(), inline=False)))


# -- the near end ---------------------------------------------------------------------------------


class Cable:
    """The near end's half of the link, and the process at its other end."""

    def __init__(self, controller: str) -> None:
        unshare(NEW_NETWORK)
        run("ip", "link", "set", "lo", "up")
        command = [sys.executable, "-m", "chaos.link", json.dumps({"far": controller})]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdout.readline()
        pid = str(self.process.pid)
        run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", pid)
        run("ip", "addr", "add", f"{NEAR}/30", "dev", "near")
        run("ip", "link", "set", "near", "up")
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Course:
    """Calls and cuts."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.seconds = min(seconds, SECONDS_MAX)
        self.chance = random.Random(seed)
        self.records: list[Record] = []
        self.made = 0
        self.cuts: list[float] = []
        self.over = False
        self.faults: list[str] = []

    async def run(self, controller: str) -> None:
        listener = await listen(controller, _controller, "controller")
        clock = SystemClock()
        router = Router("near", clock)
        callers.install(
            Caller(asyncio.get_running_loop(), router, Uplink(controller, "near", router, clock), controller)
        )
        at = (ReplicaTarget("link/Remote#1", f"tcp:{FAR}:{PORT}"),)
        router.apply(Snapshot(1, True, {"link/Remote": DeploymentTarget("link", "Remote", 8, -1, at)}, ()))
        self.handle: Any = DeploymentHandle("link", "Remote")
        await self._answered("before the first cut")
        clients = [asyncio.create_task(self._client()) for _ in range(CALLERS)]
        await self._cut()
        self.over = True
        _, hanging = await asyncio.wait(clients, timeout=DEADLINE_S + 2 * SLACK_S)
        self.faults += ["a call does not end"] * len(hanging)
        await self._answered("after the last cut")
        await router.close()
        await listener.close()

    async def _cut(self) -> None:
        end = monotonic() + self.seconds
        while monotonic() < end:
            await asyncio.sleep(self.chance.uniform(*CALM_S))
            await asyncio.to_thread(run, "ip", "link", "set", "near", "down")
            self.cuts.append(self.chance.uniform(*self.chance.choice(CUT_S)))
            await asyncio.sleep(self.cuts[-1])
            await asyncio.to_thread(run, "ip", "link", "set", "near", "up")

    async def _client(self) -> None:
        while not self.over:
            await self._call()
            await asyncio.sleep(0.002)

    async def _call(self) -> str:
        self.made += 1
        id, again = f"l{self.made}", AGAIN if self.made % 3 == 0 else 0
        began, word, text = monotonic(), OK, ""
        try:
            answer = await self.handle.options(timeout_s=DEADLINE_S, retry=again).do.remote(id)
            if answer != id:
                word, text = "wrong", f"{answer!r}"
        except Exception as error:
            word, text = named(error)
        self.records.append(Record(id, "call over the link", "link", began, monotonic(), word, text, again=again))
        return word

    async def _answered(self, when: str) -> None:
        end = monotonic() + BACK_S
        while (word := await self._call()) != OK:
            if monotonic() > end:
                self.faults.append(f"{when} no call is answered: {word}: {self.records[-1].text}")
                return

    def judge(self, executed: Counter[str]) -> None:
        """Adds what is wrong with the calls."""
        self.faults += shortened([*ended(self.records), *repeated(self.records, executed)])


def ended(records: list[Record]) -> list[str]:
    """Each in time, as it may: answered, too late, or lost with the link and told so."""
    found = []
    for one in records:
        if one.ended - one.began > DEADLINE_S + SLACK_S:
            found.append(f"call {one.id} took {one.ended - one.began:.1f} s; its deadline was {DEADLINE_S:g} s")
        elif one.word not in (OK, "timed out") and not (one.word == "died" and "link/Remote#1" in one.text):
            found.append(f"call {one.id} ended as {one.word!r}: {one.text}")
    return found


def repeated(records: list[Record], executed: Counter[str]) -> list[str]:
    """None executed more often than it may be, each that was answered at least once."""
    found = []
    for one in records:
        if executed[one.id] > 1 + one.again:
            found.append(f"call {one.id} was executed {executed[one.id]} times, it may be {1 + one.again} times")
        if one.word == OK and not executed[one.id]:
            found.append(f"call {one.id} was answered and never executed")
    return found


def _controller(exchange: Exchange) -> None:
    """Hears the replica's reports and says nothing of its own."""
    if exchange.head.method != "snapshots":
        exchange.reply(b"")


def near(seconds: float, seed: int) -> dict[str, Any]:
    """All of it; what it saw."""
    controller = f"tcp:{NEAR}:{PORT}"
    with tempfile.TemporaryDirectory(prefix="skc-link-") as folder:
        os.environ[LOG] = os.path.join(folder, "executed")
        framed.SILENT_S = SILENT_S
        try:
            cable = Cable(controller)
        except (OSError, subprocess.SubprocessError) as error:
            return {"skipped": str(error), "faults": []}
        try:
            course = Course(seconds, seed)
            uvloop.run(course.run(controller))
        finally:
            cable.close()
        log = Path(os.environ[LOG])
        course.judge(Counter(log.read_text().split()) if log.exists() else Counter())
    words = Counter(one.word for one in course.records)
    return {"calls": course.made, "ended": words, "cuts": len(course.cuts), "faults": course.faults, "skipped": ""}


def main() -> None:
    told = json.loads(sys.argv[1])
    if "far" in told:
        far(told["far"])
    else:
        print(json.dumps(near(told["seconds"], told["seed"])))


if __name__ == "__main__":
    main()
