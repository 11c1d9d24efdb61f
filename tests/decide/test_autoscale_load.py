"""The load of a deployment: one sum over routers, one bounded window, and numbers as a second way of counting says."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.controlplane.decide.load import (
    GRAINS,
    POINTS_MAX,
    SETTLE_S,
    Aggregation,
    Demand,
    Load,
    LoadPoint,
    Loads,
    Window,
    demand,
)
from skate.core.specs import Counts, LedgerReport

KEEP_S = 30.0


def report(queued: int = 0, placed: int = 0, ended: int = 0) -> LedgerReport:
    open = queued + placed
    return LedgerReport(accepted=open + ended, open=open, ok=ended, queued=queued, started=placed)


# -- the sum --------------------------------------------------------------------------------------


def test_the_load_is_the_sum_over_routers_and_follows_each_change() -> None:
    loads = Loads(0.0)
    first = loads.watch("a/D", KEEP_S, 1.0)
    assert first.total == 0 and first.complete_at == SETTLE_S
    assert loads.report(1, {"a/D": report(2, 3), "a/E": report(9)}, 2.0) == {"a/D"}
    assert loads.report(2, {"a/D": report(0, 1)}, 3.0) == {"a/D"}
    assert loads.report(2, {"a/D": report(0, 1)}, 4.0) == set()
    assert loads.watch("a/D", KEEP_S, 5.0).points[-1] == LoadPoint(3.0, 6, 2, 6, 6, 6)
    assert loads.report(1, {"a/D": report(0, 0, 5)}, 6.0) == {"a/D"}
    assert loads.watch("a/D", KEEP_S, 7.0).total == 1


def test_a_router_that_is_gone_has_no_calls_any_more() -> None:
    loads = Loads(0.0)
    loads.watch("a/D", KEEP_S, 0.0)
    loads.report(1, {"a/D": report(2, 3), "a/E": report(1)}, 1.0)
    loads.report(2, {"a/D": report(1)}, 2.0)
    assert loads.left(1, 3.0) == {"a/D"} and loads.watch("a/D", KEEP_S, 3.0).total == 1
    assert loads.left(1, 4.0) == set() == loads.left(7, 4.0)


def test_calls_that_came_are_counted_once_also_when_a_router_comes_back() -> None:
    loads = Loads(0.0)
    loads.watch("a/D", KEEP_S, 0.0)
    loads.report(1, {"a/D": report(1, 0, 1000)}, 1.0)  # it is old, and this controller is new
    loads.report(1, {"a/D": report(1, 0, 1005)}, 2.0)
    loads.left(1, 3.0)
    loads.report(2, {"a/D": report(2, 0, 1005)}, 4.0)
    assert loads.watch("a/D", KEEP_S, 4.0).points[-1].came == 1 + 5 + 2


def test_who_is_not_watched_leaves_nothing_behind() -> None:
    loads = Loads(0.0)
    for connection in range(50):
        loads.report(connection, {f"a/{connection}": report(1)}, 1.0)
    loads.watch("a/3", KEEP_S, 2.0)
    assert loads.watch("a/3", KEEP_S, 2.0).total == 1 and loads.watched() == {"a/3"}
    for connection in range(50):
        loads.left(connection, 3.0)
    loads.forget("a/3")
    loads.forget("a/never")
    assert not loads._sums and not loads._live and not loads._windows and not loads._keep_s


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from("DE"), st.integers(0, 5), st.integers(0, 5), st.integers(0, 9)),
        max_size=30,
    )
)
def test_the_sum_is_what_adding_up_gives(words: list[tuple[int, str, int, int, int]]) -> None:
    loads, said = Loads(0.0), dict[int, Counts]()
    for key in "DE":
        loads.watch(key, KEEP_S, 0.0)
    for moment, (connection, key, queued, placed, kind) in enumerate(words, 1):
        if kind == 9:
            said.pop(connection, None)
            loads.left(connection, float(moment))
        else:
            said.setdefault(connection, {})[key] = report(queued, placed)
            loads.report(connection, {key: report(queued, placed)}, float(moment))
        for each in "DE":
            last = loads.watch(each, KEEP_S, float(moment)).points[-1]
            reports = [counts[each] for counts in said.values() if each in counts]
            assert last.total == sum(one.open for one in reports)
            assert last.queued == sum(one.queued for one in reports)


# -- the window -----------------------------------------------------------------------------------


curves = st.lists(st.tuples(st.sampled_from([0.01, 0.5, 1.0, 7.0, 31.0]), st.integers(0, 100)), min_size=1, max_size=20)


def loaded(curve: list[tuple[float, int]], start: float = 100.0) -> tuple[Load, float]:
    load, now = Load(), start
    for seconds, total in curve:
        load = load.seen(now, total, total / 2, 0, KEEP_S)
        now += seconds
    return load, now


@given(curves, st.sampled_from(["mean", "max", "min"]), st.floats(0, 40))
def test_a_window_is_reduced_as_a_step_function(
    curve: list[tuple[float, int]], how: Aggregation, later_s: float
) -> None:
    load, now = loaded(curve)
    now += later_s
    start = max(100.0, now - KEEP_S)
    begins = list(itertools.accumulate([seconds for seconds, _ in curve], initial=100.0))
    parts = [
        (min(now, end) - max(start, begin), total)
        for begin, end, (_, total) in zip(begins, [*begins[1:-1], now], curve, strict=False)
        if min(now, end) - max(start, begin) > 1e-9
    ]
    span_s = sum(part for part, _ in parts)
    seen = demand(load, KEEP_S, how, now)
    mean = sum(part * total for part, total in parts) / span_s
    expected = {"mean": mean, "max": max(t for _, t in parts), "min": min(t for _, t in parts)}[how]
    assert seen.total == pytest.approx(expected, abs=1e-6)
    assert seen.queued == pytest.approx(min(mean / 2, expected), abs=1e-6)
    assert seen.ongoing + seen.queued == pytest.approx(seen.total)


@given(st.integers(0, 2**32), st.integers(300, 1500))
def test_a_window_is_bounded_and_keeps_mean_most_and_least(seed: int, count: int) -> None:
    load, exact = Load(), list[tuple[float, int]]()
    for index in range(count):
        total = (seed * (index + 1) * 2654435761 >> 7) % 50
        at = index * 0.05
        load = load.seen(at, total, 0, index, KEEP_S)
        exact.append((at, total))
        assert len(load.points) <= POINTS_MAX
    now = exact[-1][0] + 0.05
    inside = [total for at, total in exact if at >= now - KEEP_S - 1e-9]
    grain = 50 * KEEP_S / GRAINS / min(KEEP_S, now)
    assert demand(load, KEEP_S, "mean", now).total == pytest.approx(sum(inside) / len(inside), abs=grain)
    assert demand(load, KEEP_S, "max", now).total >= max(inside)
    assert demand(load, KEEP_S, "min", now).total <= min(inside)
    assert demand(load, KEEP_S, "mean", now).requests_per_s == pytest.approx(20, rel=0.1)


@given(curves, st.floats(0, 1), st.floats(0, 1))
def test_between_two_turns_the_mean_moves_in_one_direction_and_then_rests(
    curve: list[tuple[float, int]], one: float, two: float
) -> None:
    load, now = loaded(curve)
    moments = [now, *Window(load).turns(KEEP_S, now, 1000)]
    for begin, end in itertools.pairwise(moments):
        places = [begin, *(begin + part * (end - begin) for part in sorted((one, two))), end]
        means = [demand(load, KEEP_S, "mean", place).total for place in places]
        rises = [later - earlier for earlier, later in itertools.pairwise(means)]
        assert all(rise >= -1e-6 for rise in rises) or all(rise <= 1e-6 for rise in rises)
    rest = moments[-1]
    assert demand(load, KEEP_S, "mean", rest + 1e6).total == pytest.approx(demand(load, KEEP_S, "mean", rest).total)


def test_a_window_without_a_past_is_what_was_said_last() -> None:
    assert demand(Load(), KEEP_S, "mean", 5.0) == Demand()
    load = Load().seen(10.0, 4, 3, 0, KEEP_S)
    for now in (10.0, 3.0):  # at the same moment; after the machine started again
        assert demand(load, KEEP_S, "mean", now) == Demand(4, 3, 0)
    assert load.seen(2.0, 5, 0, 0, KEEP_S).total == 5
