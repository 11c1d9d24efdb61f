"""The rules of autoscaling, one by one, with Ray Serve's numbers."""

from __future__ import annotations

from typing import Any

import pytest

from skate.controlplane.decide.autoscale import FULL, Capacity, Scaling, ScalingMemory, adjusted, autoscale, bounds_of
from skate.controlplane.decide.load import Load
from skate.controlplane.decide.policy import Answer, requests_per_second_policy
from skate.core.scaling import AutoscalingConfig, AutoscalingPolicy
from skate.core.specs import DeploymentSpec
from tests.decide.scaled import START, WALL, World, scaling, steady, stored

NOW = START


def at_once(load: float, current: int, target: int | None = None, **config: Any) -> int:
    """The number without any delay."""
    spec = scaling(**{"upscale_delay_s": 0, "downscale_delay_s": 0, "max_replicas": 200, **config})
    return once(spec, steady(load), current, current if target is None else target).target


def once(
    spec: DeploymentSpec,
    load: Load,
    current: int,
    target: int | None,
    memory: ScalingMemory | None = None,
    now: float = NOW,
    capacity: Capacity = FULL,
    said: Answer | None = None,
) -> Scaling:
    return autoscale(spec, load, current, target, memory, now, WALL + now, capacity=capacity, said=said)


# -- the formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "current", "wanted"),
    [(10, 1, 5), (9, 1, 5), (8.1, 1, 5), (8, 1, 4), (0, 4, 1), (200, 100, 100), (201, 100, 101), (3, 2, 2)],
)
def test_the_number_is_the_load_by_the_target(load: float, current: int, wanted: int) -> None:
    assert at_once(load, current, target_ongoing_requests=2) == wanted


@pytest.mark.parametrize(
    ("factor", "load", "wanted"), [(1, 20, 20), (0.5, 20, 15), (0.1, 20, 11), (2, 20, 30), (0.01, 10.5, 11)]
)
def test_a_factor_weighs_a_step_up(factor: float, load: float, wanted: int) -> None:
    assert at_once(load, 10, target_ongoing_requests=1, upscaling_factor=factor) == wanted
    assert at_once(load, 10, target_ongoing_requests=1, smoothing_factor=factor) == wanted
    assert at_once(load, 10, target_ongoing_requests=1, upscale_smoothing_factor=factor) == wanted


@pytest.mark.parametrize(("factor", "load", "wanted"), [(1, 5, 5), (0.5, 5, 8), (0.6, 5, 7), (1, 9.5, 10)])
def test_a_factor_weighs_a_step_down(factor: float, load: float, wanted: int) -> None:
    assert at_once(load, 10, target_ongoing_requests=1, downscaling_factor=factor) == wanted
    assert at_once(load, 10, target_ongoing_requests=1, downscale_smoothing_factor=factor) == wanted


@pytest.mark.parametrize("factor", [0.01, 0.1, 0.2])
def test_a_small_factor_goes_down_by_one_instead_of_never(factor: float) -> None:
    assert at_once(8, 10, target_ongoing_requests=1, downscaling_factor=factor) == 9
    assert at_once(9, 10, target_ongoing_requests=1, downscaling_factor=factor) == 9
    assert at_once(9.5, 10, target_ongoing_requests=1, downscaling_factor=factor) == 10


def test_a_large_factor_never_goes_below_what_the_load_needs() -> None:
    assert at_once(6, 10, target_ongoing_requests=1, downscaling_factor=3) == 6


def test_while_no_replica_is_ready_the_number_stays() -> None:
    assert at_once(0, 0, target=4) == 4
    assert at_once(1000, 0, target=4) == 4  # and a call that waits changes nothing: they are on their way


@pytest.mark.parametrize(("how", "wanted"), [("mean", 7), ("max", 10), ("min", 4)])
def test_the_window_is_reduced_as_said(how: str, wanted: int) -> None:
    load = Load().seen(NOW - 100, 4, 0, 0, 30).seen(NOW - 15, 10, 0, 0, 30)
    spec = scaling(
        max_replicas=20, upscale_delay_s=0, target_ongoing_requests=1, aggregation_function=how, look_back_period_s=30
    )
    assert once(spec, load, 1, 1).target == wanted


# -- delays ---------------------------------------------------------------------------------------


