"""What the control plane costs by itself: a decision, a status, and an idle controller. No process is started here.

Law: the state is made by the decisions themselves, from what is wanted and a world in which whatever is started is
ready at once; so it is one that a controller can really be in.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from time import perf_counter
from typing import Any

import msgspec
from msgspec.structs import replace

from benchmarks.report import Figure, Section, Target
from skate.controlplane.decide.status import serve_status
from skate.controlplane.decide.values import (
    Desired,
    Forget,
    Goal,
    Memory,
    Observed,
    ReplicaSeen,
    StartReplica,
    StopReplica,
)
from skate.controlplane.decide.whole import decide
from skate.core.options import DeploymentOptions
from skate.core.specs import AppSpec, CodeRef, DeploymentSpec, LedgerReport, ServeStatus

DEPLOYMENTS, REPLICAS = 1000, 8
SHOWN = 125  # deployments of 8: the status of 1,000 replicas
ROUNDS = 20
TURNS_MAX = 20  # decisions until nothing is left to do
NOW = 1000.0


class World:
    """Applications of one deployment each, and all that is seen and remembered of them."""

    def __init__(self, deployments: int, replicas: int) -> None:
        goals: dict[str, Goal] = {}
        for number in range(deployments):
            name = f"app{number:04}"
            options = DeploymentOptions(num_replicas=replicas)
            spec = DeploymentSpec(name, "Model", CodeRef("m:C"), b"", options, version="v1")
            goals[name] = Goal(AppSpec(name, f"/{name}", "Model", (spec,)), 1, 0.0)
        self.desired = Desired(goals)
        self.observed = Observed()
        self.memory = Memory()
        self.settle()

    def settle(self) -> None:
        """Decides and performs until nothing is left to do."""
        for _ in range(TURNS_MAX):
            plan = decide(self.desired, self.observed, self.memory, NOW)
            self.memory = plan.memory
            if not plan.actions and not plan.changed:
                return
            groups = {key: dict(group) for key, group in self.observed.replicas.items()}
            for action in plan.actions:
                self._perform(action, groups)
            self.observed = replace(self.observed, replicas=groups)
        raise RuntimeError(f"{TURNS_MAX} decisions did not come to rest")

    def _perform(self, action: Any, groups: dict[str, dict[str, ReplicaSeen]]) -> None:
        if isinstance(action, StartReplica):
            config = self.desired.wanted[action.key].spec.config
            seen = ReplicaSeen(action.id, True, "ready", NOW, 1234, reported=True, config=config)
            groups.setdefault(action.key, {})[action.id] = seen
        elif isinstance(action, StopReplica):
            group = groups[action.id.rpartition("#")[0]]
            group[action.id] = replace(group[action.id], alive=False)
        elif isinstance(action, Forget):
            groups[action.id.rpartition("#")[0]].pop(action.id)

    def lose_one(self, key: str) -> Observed:
        """What is seen when a replica of one deployment has died."""
        group = dict(self.observed.replicas[key])
        id = next(iter(group))
        group[id] = replace(group[id], alive=False, exit_code=-9)
        return replace(self.observed, replicas={**self.observed.replicas, key: group})


def timed_ms(act: Callable[[], Any], rounds: int = ROUNDS) -> tuple[float, ...]:
    """Milliseconds of each round, the first of which is not counted."""
    found: list[float] = []
    act()
    gc.collect()
    for _ in range(rounds):
        began = perf_counter()
        act()
        found.append((perf_counter() - began) * 1000)
    return tuple(found)


def measure_decisions() -> Section:
    """A look at everything, at nothing, and at what changed."""
    world = World(DEPLOYMENTS, REPLICAS)
    desired, observed, memory = world.desired, world.observed, world.memory
    key = next(iter(desired.wanted))
    lost = world.lose_one(key)
    plan = decide(desired, lost, memory, NOW, {key})
    whole = decide(desired, lost, memory, NOW)
    if plan.actions != whole.actions or not plan.actions:
        raise RuntimeError(f"a decision about one deployment differs from one about all: {plan.actions}")
    figures = (
        Figure(
            "a decision about all, nothing changed",
            "ms",
            timed_ms(lambda: decide(desired, observed, memory, NOW)),
            target=Target(5.0, "<"),
        ),
        Figure(
            "one replica died, about its deployment", "ms", timed_ms(lambda: decide(desired, lost, memory, NOW, {key}))
        ),
        Figure("one replica died, about all", "ms", timed_ms(lambda: decide(desired, lost, memory, NOW))),
    )
    return Section(f"Decisions over {DEPLOYMENTS:,} deployments x {REPLICAS} replicas", figures)


def measure_status() -> Section:
    """The status of 1,000 replicas through the code that answers it: made, encoded, decoded."""
    world = World(SHOWN, REPLICAS)
    counts = {key: LedgerReport(accepted=1, ok=1) for key in world.desired.wanted}
    decoder = msgspec.msgpack.Decoder(ServeStatus)

    def make() -> ServeStatus:
        return serve_status(world.desired, {}, world.observed, world.memory, NOW, counts, 1)

    data = msgspec.msgpack.encode(make())
    shown = sum(
        len(one.replicas) for app in decoder.decode(data).applications.values() for one in app.deployments.values()
    )
    if shown != SHOWN * REPLICAS:
        raise RuntimeError(f"the status shows {shown} replicas")
    figures = (
        Figure(
            "made, encoded and decoded",
            "ms",
            timed_ms(lambda: decoder.decode(msgspec.msgpack.encode(make()))),
            target=Target(50.0, "<"),
        ),
        Figure("made", "ms", timed_ms(make)),
    )
    return Section(
        f"Status of {SHOWN * REPLICAS:,} replicas of {SHOWN} applications, in process",
        figures,
        details={"bytes": len(data)},
    )
