"""A world for the control plane to live in: processes that start, fail, crash and report late, all from one seed.

It does what an engine and replicas do, in a few lines and without time passing. Whatever the controller would lose
when it is killed (reports it heard, the plan it was performing) is lost here too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from skate.controlplane.decide.retire import last_that_worked
from skate.controlplane.decide.survey import key_of
from skate.controlplane.decide.values import (
    Action,
    Desired,
    Forget,
    Goal,
    Group,
    Memory,
    Observed,
    ProxySeen,
    Reconfigure,
    ReplicaSeen,
    StartProxy,
    StartReplica,
    StopProxy,
    StopReplica,
)
from skate.core.options import AutoscalingConfig, DeploymentOptions
from skate.core.specs import UNSURE_CONFIG, AppSpec, CodeRef, DeploymentSpec, ReplicaPhase

BAD = "bad"  # a version whose constructor always fails
SHAKY = "shaky"  # a version whose constructor fails now and then
BAD_CONFIG = "bad config"  # a configuration that running replicas refuse


def deployment(
    app: str, name: str, version: str = "v1", replicas: int = 1, config: str = "", **options: object
) -> DeploymentSpec:
    """A deployment as wanted."""
    values: dict[str, object] = {"num_replicas": replicas, **options}
    chosen = DeploymentOptions(**values)  # type: ignore[arg-type]
    return DeploymentSpec(app, name, CodeRef("m:C"), b"", chosen, version=version, config=config)


def goal(name: str, *deployments: DeploymentSpec, revision: int = 1, prefix: str | None = "", at: float = 0.0) -> Goal:
    """An application as wanted."""
    spec = AppSpec(name, f"/{name}" if prefix == "" else prefix, deployments[0].name, deployments)
    return Goal(spec, revision, at)


def grouped(seen: dict[str, ReplicaSeen]) -> dict[str, Group]:
    """Replicas by their deployment."""
    groups: dict[str, Group] = {}
    for id, one in seen.items():
        groups.setdefault(key_of(id), {})[id] = one
    return groups


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
    config: str = ""
    heard_config: str = ""
    telling: str = ""
    refused: str = ""
    tried: tuple[str, int, str] = ("", 0, "")  # whose start it was
    strikes: int = 0
    grace: float = 0.0  # what it gives its requests, and
    telling_grace: float = 0.0  # of what it is being told
    asked_at: float | None = None  # first told to stop

    def seen(self) -> ReplicaSeen:
        """As the controller of this moment sees it."""
        return ReplicaSeen(
            id=self.id,
            alive=self.alive,
            phase=self.heard or "starting",
            message=self.message if self.heard == "failed" else "",
            exit_code=self.exit_code,
            reported=self.heard is not None,
            config=self.heard_config,
            telling=self.telling,
            refused=self.refused,
            config_error="ValueError: refused" if self.refused else "",
            strikes=self.strikes,
            health_error="RuntimeError: unwell" if self.strikes else "",
        )


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
            replicas=grouped({one.id: one.seen() for one in self.replicas.values()}),
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
            wanted = desired.wanted[action.key]
            spec = wanted.former if action.former and wanted.former is not None else wanted.spec
            made = Process(action.id, spec.key, spec.version, config=spec.config)
            made.grace = spec.options.graceful_shutdown_timeout_s
            self.replicas[action.id] = made
            tried = (spec.key, wanted.goal.revision, spec.version)
            self.starts[tried] = self.starts.get(tried, 0) + 1
            self.replicas[action.id].tried = tried
        elif isinstance(action, Reconfigure):
            one = self.replicas[action.id]
            assert one.alive and one.heard == "ready", f"{action.id} is told a configuration and cannot hear it"
            spec = desired.wanted[action.key].spec
            one.telling, one.telling_grace = spec.config, spec.options.graceful_shutdown_timeout_s
        elif isinstance(action, StopReplica):
            one = self.replicas[action.id]
            if one.heard not in ("failed", "ready") and one.tried in self.starts:
                self.starts[one.tried] -= 1  # fewer are wanted: that one is not given the time to fail
            one.asked_at = self.now if one.asked_at is None else one.asked_at
            self._stop(one, action.grace_s)
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
            elif one.telling:
                self._take_up(one)
            elif not self.calm and chance.random() < 0.01:
                one.strikes += 1
            if one.heard == one.phase or self.calm or chance.random() < 0.7:
                one.heard_config = one.config
            if one.heard != one.phase and (self.calm or chance.random() < 0.7):
                one.heard = one.phase

    def _take_up(self, one: Process) -> None:
        """A configuration arrives, is refused by the user's code, or is lost with its connection."""
        drawn = self.chance.random()
        if one.telling == BAD_CONFIG and drawn < 0.8:
            one.refused, one.config, one.heard_config = one.telling, UNSURE_CONFIG, UNSURE_CONFIG
        elif drawn < 0.6 or self.calm:
            one.config = one.heard_config = one.telling
            one.grace = one.telling_grace
            one.refused = ""
        one.telling = ""

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
            one.telling = one.refused = one.heard_config = ""
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
            **random_config(chance, ["c1", "c2"] if calm else ["c1", "c2", BAD_CONFIG]),
            **random_scaling(chance),
        )
        for part in ("A", "B")[: chance.randint(1, 2)]
    )
    if before is not None and chance.random() < 0.3:
        deployments = before.spec.deployments
    made = goal(name, *deployments, revision=int(now * 1000), at=now)
    return replace(made, former=last_that_worked(before))


def random_config(chance: random.Random, names: list[str]) -> dict[str, Any]:
    """What a running replica takes up: the grace is part of it."""
    name, grace_s = chance.choice(names), chance.choice((0.0, 2.0, 20.0))
    config = name if name == BAD_CONFIG else f"{name}, grace {grace_s:g} s"
    return {"config": config, "graceful_shutdown_timeout_s": 20.0 if name == BAD_CONFIG else grace_s}


def random_scaling(chance: random.Random) -> dict[str, Any]:
    """Now and then the number follows the load."""
    if chance.random() < 0.6:
        return {}
    config = AutoscalingConfig(
        min_replicas=chance.randint(0, 2),
        max_replicas=chance.randint(2, 5),
        target_ongoing_requests=1.0,
        look_back_period_s=2.0,
        upscale_delay_s=chance.choice((0.0, 1.0)),
        downscale_delay_s=chance.choice((0.0, 3.0)),
    )
    return {"num_replicas": "auto", "autoscaling_config": config}


def forgotten(memory: Memory) -> Memory:
    """What is left when the store was lost."""
    return replace(Memory(), ending=memory.ending)
