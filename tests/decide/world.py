"""A world for the control plane to live in: processes that start, fail, crash and report late, all from one seed.

It does what an engine and replicas do, in a few lines and without time passing. Whatever the controller would lose
when it is killed (reports it heard, the plan it was performing) is lost here too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from msgspec.structs import replace

from skate.controlplane.decide.values import (
    Action,
    Desired,
    Forget,
    Goal,
    Memory,
    Observed,
    ProxySeen,
    ReplicaSeen,
    StartProxy,
    StartReplica,
    StopProxy,
    StopReplica,
)
from skate.core.options import DeploymentOptions
from skate.core.specs import AppSpec, CodeRef, DeploymentSpec, ReplicaPhase

BAD = "bad"  # a version whose constructor always fails
SHAKY = "shaky"  # a version whose constructor fails now and then


def deployment(app: str, name: str, version: str = "v1", replicas: int = 1, **options: object) -> DeploymentSpec:
    """A deployment as wanted."""
    values: dict[str, object] = {"num_replicas": replicas, **options}
    chosen = DeploymentOptions(**values)  # type: ignore[arg-type]
    return DeploymentSpec(app, name, CodeRef("m:C"), b"", chosen, version=version)


def goal(name: str, *deployments: DeploymentSpec, revision: int = 1, prefix: str | None = "", at: float = 0.0) -> Goal:
    """An application as wanted."""
    spec = AppSpec(name, f"/{name}" if prefix == "" else prefix, deployments[0].name, deployments)
    return Goal(spec, revision, at)


@dataclass
class Process:
    """A process of the world, with what the controller of this moment has heard of it."""

    id: str
    key: str = ""
    version: str = ""
    phase: ReplicaPhase = "starting"
    alive: bool = True
    exit_code: int | None = None
    message: str = ""
    stop_at: float | None = None  # when it will be killed
    heard: ReplicaPhase | None = None
    ran: bool = False


@dataclass
class World:
    """Everything outside of the decision."""

    seed: int
    now: float = 100.0
    replicas: dict[str, Process] = field(default_factory=dict)
    proxies: dict[str, Process] = field(default_factory=dict)
    found: frozenset[str] = frozenset()
    started_at: float = 0.0
    calm: bool = False
    starts: dict[tuple[str, int, str], int] = field(default_factory=dict)  # by key, revision, version

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    # -- what the engine shows and does ---------------------------------------------------------

    def observed(self) -> Observed:
        """One complete look."""
        return Observed(
            replicas={
                one.id: ReplicaSeen(
                    id=one.id,
                    alive=one.alive,
                    phase=one.heard or "starting",
                    message=one.message if one.heard == "failed" else "",
                    exit_code=one.exit_code,
                    reported=one.heard is not None,
                )
                for one in self.replicas.values()
            },
            proxies={
                one.id: ProxySeen(one.id, one.alive, "ready" if one.phase == "ready" else "starting")
                for one in self.proxies.values()
            },
            found=self.found,
            started_at=self.started_at,
        )

    def perform(self, action: Action, desired: Desired) -> None:
        """Does what the engine would; refuses what it would refuse."""
        if isinstance(action, StartReplica):
            assert action.id not in self.replicas, f"{action.id} is started twice"
            wanted = desired.apps[action.app]
            spec = next(one for one in wanted.spec.deployments if one.name == action.deployment)
            self.replicas[action.id] = Process(action.id, spec.key, spec.version)
            tried = (spec.key, wanted.revision, spec.version)
            self.starts[tried] = self.starts.get(tried, 0) + 1
        elif isinstance(action, StopReplica):
            self._stop(self.replicas[action.id], action.grace_s)
        elif isinstance(action, StartProxy):
            assert action.id not in self.proxies, f"proxy {action.id} is started twice"
            self.proxies[action.id] = Process(action.id)
        elif isinstance(action, StopProxy):
            self._stop(self.proxies[action.id], action.grace_s)
        elif isinstance(action, Forget):
            kind = self.replicas if action.role == "replica" else self.proxies
            assert not kind[action.id].alive, f"{action.id} is forgotten alive"
            del kind[action.id]

    def _stop(self, process: Process, grace_s: float) -> None:
        assert process.alive, f"{process.id} is dead and told to stop"
        process.stop_at = min(self.now + grace_s, process.stop_at if process.stop_at is not None else 1e12)

    # -- what happens by itself -----------------------------------------------------------------

    def pass_time(self, until: float | None = None) -> None:
        """A moment later: constructors end, reports arrive, some die."""
        chance = self.chance
        self.now = until if until is not None else self.now + chance.choice((0.01, 0.05, 0.3, 1.0, 4.0))
        for one in [*self.replicas.values(), *self.proxies.values()]:
            if not one.alive:
                continue
            if one.stop_at is not None:
                self._leave(one)
            elif one.phase == "failed":
                if self.calm or chance.random() < 0.5:
                    self._die(one, 1)
            elif one.phase != "ready":
                self._construct(one)
            elif not self.calm and chance.random() < 0.02:
                self._die(one, -9)
            if one.heard != one.phase and (self.calm or chance.random() < 0.7):
                one.heard = one.phase

    def _construct(self, one: Process) -> None:
        drawn = self.chance.random()
        if drawn < 0.2:
            one.phase = "loading"
        elif drawn < 0.7 or self.calm:
            fails = one.version == BAD or (one.version == SHAKY and not self.calm and self.chance.random() < 0.5)
            if fails and self.chance.random() < 0.5:
                self._die(one, 1)
            elif fails:
                one.phase, one.message = "failed", "ValueError: no"
            else:
                one.phase, one.ran = "ready", True
        elif drawn < 0.72:
            self._die(one, -11)

    def _leave(self, one: Process) -> None:
        assert one.stop_at is not None
        if self.now >= one.stop_at or self.chance.random() < 0.4:
            self._die(one, 0 if self.now < one.stop_at else -9)
        elif one.phase == "ready" and self.chance.random() < 0.5:
            one.phase = "draining"

    def _die(self, one: Process, code: int) -> None:
        one.alive, one.exit_code = False, code

    def new_controller(self) -> None:
        """The controller was killed: what it heard is lost, the processes live on."""
        for one in self.replicas.values():
            one.heard = None
        self.found = frozenset(one.id for one in self.replicas.values() if one.alive)
        self.started_at = self.now


def random_goal(chance: random.Random, name: str, before: Goal | None, now: float, calm: bool) -> Goal:
    """A deploy of that application: one or two deployments, another version, another number, or just again."""
    versions = ["v1", "v2", "v3"] if calm else ["v1", "v2", "v3", BAD, SHAKY]
    deployments = tuple(
        deployment(
            name,
            part,
            chance.choice(versions),
            chance.randint(1, 5),
            max_surge_percent=chance.choice((0, 50)),
            graceful_shutdown_timeout_s=chance.choice((0.0, 2.0, 20.0)),
        )
        for part in ("A", "B")[: chance.randint(1, 2)]
    )
    if before is not None and chance.random() < 0.3:
        deployments = before.spec.deployments
    revision = before.revision + 1 if before is not None else 1
    return goal(name, *deployments, revision=revision, at=now)


def forgotten(memory: Memory) -> Memory:
    """What is left when the store was lost."""
    return replace(Memory(), ending=memory.ending)
