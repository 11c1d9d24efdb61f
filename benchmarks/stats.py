"""Numbers of a sample. Law: pure; a percentile is a value that was measured (nearest rank), never one in between."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def percentile(sample: Sequence[float], percent: float) -> float:
    """The smallest measured value that at least ``percent`` per cent of the sample do not exceed.

    Raises ValueError for an empty sample or a percent outside of 0 to 100.
    """
    if not sample:
        raise ValueError("an empty sample has no percentiles")
    if not 0 <= percent <= 100:
        raise ValueError(f"a percentile lies between 0 and 100, not at {percent}")
    ordered = sorted(sample)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def median(sample: Sequence[float]) -> float:
    """The middle of the rounds. Raises ValueError for none."""
    if not sample:
        raise ValueError("no rounds, no median")
    return statistics.median(sample)