def test_more_replicas_must_be_wanted_for_the_whole_delay() -> None:
    world = World(scaling(aggregation_function="max"))
    world.decide()
    made = world.put(8)
    assert made.target == 1 and made.wake_at == START + 30 and made.status.waiting == "to go up to 4 in 30 s"
    later = made.status_at(START + 20, world.load)
    assert later.waiting == "to go up to 4 in 10 s" and later.ongoing == 8
    world.now = START + 29.999
    assert world.decide().target == 1
    world.now = START + 30
    made = world.decide()
    assert made.target == 4 and made.decision is not None and (made.decision.before, made.decision.after) == (1, 4)
    assert made.decision.at == WALL + START + 30 and "8 requests" in made.decision.reason
    assert made.decision.desired == 4 and made.decision.ongoing == 8
    assert made.status.decisions == (made.decision,) and made.status.waiting == ""


def test_a_break_begins_the_delay_anew() -> None:
    world = World(scaling(look_back_period_s=0.1))
    world.decide()
    world.put(8)
    world.wait(20)
    world.put(1)
    world.wait(1)
    world.put(8)
    world.wait(29)
    assert world.target == 1
    world.wait(2)
    assert world.target == 4


def test_fewer_replicas_wait_for_their_own_delay() -> None:
    world = World(scaling(initial_replicas=4, downscale_delay_s=60))
    world.decide()
    world.wait(59)
    assert world.target == 4
    world.wait(1)
    assert world.target == 1


def test_the_last_replica_goes_in_a_step_of_its_own_with_its_own_delay() -> None:
    world = World(scaling(min_replicas=0, initial_replicas=4, downscale_delay_s=10, downscale_to_zero_delay_s=100))
    world.decide()
    world.wait(10)
    assert world.target == 1
    world.wait(99)
    assert world.target == 1
    world.wait(1)
    assert world.target == 0
    assert [(one.before, one.after) for one in world.decisions] == [(4, 1), (1, 0)]
    assert world.decide().wake_at is None


def test_a_step_to_zero_waits_like_any_other_when_nothing_is_said() -> None:
    world = World(scaling(min_replicas=0, initial_replicas=1, downscale_delay_s=10))
    world.decide()
    world.wait(10)
    assert world.target == 0


# -- zero -----------------------------------------------------------------------------------------


def test_a_call_that_finds_no_replica_starts_one_at_once() -> None:
    world = World(scaling(min_replicas=0))
    assert world.decide().target == 0
    made = world.put(3, queued=3)
    assert made.target == 1 and made.decision is not None and "while there was no replica" in made.decision.reason


def test_a_call_that_finds_no_replica_starts_as_many_as_the_factor_says() -> None:
    world = World(scaling(min_replicas=0, upscaling_factor=2.5))
    world.decide()
    assert world.put(1).target == 3


def test_a_call_that_comes_while_the_last_replica_leaves_starts_another_one() -> None:
    assert once(scaling(min_replicas=0), steady(1), 1, 0).target == 1


def test_who_waited_and_left_starts_nothing() -> None:
    load = Load().seen(NOW - 9, 0, 0, 0, 30).seen(NOW - 5, 3, 3, 3, 30).seen(NOW - 1, 0, 0, 3, 30)
    assert once(scaling(min_replicas=0, upscale_delay_s=0), load, 0, 0).target == 0


def test_no_policy_takes_the_last_replica_while_a_call_is_open() -> None:
    rate = {"policy_function": requests_per_second_policy, "policy_kwargs": {"target_per_replica": 5}}
    world = World(scaling(min_replicas=0, policy=rate, downscale_delay_s=1, upscale_delay_s=0))
    world.decide()
    world.put(1, came=1)  # one long stream, and no second call
    world.wait(1000)
    assert world.target == 1 and len(world.decisions) == 1
    world.put(0, came=1)
    world.wait(32)
    assert world.target == 0


# -- bounds ---------------------------------------------------------------------------------------


def test_the_number_stays_within_its_bounds() -> None:
    assert at_once(1000, 3, min_replicas=2, max_replicas=7) == 7
    assert at_once(0, 3, min_replicas=2, max_replicas=7) == 2


def test_a_first_deploy_begins_with_the_initial_number() -> None:
    assert once(scaling(initial_replicas=3), Load(), 0, None).target == 3
    assert once(scaling(min_replicas=2), Load(), 0, None).target == 2
    assert once(scaling(min_replicas=0), Load(), 0, None).target == 0
    assert once(scaling(initial_replicas=3), Load(), 0, None).decision is None  # the number did not change


