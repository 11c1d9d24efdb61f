"""Policies: how many replicas a deployment needs. Law: a pure function ``(context, memory) -> (number, memory)``.

The number may be a fraction; factors, delays and bounds are applied around it, whoever it comes from. ``memory`` is
plain data that the policy gets back the next time, also after a restart of the controller; the first time it is None.
A policy of a user's own runs elsewhere (``controlplane.policies``): what it said comes here as an ``Answer``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from skate.core.scaling import PUBLIC, AutoscalingConfig, AutoscalingPolicy


class AutoscalingContext(msgspec.Struct, frozen=True):
    """What a policy goes by. Requests are averaged over ``look_back_period_s``; times are seconds since 1970."""

    app_name: str
    deployment_name: str
    current_num_replicas: int  # that are ready
    target_num_replicas: int  # that are wanted so far
    total_num_requests: float  # in routers and replicas
    total_queued_requests: float  # those of them that wait in routers
    total_running_requests: float  # those of them that replicas have
    requests_per_s: float  # that came
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int
    current_time: float
    config: AutoscalingConfig
    last_scale_up_time: float | None = None
    last_scale_down_time: float | None = None


class Answer(msgspec.Struct, frozen=True):
    """What a policy said, or why it said nothing. ``asked_at``: by the controller's clock."""

    policy: AutoscalingPolicy
    asked_at: float
    number: float = 0.0
    memory: Any = None
    error: str = ""


Policy = Callable[..., tuple[float, Any]]


def default_autoscaling_policy(context: AutoscalingContext, memory: Any) -> tuple[float, Any]:
    """As many replicas as give each ``target_ongoing_requests``, waiting ones included."""
    if not context.current_num_replicas:  # they are on their way
        return context.target_num_replicas, memory
    return context.total_num_requests / context.config.target_ongoing_requests, memory


def requests_per_second_policy(
    context: AutoscalingContext, memory: Any, *, target_per_replica: float
) -> tuple[float, Any]:
    """As many replicas as give each ``target_per_replica`` new requests per second, however long one takes."""
    if not target_per_replica > 0:
        raise ValueError(f"target_per_replica={target_per_replica!r}: takes a number > 0")
    if not context.current_num_replicas:
        return context.target_num_replicas, memory
    return context.requests_per_s / target_per_replica, memory


BUILT_IN: dict[str, Policy] = {
    f"{PUBLIC}:{policy.__name__}": policy for policy in (default_autoscaling_policy, requests_per_second_policy)
}


def checked(said: Any) -> tuple[float, Any]:
    """What a policy returned, if it is of the right kind. Raises ``TypeError`` with what is wrong."""
    if not isinstance(said, tuple) or len(said) != 2:
        raise TypeError(f"it returned {type(said).__name__}, and not a pair (number of replicas, memory)")
    number, memory = said
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise TypeError(f"it wants {str(number)[:80]!r} replicas, which is no finite number")
    return float(number), memory


def ask(config: AutoscalingConfig, context: AutoscalingContext, memory: Any, now: float) -> Answer:
    """Asks a policy that is built in."""
    policy = config.policy
    try:
        number, memory = checked(BUILT_IN[policy.policy_function](context, memory, **policy.policy_kwargs))
    except (TypeError, ValueError, ArithmeticError) as error:
        return Answer(policy, now, memory=memory, error=f"{policy.policy_function}: {error}")
    return Answer(policy, now, number, memory)
