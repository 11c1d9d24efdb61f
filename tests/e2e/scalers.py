"""An autoscaling policy as a user writes it; the controller imports it from here."""

from __future__ import annotations

from typing import Any

from skate.autoscaling import AutoscalingContext


class Steps:
    """Three replicas at first, and two after it has been asked some times; then it breaks."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def __call__(self, context: AutoscalingContext, memory: Any) -> tuple[float, Any]:
        if context.target_num_replicas == 2:
            raise RuntimeError("no more ideas")
        asked = (memory or 0) + 1
        return (3 if asked <= self.patience else 2), asked