def test_another_deploy_keeps_the_number_unless_the_configuration_changed() -> None:
    spec = scaling(initial_replicas=2)
    first = once(spec, steady(8), 4, 4, once(spec, steady(8), 4, 4).memory)
    assert once(spec, steady(8), 4, 4, first.memory).target == 4
    changed = once(scaling(initial_replicas=2, max_replicas=9), steady(8), 4, 4, first.memory)
    assert changed.target == 2 and changed.decision is not None and "initial_replicas" in changed.decision.reason
    assert once(scaling(max_replicas=9), steady(8), 4, 4, first.memory).target == 4
    clipped = once(scaling(max_replicas=3), steady(8), 4, 4, first.memory)
    assert clipped.target == 3 and clipped.decision is not None and "between 1 and 3" in clipped.decision.reason


def test_what_had_a_fixed_number_keeps_it_when_it_begins_to_scale() -> None:
    assert once(scaling(), steady(8), 4, 4).target == 4


@pytest.mark.parametrize(
    ("number", "percent", "result"),
    [
        (10, None, 10),
        (10, 100, 10),
        (10, 50, 5),
        (10, 25, 3),
        (10, 24, 2),
        (10, 1, 1),
        (0, 50, 0),
        (10, 0, 0),
        (3, 50, 2),
    ],
)
def test_the_capacity_scales_a_number(number: int, percent: float | None, result: int) -> None:
    assert adjusted(number, percent) == result


def test_the_capacity_scales_the_bounds_and_its_rise_begins_with_the_initial_number() -> None:
    config = AutoscalingConfig(min_replicas=2, max_replicas=40, initial_replicas=20)
    low, high = bounds_of(config, Capacity(50)), bounds_of(config, Capacity(50, rising=True))
    assert (low.least, low.most, high.least) == (1, 20, 10)
    made = once(scaling(max_replicas=20), steady(40), 20, 20, capacity=Capacity(25))
    assert made.target == 5 and (made.status.min_replicas, made.status.max_replicas) == (1, 5)
    assert once(scaling(), steady(40), 5, 5, capacity=Capacity(0)).target == 0


# -- memory, wakes, restarts ----------------------------------------------------------------------


def test_idle_costs_nothing() -> None:
    world = World(scaling())
    assert world.decide().wake_at is None
    made = once(scaling(), steady(7), 4, 4)
    assert made.target == 4 and made.wake_at is None and made.status.waiting == ""


def test_what_happened_within_the_window_is_looked_at_again_by_itself() -> None:
    world = World(scaling(upscale_delay_s=0))
    world.decide()
    world.wait(100)
    made = world.put(8)  # the mean passes 2 after 7.5 of 30 s
    assert made.wake_at == pytest.approx(START + 107.5, abs=0.01)
    world.wait(30)
    assert world.target == 4 and [one.after for one in world.decisions] == [2, 3, 4]


def test_the_memory_survives_the_store() -> None:
    world = World(scaling(aggregation_function="max"))
    world.decide()
    world.put(8)
    assert world.memory is not None and stored(world.memory) == world.memory
    world.wait(10)
    world.restart()
    world.wait(19.9)
    assert world.target == 1
    world.wait(0.2)  # the delay went on
    assert world.target == 4 and world.memory is not None and stored(world.memory) == world.memory


def test_a_memory_from_the_future_begins_its_delay_anew() -> None:
    world = World(scaling(aggregation_function="max"))
    world.decide()
    world.put(8)
    world.now, world.ready = 5.0, [5.0]  # the machine started again
    world.load = Load()
    made = world.put(8)
    assert made.target == 1 and made.wake_at == 35.0
    world.wait(30)
    assert world.target == 4


def test_nothing_goes_down_before_all_routers_have_reported() -> None:
    spec = scaling(downscale_delay_s=0, upscale_delay_s=0)
    new = Load(complete_at=NOW + 2).seen(NOW - 1, 0, 0, 0, 30)
    held = once(spec, new, 4, 4)
    assert held.target == 4 and held.wake_at == NOW + 2 and "report" in held.status.waiting
    assert once(spec, new, 4, 4, held.memory, now=NOW + 2).target == 1
    more = Load(complete_at=NOW + 2).seen(NOW - 1, 10, 0, 0, 30)
    assert once(spec, more, 4, 4).target == 5


def test_a_controller_that_has_heard_nothing_yet_forgets_no_wish_for_more() -> None:
    spec = scaling(aggregation_function="max")
    wish = once(spec, steady(8), 2, 2).memory
    deaf = Load(complete_at=NOW + 22).seen(NOW + 20, 0, 0, 0, 30)
    made = once(spec, deaf, 2, 2, stored(wish), now=NOW + 21)
    assert made.target == 2 and made.memory == wish
    heard = deaf.seen(NOW + 21, 8, 0, 0, 30)
    assert once(spec, heard, 2, 2, made.memory, now=NOW + 30).target == 4


