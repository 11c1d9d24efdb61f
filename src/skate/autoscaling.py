"""Scaling with the load: ``from skate.autoscaling import AutoscalingConfig, requests_per_second_policy, simulate``.

Law: nothing is decided here; the rules stand in ``controlplane/decide/autoscale`` and the built-in policies in
``controlplane/decide/policy``. ``simulate`` runs the same rules over a recorded load, without an instance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from skate.controlplane.decide.autoscale import Scaling, ScalingMemory, autoscale
from skate.controlplane.decide.load import Load
from skate.controlplane.decide.policy import (
    Answer,
    AutoscalingContext,
    Policy,
    checked,
    default_autoscaling_policy,
    requests_per_second_policy,
)
from skate.core.errors import OptionError
from skate.core.options import deployment_options
from skate.core.scaling import AutoscalingConfig, AutoscalingPolicy
from skate.core.specs import CodeRef, DeploymentSpec, ScalingDecision

__all__ = [
    "AutoscalingConfig",
    "AutoscalingContext",
    "AutoscalingPolicy",
    "ScalingDecision",
    "default_autoscaling_policy",
    "requests_per_second_policy",
    "simulate",
]

STEPS_MAX = 1_000_000  # decisions of one simulation
LIMITLESS = 2**31  # max_ongoing_requests of what is simulated: its load is given


def simulate(
    config: AutoscalingConfig | Mapping[str, Any],
    trace: Iterable[tuple[float, float]],
    *,
    policy: Policy | None = None,
    start_s: float = 0.0,
    until: float | None = None,
) -> list[ScalingDecision]:
    """What the autoscaler would have decided under a recorded load.

    ``config``: as in ``autoscaling_config=``. ``trace``: pairs (seconds, requests that are open then, waiting ones
    included), in the order of time; each holds until the next. ``policy``: a function that stands in for the
    configured one, for policies of your own. ``start_s``: how long a replica takes to become ready. ``until``: when to
    stop looking, in seconds; by default with the last point, so put one where the trace ends.

    Gives every change with its reason, ``at`` in the seconds of the trace. Raises OptionError for a configuration that
    a deploy would refuse, ValueError for a trace that goes back in time.
    """
    options = deployment_options(
        {"autoscaling_config": config, "max_ongoing_requests": LIMITLESS}, where="simulate", stacklevel=0
    )
    points = list(trace)
    if any(later[0] < earlier[0] for earlier, later in pairwise(points)):
        raise ValueError("simulate: the trace goes back in time; sort its points by their seconds.")
    if not points:
        return []
    spec = DeploymentSpec("simulated", "deployment", CodeRef(), b"", options)
    return _Run(spec, policy, start_s).through(points, points[-1][0] if until is None else until)


class _Run:
    """One simulation: the state between two decisions."""

    def __init__(self, spec: DeploymentSpec, policy: Policy | None, start_s: float) -> None:
        config = spec.options.autoscaling_config
        assert config is not None
        self.spec, self.config, self.policy, self.start_s = spec, config, policy, start_s
        self.load = Load()
        self.target: int | None = None
        self.memory: ScalingMemory | None = None
        self.ready: list[float] = []  # when each replica is or was ready
        self.said: Answer | None = None
        self.decisions: list[ScalingDecision] = []
        self.steps = 0

    def through(self, points: list[tuple[float, float]], until: float) -> list[ScalingDecision]:
        came = 0.0
        for index, (at, total) in enumerate(points):
            if at > until:
                break
            came += max(0.0, total - self.load.total)
            self.load = self.load.seen(at, total, 0.0, came, self.config.look_back_period_s)
            end = points[index + 1][0] if index + 1 < len(points) else until
            self._rest(at, min(end, until), whole=index + 1 == len(points))
        return self.decisions

    def _rest(self, now: float, end: float, whole: bool) -> None:
        """Decides ``now`` and whenever it is asked for, before ``end``, or at it when that is ``whole``."""
        while now < end or (whole and now == end):
            self.steps += 1
            if self.steps > STEPS_MAX:
                raise OptionError(f"simulate: more than {STEPS_MAX} decisions; take a shorter trace.")
            made = self._decide(now)
            coming = [ready for ready in self.ready if ready > now]
            wakes = [*coming, *([] if made.wake_at is None else [made.wake_at])]
            if made.decision is not None:
                wakes.append(now)
            if not wakes:
                return
            now = max(now, min(wakes))

    def _decide(self, now: float) -> Scaling:
        current = sum(ready <= now for ready in self.ready)
        made = autoscale(self.spec, self.load, current, self.target, self.memory, now, now, said=self.said)
        if made.ask is not None and self.policy is not None:
            memory = made.memory.policy_memory
            number, memory = checked(self.policy(made.ask, memory, **self.config.policy.policy_kwargs))
            self.said = Answer(self.config.policy, now, number, memory)
            made = autoscale(self.spec, self.load, current, self.target, self.memory, now, now, said=self.said)
        self.target, self.memory = made.target, made.memory
        self.ready = sorted(self.ready)[: made.target]
        self.ready += [now + self.start_s] * (made.target - len(self.ready))
        if made.decision is not None:
            self.decisions.append(made.decision)
        return made
