"""Policies as users write them, good and bad; imported by path."""

from __future__ import annotations

import threading
from typing import Any

from skate.autoscaling import AutoscalingContext

release = threading.Event()  # of those that hang


def counting(context: AutoscalingContext, memory: Any) -> tuple[float, Any]:
    calls = (memory or {"calls": 0})["calls"] + 1
    return context.total_num_requests / 2, {"calls": calls}


def scaled_by(context: AutoscalingContext, memory: Any, *, share: float) -> tuple[float, Any]:
    return context.total_num_requests * share, memory


class Remembering:
    """Made once: it counts in itself."""

    def __init__(self, start: int = 0) -> None:
        self.calls = start

    def __call__(self, context: AutoscalingContext, memory: Any) -> tuple[int, Any]:
        self.calls += 1
        return self.calls, None


def raising(context: AutoscalingContext, memory: Any) -> tuple[int, Any]:
    raise KeyError("no such metric")


def leaving(context: AutoscalingContext, memory: Any) -> tuple[int, Any]:
    raise SystemExit(3)


def hanging(context: AutoscalingContext, memory: Any) -> tuple[int, Any]:
    release.wait(30)
    return 3, None


def number_alone(context: AutoscalingContext, memory: Any) -> Any:
    return 3


def not_a_number(context: AutoscalingContext, memory: Any) -> Any:
    return float("nan"), None


def yes(context: AutoscalingContext, memory: Any) -> Any:
    return True, None


def strange_memory(context: AutoscalingContext, memory: Any) -> Any:
    return 1, object()


def large_memory(context: AutoscalingContext, memory: Any) -> Any:
    return 1, "x" * 100_000


def of_one(context: AutoscalingContext) -> Any:
    return 1, None


async def waiting(context: AutoscalingContext, memory: Any) -> Any:
    return 1, None