def test_only_the_last_decisions_are_remembered() -> None:
    world = World(scaling(upscale_delay_s=0, downscale_delay_s=0, look_back_period_s=1, aggregation_function="max"))
    for _ in range(10):
        for load in (8, 0):
            world.put(load)
            world.wait(5)
    assert len(world.decisions) == 20 and world.memory is not None
    assert list(world.memory.decisions) == world.decisions[-10:]


# -- policies -------------------------------------------------------------------------------------


OWN: dict[str, Any] = {"policy": {"policy_function": "mine:policy"}, "upscale_delay_s": 0, "downscale_delay_s": 0}


def answer(number: float = 0.0, memory: Any = None, error: str = "", asked_at: float = NOW) -> Answer:
    return Answer(AutoscalingPolicy("mine:policy"), asked_at, number, memory, error)


def test_a_policy_of_a_users_own_is_asked_and_what_it_says_is_weighed() -> None:
    spec = scaling(upscaling_factor=0.5, **OWN)
    made = once(spec, steady(8, 2), 2, 2)
    assert made.target == 2 and made.ask is not None and made.wake_at is None
    seen = made.ask
    assert (seen.app_name, seen.deployment_name, seen.current_num_replicas, seen.target_num_replicas) == (
        "app",
        "D",
        2,
        2,
    )
    assert (seen.total_num_requests, seen.total_queued_requests, seen.total_running_requests) == (8, 2, 6)
    assert (seen.capacity_adjusted_min_replicas, seen.capacity_adjusted_max_replicas) == (1, 5)
    assert seen.current_time == WALL + NOW and seen.last_scale_up_time is None
    made = once(spec, steady(8, 2), 2, 2, made.memory, said=answer(4, {"calls": 1}))
    assert made.target == 3 and made.memory.policy_memory == {"calls": 1} and made.memory.last_up_at == WALL + NOW
    assert made.ask is None and made.wake_at == NOW + 1.0
    made = once(spec, steady(8, 2), 3, 3, stored(made.memory), now=NOW + 1, said=answer(3, {"calls": 2}))
    assert made.ask is not None and made.ask.last_scale_up_time == WALL + NOW
    assert made.memory.policy_memory == {"calls": 2}


def test_a_policy_that_fails_changes_nothing_and_is_seen() -> None:
    memory = once(scaling(**OWN), steady(8), 2, 2, said=answer(2, "kept")).memory
    made = once(scaling(**OWN), steady(8), 2, 2, memory, said=answer(error="mine:policy: KeyError: 'x'"))
    assert made.target == 2 and made.status.error.endswith("KeyError: 'x'") and made.memory.policy_memory == "kept"


def test_the_word_of_another_policy_is_void() -> None:
    old = Answer(AutoscalingPolicy("mine:before"), NOW, 5.0)
    made = once(scaling(**OWN), steady(8), 2, 2, said=old)
    assert made.target == 2 and made.ask is not None


def test_bounds_and_the_start_from_zero_hold_for_every_policy() -> None:
    spec = scaling(min_replicas=0, **OWN)
    assert once(spec, steady(0), 2, 2, said=answer(1000)).target == 5
    assert once(spec, steady(0), 2, 2, said=answer(-3)).target == 1
    assert once(spec, steady(1), 0, 0).target == 1  # before it said anything


def test_replicas_by_requests_per_second() -> None:
    rate = {"policy_function": requests_per_second_policy, "policy_kwargs": {"target_per_replica": 5}}
    spec = scaling(max_replicas=20, upscale_delay_s=0, look_back_period_s=10, policy=rate)
    load = Load().seen(NOW - 20, 1, 0, 0, 100).seen(NOW - 10, 1, 0, 100, 100).seen(NOW - 5, 2, 0, 400, 100)
    made = once(spec, load, 1, 1)  # 300 within the last 10 s
    assert made.target == 6 and made.decision is not None and "30 new ones per second" in made.decision.reason


def test_a_built_in_policy_with_wrong_arguments_says_so_in_the_status() -> None:
    rate = {"policy_function": requests_per_second_policy, "policy_kwargs": {"target_per_replica": 0}}
    made = once(scaling(policy=rate), steady(3), 2, 2)
    assert made.target == 2 and "target_per_replica" in made.status.error
