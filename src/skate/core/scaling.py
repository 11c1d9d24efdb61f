"""The options of autoscaling: bounds and pace of the number of replicas, and who decides.

Law: a part of ``core.options`` and declared like everything there; names, meanings and defaults are Ray Serve's. What
contradicts itself is refused when it is written down, so that no deployment waits for a number that cannot come.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated as A
from typing import Any, Literal

import msgspec

from skate.core.checks import PLAIN, Check, Option, mapping, number, one_of, struct, target, whole

AUTO_MAX_REPLICAS = 100  # of num_replicas="auto", as in Ray Serve
PUBLIC = "skate.autoscaling"  # where users find what is built in
DEFAULT_POLICY = f"{PUBLIC}:default_autoscaling_policy"
HOMES = (PUBLIC, "skate.controlplane.decide.policy")  # modules that the built-in policies are imported from
_ELSEWHERE = "ray.serve.autoscaling_policy:default_autoscaling_policy"  # a file of Ray Serve may spell it out


def _read_policy(value: Any) -> Any:
    path: str = target().read(value)
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if module in HOMES:
        return f"{PUBLIC}:{name}"
    return DEFAULT_POLICY if path == _ELSEWHERE else path


POLICY = Check(target().bounds, _read_policy)


class AutoscalingPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who decides how many replicas there should be."""

    policy_function: A[str, Option(POLICY, "Function or class that says how many replicas there should be.")] = (
        DEFAULT_POLICY
    )
    policy_kwargs: A[dict[str, Any], Option(mapping(PLAIN), "Its keyword arguments; those of a class make it.")] = {}


def _factor(about: str) -> Option:
    return Option(number(0, above=True, none=True), about)


def _span(about: str) -> Option:
    return Option(number(0, above=True), about, "s")


def _delay(about: str) -> Option:
    return Option(number(0), about, "s")


class AutoscalingConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """Bounds and pace of the number of replicas. In all that was checked ``max_replicas`` is a number."""

    min_replicas: A[
        int, Option(whole(0), "Never fewer replicas than this; 0: none while there is no call.", "replicas")
    ] = 1
    initial_replicas: A[
        int | None, Option(whole(0, also=(None,)), "Replicas at the first deploy; None: min_replicas.", "replicas")
    ] = None
    max_replicas: A[
        int | None,
        Option(
            whole(1, also=(None,)), "Never more than this; None: 1, and 100 beside num_replicas='auto'.", "replicas"
        ),
    ] = None
    target_ongoing_requests: A[
        float, Option(number(0, above=True), "Requests per replica to aim at, waiting ones included.", "requests")
    ] = 2.0
    metrics_interval_s: A[float, _span("Accepted and not needed: load is told when it changes.")] = 10.0
    look_back_period_s: A[float, _span("Load is averaged over this.")] = 30.0
    smoothing_factor: A[float, Option(number(0, above=True), "Deprecated: both factors at once.")] = 1.0
    upscale_smoothing_factor: A[float | None, _factor("Deprecated: same as upscaling_factor.")] = None
    downscale_smoothing_factor: A[float | None, _factor("Deprecated: same as downscaling_factor.")] = None
    upscaling_factor: A[float | None, _factor("Weight of every step up; None: 1.")] = None
    downscaling_factor: A[float | None, _factor("Weight of every step down; None: 1.")] = None
    upscale_delay_s: A[float, _delay("More replicas must be wanted for this long.")] = 30.0
    downscale_delay_s: A[float, _delay("Fewer replicas must be wanted for this long.")] = 600.0
    downscale_to_zero_delay_s: A[
        float | None, Option(number(0, none=True), "The same for the last replica; None: downscale_delay_s.", "s")
    ] = None
    aggregation_function: A[
        Literal["mean", "max", "min"], Option(one_of("mean", "max", "min"), "How the window becomes one number.")
    ] = "mean"
    policy: A[AutoscalingPolicy, Option(struct(AutoscalingPolicy), "Who decides.")] = AutoscalingPolicy()

    @property
    def most(self) -> int:
        """``max_replicas`` as a number."""
        return 1 if self.max_replicas is None else self.max_replicas

    @property
    def first(self) -> int:
        """Replicas at the first deploy."""
        return self.min_replicas if self.initial_replicas is None else self.initial_replicas

    @property
    def up(self) -> float:
        """Weight of a step up, whatever name it was given under."""
        return self.upscaling_factor or self.upscale_smoothing_factor or self.smoothing_factor

    @property
    def down(self) -> float:
        """Weight of a step down, whatever name it was given under."""
        return self.downscaling_factor or self.downscale_smoothing_factor or self.smoothing_factor

    @property
    def aim(self) -> float | None:
        """Requests per replica that the default policy aims at; None for other policies."""
        return self.target_ongoing_requests if self.policy.policy_function == DEFAULT_POLICY else None

    @property
    def to_zero_delay_s(self) -> float:
        """How long no replica must be wanted before the last one goes."""
        zero = self.downscale_to_zero_delay_s
        return self.downscale_delay_s if zero is None else zero

    def contradictions(self) -> Iterator[tuple[str, str]]:
        least, most, first = self.min_replicas, self.max_replicas, self.initial_replicas
        if first is not None and first < least:
            yield "initial_replicas", f"a whole number >= min_replicas, which is {least}"
        if most is None:  # asked again when it is known whether num_replicas is 'auto'
            return
        if most < least:
            yield "max_replicas", f"a whole number >= min_replicas, which is {least}"
        if first is not None and first > most:
            yield "initial_replicas", f"a whole number from {least} to {most} (max_replicas)"
