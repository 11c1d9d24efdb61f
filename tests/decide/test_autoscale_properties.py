"""What holds for every configuration and every load: bounds, rest, honest wakes, and one number whatever restarts."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.autoscaling import simulate
from skate.controlplane.decide.autoscale import FULL, Capacity, bounds_of
from skate.controlplane.decide.load import POINTS_MAX
from skate.core.errors import OptionError
from tests.decide.scaled import START, WALL, World, scaling

SEEDS = 100
PRECISION_S = 1e-5  # of a wall time

delays = st.sampled_from([0.0, 0.05, 1.0, 7.0, 30.0])
factors = st.sampled_from([None, 0.1, 0.5, 1.0, 2.0, 3.0])
totals = st.sampled_from([0.0, 1.0, 3.0, 4.0, 10.0, 37.0, 1000.0])
steps = st.tuples(totals, st.sampled_from([0.0, 0.3, 1.0, 5.0, 40.0]))


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    least = draw(st.integers(0, 4))
    most = draw(st.integers(max(1, least), 30))
    return {
        "min_replicas": least,
        "max_replicas": most,
        "initial_replicas": draw(st.none() | st.integers(least, most)),
        "target_ongoing_requests": draw(st.sampled_from([0.5, 1.0, 2.0, 3.0])),
        "look_back_period_s": draw(st.sampled_from([0.2, 2.0, 30.0])),
        "upscale_delay_s": draw(delays),
        "downscale_delay_s": draw(delays),
        "downscale_to_zero_delay_s": draw(st.none() | delays),
        "upscaling_factor": draw(factors),
        "downscaling_factor": draw(factors),
        "aggregation_function": draw(st.sampled_from(["mean", "max", "min"])),
    }


worlds = st.builds(
    World, configs().map(lambda given: scaling(**given)), st.sampled_from([0.0, 0.4, 3.0]), st.just(FULL)
)


def played(world: World, curve: list[tuple[float, float]]) -> World:
    world.decide()
    for total, seconds in curve:
        world.put(total, queued=total / 3)
        world.wait(seconds)
    return world


@given(worlds, st.lists(steps, max_size=8), st.sampled_from([None, 0.0, 10.0, 50.0, 100.0]))
def test_the_number_never_leaves_its_bounds(world: World, curve: list[tuple[float, float]], percent: float) -> None:
    world.capacity = Capacity(percent)
    played(world, curve)
    assert world.config is not None
    bounds = bounds_of(world.config, world.capacity)
    for decision in world.decisions:
        assert bounds.least <= decision.after <= bounds.most and decision.before != decision.after and decision.reason
    assert world.target is not None and bounds.least <= world.target <= bounds.most


@given(worlds, st.lists(steps, max_size=5), totals)
def test_a_constant_load_comes_to_rest_at_what_it_needs(
    world: World, curve: list[tuple[float, float]], total: float
) -> None:
    played(world, curve)
    config = world.config
    assert config is not None
    world.put(total)
    world.wait(100_000)
    needed = -int(-total / config.target_ongoing_requests // 1)
    if world.target != 0 or total:  # from zero nothing is asked for
        assert world.target == bounds_of(config).clip(needed)
    assert world.last is not None and world.last.wake_at is None and world.last.status.waiting == ""
    settled = len(world.decisions)
    world.wait(100_000)
    assert len(world.decisions) == settled


@given(worlds, totals, totals)
def test_a_constant_load_never_makes_the_number_swing(world: World, before: float, total: float) -> None:
    played(world, [(before, 10_000)])
    count = len(world.decisions)
    world.put(total)
    world.wait(100_000)
    moves = [one.after > one.before for one in world.decisions[count:]]
    assert sum(first != second for first, second in pairwise(moves)) <= 1, world.decisions


@given(worlds, st.lists(steps, min_size=1, max_size=6), st.floats(0, 1) | st.just(1.0))
def test_a_wake_is_honest(world: World, curve: list[tuple[float, float]], part: float) -> None:
    played(world, curve)
    made = world.decide()
    assert made.wake_at is None or made.wake_at > world.now
    ready = min([at for at in world.ready if at > world.now], default=float("inf"))
    until = min(world.now + 1e6 if made.wake_at is None else made.wake_at, ready)
    before = math.nextafter(until, 0)
    early = world.look(min(before, world.now + part * (until - world.now)))
    assert early.target == made.target and early.decision is None and early.memory == made.memory


@given(worlds, st.lists(steps, min_size=1, max_size=6))
def test_between_two_changes_lies_the_delay_of_the_second(world: World, curve: list[tuple[float, float]]) -> None:
    played(world, curve)
    config = world.config
    assert config is not None
    last = WALL + START
    for one in world.decisions:
        delay_s = config.upscale_delay_s if one.after > one.before else config.downscale_delay_s
        delay_s = config.to_zero_delay_s if one.after == 0 else delay_s
        cold = "while there was no replica" in one.reason
        assert cold or one.at - last >= delay_s - PRECISION_S
        assert one.after > 0 or one.before == 1
        last = one.at


@pytest.mark.parametrize("seed", range(SEEDS))
def test_load_curves_with_restarts_of_the_controller(seed: int) -> None:
    chance = random.Random(seed)
    config: dict[str, Any] = {
        "min_replicas": chance.choice([0, 0, 1, 3]),
        "max_replicas": chance.choice([3, 10, 100]),
        "upscale_delay_s": chance.choice([0, 1, 10]),
        "downscale_delay_s": chance.choice([0, 5, 20]),
        "look_back_period_s": chance.choice([0.5, 5, 30]),
        "upscaling_factor": chance.choice([None, 0.3, 2]),
        "downscaling_factor": chance.choice([None, 0.3, 2]),
    }
    world = World(scaling(**config), start_s=chance.choice([0.05, 2]))
    world.decide()
    total = 0
    for _ in range(40):
        total = max(0, total + chance.choice([-50, -5, -1, 0, 1, 5, 50]))
        world.put(total, queued=chance.uniform(0, total))
        world.wait(chance.choice([0.1, 0.5, 3, 20]))
        if chance.random() < 0.15:
            before, noted = world.target, len(world.decisions)
            world.restart()
            world.decide()
            assert world.target is not None and before is not None
            assert (
                world.target >= before and len(world.decisions) <= noted + 2
            )  # nobody goes because somebody new looks
        assert not (total and world.target == 0)
        assert len(world.load.points) <= POINTS_MAX
    world.put(7)
    world.wait(10_000)
    assert world.config is not None and world.target == bounds_of(world.config).clip(4)
    world.put(0)
    world.wait(10_000)
    assert world.target == config["min_replicas"] and world.last is not None and world.last.wake_at is None


# -- offline --------------------------------------------------------------------------------------


def test_a_simulation_says_what_would_have_been_decided() -> None:
    trace = [(0, 0), (10, 40), (100, 10), (1000, 0), (3000, 0)]
    made = simulate({"max_replicas": 20}, trace)
    assert [(round(one.at), one.before, one.after) for one in made] == [(41, 1, 20), (702, 20, 5), (1606, 5, 1)]
    assert made == simulate({"max_replicas": 20}, trace) and all(one.reason for one in made)


def test_a_simulation_obeys_a_policy_of_ones_own_and_the_time_of_starts() -> None:
    def by_the_clock(context: Any, memory: Any, *, day: float) -> tuple[float, Any]:
        return (5 if context.current_time >= day else 2), (memory or 0) + 1

    own = {"policy_function": "mine:by_the_clock", "policy_kwargs": {"day": 50.0}}
    config = {"max_replicas": 9, "upscale_delay_s": 3, "policy": own}
    made = simulate(config, [(0, 0)], policy=by_the_clock, start_s=20, until=100)
    assert [(one.before, one.after) for one in made] == [(1, 2), (2, 5)]
    assert made[0].at == 3 and 53 <= made[1].at <= 54.5


def test_a_simulation_refuses_what_a_deploy_would_refuse() -> None:
    with pytest.raises(OptionError, match="simulate: autoscaling_config"):
        simulate({"max_replica": 2}, [(0, 0)])
    with pytest.raises(ValueError, match="back in time"):
        simulate({}, [(1, 0), (0, 0)])
    assert simulate({}, []) == []
