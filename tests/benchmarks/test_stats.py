from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from benchmarks.stats import median, percentile

SAMPLES = some.lists(some.floats(0, 1e9), min_size=1, max_size=200)


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (25, 1), (26, 2), (50, 2), (75, 3), (76, 4), (99, 4), (100, 4)]
)
def test_a_percentile_is_a_measured_value(percent: float, expected: float) -> None:
    assert percentile([4, 2, 3, 1], percent) == expected


@given(SAMPLES, some.floats(0, 100))
def test_enough_of_the_sample_does_not_exceed_the_percentile(sample: list[float], percent: float) -> None:
    value = percentile(sample, percent)
    assert value in sample
    assert sum(one <= value for one in sample) >= percent / 100 * len(sample) - 1e-6


@given(SAMPLES)
def test_percentiles_grow_with_the_percent(sample: list[float]) -> None:
    values = [percentile(sample, percent) for percent in range(0, 101, 10)]
    assert values == sorted(values)
    assert values[0] == min(sample)
    assert values[-1] == max(sample)


@pytest.mark.parametrize("percent", [-1, 100.1])
def test_percentiles_out_of_range_are_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        percentile([1.0], percent)


def test_an_empty_sample_has_neither() -> None:
    with pytest.raises(ValueError, match="empty"):
        percentile([], 50)
    with pytest.raises(ValueError, match="no rounds"):
        median([])
