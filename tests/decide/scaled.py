"""What tests of the autoscaler share: a deployment that scales, loads, and a world that obeys the decisions."""

from __future__ import annotations

from typing import Any

import msgspec

from skate.controlplane.decide.autoscale import FULL, Capacity, Scaling, ScalingMemory, autoscale
from skate.controlplane.decide.load import Load
from skate.controlplane.decide.policy import Answer
from skate.core.options import deployment_options
from skate.core.specs import CodeRef, DeploymentSpec, ScalingDecision

START = 1000.0  # of the controller's clock
WALL = 1.7e9 - START  # added to it


def scaling(**config: Any) -> DeploymentSpec:
    """A deployment with this autoscaling_config; five replicas at most, when nothing is said."""
    config.setdefault("max_replicas", 5)
    options = deployment_options({"autoscaling_config": config, "max_ongoing_requests": 100})
    return DeploymentSpec("app", "D", CodeRef(), b"", options)


def steady(total: float, queued: float = 0.0, since: float = START - 1000.0) -> Load:
    """A load that has long been the same."""
    return Load().seen(since, total, queued, 0.0, 30.0)


def stored(memory: ScalingMemory) -> ScalingMemory:
    """The memory as a new controller finds it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(memory), type=ScalingMemory)


class World:
    """One deployment whose replicas are ready ``start_s`` after they were wanted. Time goes from wake to wake."""

    def __init__(self, spec: DeploymentSpec, start_s: float = 0.0, capacity: Capacity = FULL) -> None:
        self.spec = spec
        self.config = spec.options.autoscaling_config
        self.start_s, self.capacity = start_s, capacity
        self.now = START
        self.load = Load().seen(START, 0, 0, 0, 30)
        self.target: int | None = None
        self.memory: ScalingMemory | None = None
        self.ready: list[float] = []  # when each replica is ready
        self.said: Answer | None = None
        self.decisions: list[ScalingDecision] = []
        self.last: Scaling | None = None

    @property
    def current(self) -> int:
        return sum(at <= self.now for at in self.ready)

    def put(self, total: float, queued: float = 0.0, came: float = 0.0) -> Scaling:
        """The load is this from now on."""
        assert self.config is not None
        self.load = self.load.seen(self.now, total, queued, came, self.config.look_back_period_s)
        return self.decide()

    def look(self, at: float) -> Scaling:
        """What would be decided then; nothing is done."""
        return autoscale(
            self.spec,
            self.load,
            sum(ready <= at for ready in self.ready),
            self.target,
            self.memory,
            at,
            WALL + at,
            capacity=self.capacity,
            said=self.said,
        )

    def decide(self) -> Scaling:
        made = self.look(self.now)
        self.target, self.memory, self.last = made.target, made.memory, made
        self.ready = sorted(self.ready)[: made.target]
        self.ready += [self.now + self.start_s] * (made.target - len(self.ready))
        if made.decision is not None:
            self.decisions.append(made.decision)
        return made

    def wait(self, seconds: float) -> None:
        """Lets time pass; decides whenever it was asked for, or a replica became ready."""
        end, changed = self.now + seconds, True
        while True:
            made = self.decide() if changed else self.last
            assert made is not None
            changed = made.decision is not None
            if changed:
                continue  # replicas came or went
            wakes = [at for at in self.ready if at > self.now]
            if made.wake_at is not None:
                wakes.append(made.wake_at)
            if not wakes or min(wakes) > end:
                break
            self.now, changed = max(self.now, min(wakes)), True
        self.now = end

    def restart(self) -> None:
        """The controller ends and another one begins with what is stored; it hears the load again."""
        if self.memory is not None:
            self.memory = stored(self.memory)
        last = self.load.points[-1] if self.load.points else None
        self.load = Load(complete_at=self.now + 2.0)
        if last is not None:
            self.put(last.total, last.queued, 0.0)
