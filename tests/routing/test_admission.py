"""Queue or refuse, and what a refused caller is told."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.dataplane.routing.admission import Outflow, may_queue, retries_of, retry_after_s

times = st.lists(st.tuples(st.floats(0, 30), st.integers(0, 1000)), min_size=1, max_size=20)


@given(st.integers(0, 10**6), st.none() | st.floats(0, 1e9))
def test_the_advice_is_a_whole_number_of_seconds_from_1_to_60(queued: int, per_s: float | None) -> None:
    seconds = retry_after_s(queued, per_s)
    assert seconds == int(seconds) and 1 <= seconds <= 60


@pytest.mark.parametrize(
    ("queued", "per_s", "seconds"),
    [(100, None, 1), (100, 50.0, 2), (101, 50.0, 3), (3, 100.0, 1), (5, 0.0, 60), (0, 0.0, 60)],
)
def test_it_is_the_time_to_serve_what_waits(queued: int, per_s: float | None, seconds: float) -> None:
    assert retry_after_s(queued, per_s) == seconds


@given(times)
def test_the_pace_is_measured_between_refusals_that_are_neither_too_near_nor_too_far(
    steps: list[tuple[float, int]],
) -> None:
    pace, now, ended = Outflow(), 100.0, 0
    for passed, more in steps:
        now, ended = now + passed, ended + more
        before, pace = pace, pace.seen(now, ended)
        if now - before.at < 1:
            assert pace is before
        elif now - before.at > 10:
            assert pace.per_s is None and pace.at == now
        else:
            assert pace.per_s == pytest.approx((ended - before.ended) / (now - before.at))
        assert pace.per_s is None or 0 <= pace.per_s < math.inf


def test_places_in_the_queue() -> None:
    assert may_queue(2, 3) and not may_queue(3, 3) and may_queue(99_999, -1) and not may_queue(100_000, -1)


def test_retries_by_method() -> None:
    assert (retries_of(3, "x"), retries_of({"x": 2}, "x"), retries_of({"x": 2}, "y")) == (3, 2, 0)
