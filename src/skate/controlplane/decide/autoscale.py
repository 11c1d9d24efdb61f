"""How many replicas a deployment shall have. Law: values in, one number out; until ``wake_at`` nothing but a call, a
replica or a deploy can change it, so what is idle is not looked at.

Around every policy, built in or a user's own, stand Ray Serve's rules: a call that finds no replica starts one at once;
a factor weighs each step; a change must be wanted without a break for its delay; the last replica goes in a step of its
own; bounds hold always. Two rules are ours: a step down never goes below what the policy asks for (so no factor makes
the number swing under a constant load), and no policy takes the last replica while a call is open.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from skate.controlplane.decide.load import Demand, Load, Window
from skate.controlplane.decide.policy import BUILT_IN, Answer, AutoscalingContext, ask
from skate.core.scaling import AutoscalingConfig
from skate.core.specs import AutoscalingStatus, DeploymentSpec, ScalingDecision

ASK_PERIOD_S = 1.0  # between two questions to a policy of a user's own
DECISIONS_MAX = 10  # that are remembered
TURNS_MAX = 4  # of the window that are looked at in advance; then it is looked at again
TICKS_PER_S = 1000  # the window is looked at in these steps, so that it is known exactly when a number will change
DIGITS = 6  # of a number that are meant; a load of 2.0000001 is one of 2

STEP_S = 0.1  # between two changes, as in Ray Serve
Direction = Literal["up", "down", "none"]


class Capacity(msgspec.Struct, frozen=True):
    """``target_capacity``: percent of all numbers of replicas. ``rising``: it was raised last."""

    percent: float | None = None
    rising: bool = False


FULL = Capacity()


class Bounds(msgspec.Struct, frozen=True):
    """Between them the number of replicas lies."""

    least: int
    most: int

    def clip(self, number: int) -> int:
        """The number, or the bound that it passes."""
        return min(self.most, max(self.least, number))


class ScalingMemory(msgspec.Struct, frozen=True):
    """What must outlive one decision. ``since``: when ``direction`` was first wanted, by the controller's clock; the
    ``last_`` times are wall times; ``config``: what the present number was made with."""

    config: AutoscalingConfig = AutoscalingConfig()
    direction: Direction = "none"
    since: float = 0.0
    changed_at: float | None = None  # when the number changed last, by the controller's clock
    last_up_at: float | None = None
    last_down_at: float | None = None
    policy_memory: Any = None
    decisions: tuple[ScalingDecision, ...] = ()  # the last few, oldest first


class Scaling(msgspec.Struct, frozen=True):
    """The number of replicas from now on, and what goes with it. ``decision``: the number changed. ``wake_at``: before
    it nothing changes unless something happens. ``ask``: what a policy of the user's own shall be asked now."""

    target: int
    memory: ScalingMemory
    case: Case
    wake_at: float | None = None
    decision: ScalingDecision | None = None
    ask: AutoscalingContext | None = None

    @property
    def status(self) -> AutoscalingStatus:
        """What people see at the moment of the decision."""
        return self.status_at(self.case.now, self.case.load)

    def status_at(self, now: float, load: Load) -> AutoscalingStatus:
        """What people see later, when this is still the last decision."""
        case = replace(self.case, now=now, load=load, window=Window(load))
        seen = case.demand(now)
        return case.status(seen, case.answer(seen, now), self.memory)


def adjusted(number: int, percent: float | None) -> int:
    """A number of replicas at ``percent`` of the capacity, None: all; rounded, and at least one of what is not none."""
    if percent is None or number == 0:
        return number
    return max(1, math.floor(number * percent / 100 + 0.5)) if percent else 0


def bounds_of(config: AutoscalingConfig, capacity: Capacity = FULL) -> Bounds:
    """The bounds at this capacity. While it rises, the first number of replicas is the least."""
    least = config.min_replicas
    if capacity.rising and config.initial_replicas is not None:
        least = config.initial_replicas
    return Bounds(adjusted(least, capacity.percent), adjusted(config.most, capacity.percent))


def autoscale(
    spec: DeploymentSpec,
    load: Load,
    current: int,
    target: int | None,
    memory: ScalingMemory | None,
    now: float,
    wall: float,
    *,
    capacity: Capacity = FULL,
    said: Answer | None = None,
) -> Scaling:
    """How many replicas there shall be.

    ``current``: replicas that are ready and stay; ``target``: how many were wanted so far, None at the first deploy;
    ``memory``: of the last call, None at the first; ``said``: the last word of a policy of the user's own.
    """
    config = spec.options.autoscaling_config
    assert config is not None, f"{spec.key} does not scale"
    bounds = bounds_of(config, capacity)
    number, memory, why = _settled(config, bounds, target, memory, now)
    case = Case(spec, config, bounds, load, Window(load), current, number, memory, now, wall, said)
    seen = case.demand(now)
    answer = case.answer(seen, now)
    memory = case.remembered(answer)
    if not why and case.is_starved and (first := bounds.clip(max(_ceil(config.up), number))) != number:
        number, why = first, "a request came while there was no replica"
    elif not why and case.is_due(answer, memory):
        number, why = case.wanted(answer), case.reason(seen, answer, memory)
    desired = answer.number if answer is not None else 0.0
    decision = None
    if target is not None and number != target:
        decision = ScalingDecision(wall, target, number, why, seen.ongoing, seen.queued, desired)
        memory = _noted(memory, decision)
    if number != target:  # the delay of what is wanted next begins now
        case = replace(case, target=number, memory=replace(memory, direction="none", changed_at=now))
        answer = case.answer(seen, now)
        memory = case.remembered(answer)
    return Scaling(
        number,
        memory,
        case,
        case.wake_at(answer, memory),
        decision,
        case.question(seen),
    )


def _settled(
    config: AutoscalingConfig, bounds: Bounds, target: int | None, memory: ScalingMemory | None, now: float
) -> tuple[int, ScalingMemory, str]:
    """The number and memory for this configuration: what a new one begins with, and what its bounds make of the old."""
    number = config.min_replicas if target is None else target
    why = ""
    if memory is None or memory.config != config:
        if config.initial_replicas is not None:
            number, why = config.initial_replicas, "initial_replicas of a new autoscaling_config"
        kept = memory if memory is not None else ScalingMemory()
        same = kept.config.policy == config.policy
        memory = replace(kept, config=config, direction="none", policy_memory=kept.policy_memory if same else None)
    if memory.since > now or (memory.changed_at or now) > now:  # the clock began anew with the machine
        memory = replace(memory, since=min(now, memory.since), changed_at=None)
    clipped = bounds.clip(number)
    if clipped != number:
        why = f"it must lie between {bounds.least} and {bounds.most}"
    return clipped, memory, why if clipped != target else ""


def _noted(memory: ScalingMemory, decision: ScalingDecision) -> ScalingMemory:
    memory = replace(memory, decisions=(*memory.decisions, decision)[-DECISIONS_MAX:])
    if decision.after > decision.before:
        return replace(memory, last_up_at=decision.at)
    return replace(memory, last_down_at=decision.at)


class Case(msgspec.Struct, frozen=True):
    """One deployment at one moment; lives only inside ``autoscale``."""

    spec: DeploymentSpec
    config: AutoscalingConfig
    bounds: Bounds
    load: Load
    window: Window
    current: int
    target: int
    memory: ScalingMemory
    now: float
    wall: float
    said: Answer | None

    # -- what is needed -------------------------------------------------------------------------

    @property
    def is_starved(self) -> bool:
        """A call is there and nobody who could take it."""
        return self.load.total > 0 and (self.current == 0 or self.target == 0)

    def demand(self, at: float) -> Demand:
        """The window as numbers, if nothing happens until then."""
        last = self.load.points[-1].at if self.load.points else at
        at = max(_tick(at) / TICKS_PER_S, min(at, last))
        return self.window.demand(self.config.look_back_period_s, self.config.aggregation_function, at)

    def context(self, seen: Demand) -> AutoscalingContext:
        """What the policy goes by."""
        return AutoscalingContext(
            app_name=self.spec.app,
            deployment_name=self.spec.name,
            current_num_replicas=self.current,
            target_num_replicas=self.target,
            total_num_requests=seen.total,
            total_queued_requests=seen.queued,
            total_running_requests=seen.ongoing,
            requests_per_s=seen.requests_per_s,
            capacity_adjusted_min_replicas=self.bounds.least,
            capacity_adjusted_max_replicas=self.bounds.most,
            current_time=self.wall,
            config=self.config,
            last_scale_up_time=self.memory.last_up_at,
            last_scale_down_time=self.memory.last_down_at,
        )

    @property
    def asks_here(self) -> bool:
        """The policy is one of ours."""
        return self.config.policy.policy_function in BUILT_IN

    def answer(self, seen: Demand, at: float) -> Answer | None:
        """What the policy says; None while one of the user's own has said nothing yet."""
        if self.asks_here:
            return ask(self.config, self.context(seen), self.memory.policy_memory, at)
        return self.said if self.said is not None and self.said.policy == self.config.policy else None

    def wanted(self, answer: Answer | None) -> int:
        """The number that follows from what the policy says."""
        if answer is None or answer.error:
            return self.target
        desired, current, load = answer.number, self.current, self.load.total
        number = _ceil(desired)
        if current and desired > current:
            number = _ceil(current + self.config.up * (desired - current))
        elif current and desired < current:
            weighed = _ceil(current + self.config.down * (desired - current))
            stuck = number < current and weighed >= current  # a small weight must not keep a replica for ever
            number = max(number, current - 1 if stuck else weighed)
        if self.target > 1 or load:  # the last one goes alone, and not while somebody needs it
            number = max(1, number)
        return self.bounds.clip(number)

    def direction(self, answer: Answer | None) -> Direction:
        """Where the number would go."""
        wanted = self.wanted(answer)
        return "none" if wanted == self.target else "up" if wanted > self.target else "down"

    # -- when it happens ------------------------------------------------------------------------

    def remembered(self, answer: Answer | None) -> ScalingMemory:
        """The memory with what is wanted now, and since when."""
        memory, direction = self.memory, self.direction(answer)
        if answer is not None and not answer.error and answer.memory != memory.policy_memory:
            memory = replace(memory, policy_memory=answer.memory)
        if direction == memory.direction or self.is_held(direction):
            return memory
        return replace(memory, direction=direction, since=self.now)

    def is_held(self, direction: Direction) -> bool:
        """Not all routers have reported to this controller yet: who knows what load there is."""
        return direction == "down" and self.now < self.load.complete_at

    def due_at(self, memory: ScalingMemory) -> float:
        """When a change will have been wanted for long enough."""
        if memory.direction == "none":
            return math.inf
        earliest = -math.inf if memory.changed_at is None else memory.changed_at + STEP_S
        return max(earliest, memory.since + self.delay_s(memory.direction))

    def delay_s(self, direction: Direction) -> float:
        """How long a change must be wanted."""
        if direction == "up":
            return self.config.upscale_delay_s
        return self.config.to_zero_delay_s if self.target == 1 else self.config.downscale_delay_s

    def is_due(self, answer: Answer | None, memory: ScalingMemory) -> bool:
        """Whether the change happens now."""
        return self.now >= self.due_at(memory) and not self.is_held(self.direction(answer))

    def wake_at(self, answer: Answer | None, memory: ScalingMemory) -> float | None:
        """Until when nothing changes by itself; None: it never will."""
        direction = self.direction(answer)
        wakes = [self.load.complete_at if self.is_held(direction) else self.due_at(memory)]
        if self.asks_here:
            wakes.append(self._turn_at(direction))
        elif answer is not None and self.question(Demand()) is None:
            wakes.append(answer.asked_at + ASK_PERIOD_S)
        first = min(wakes)
        return first if first < math.inf else None

    def _turn_at(self, direction: Direction) -> float:
        """When the direction changes because the past leaves the window; or when to look for that again."""
        moments = self.window.turns(self.config.look_back_period_s, self.now, TURNS_MAX)
        if not moments or not self._can_turn(direction):
            return math.inf
        before = _tick(self.now)
        for moment in moments:
            last = _tick(moment)  # up to it the numbers move in one direction
            if last > before and self._direction_at(last) != direction:
                while last - before > 1:
                    middle = (before + last) // 2
                    if self._direction_at(middle) == direction:
                        before = middle
                    else:
                        last = middle
                return last / TICKS_PER_S
            before = last + 1
            if self._direction_at(before) != direction:
                return before / TICKS_PER_S
        return before / TICKS_PER_S if len(moments) == TURNS_MAX else math.inf

    def _direction_at(self, tick: int) -> Direction:
        at = tick / TICKS_PER_S
        return self.direction(self.answer(self.demand(at), at))

    def _can_turn(self, direction: Direction) -> bool:
        """Whether anything that was in the window would give another direction."""
        if self.config.aim is None:
            return True
        return any(self.direction(self.answer(Demand(total), self.now)) != direction for total in self.window.ends)

    def question(self, seen: Demand) -> AutoscalingContext | None:
        """What to ask the user's policy now; None: it was asked lately, or is one of ours."""
        if self.asks_here:
            return None
        said = self.answer(seen, self.now)
        lately = said is not None and said.asked_at <= self.now < said.asked_at + ASK_PERIOD_S
        return None if lately else self.context(seen)

    # -- in words -------------------------------------------------------------------------------

    def reason(self, seen: Demand, answer: Answer | None, memory: ScalingMemory) -> str:
        """Why the number changes."""
        how, span_s = self.config.aggregation_function, self.config.look_back_period_s
        desired = answer.number if answer is not None else 0.0
        if self.config.aim is not None:
            load = f"{seen.total:.4g} requests ({how} of {span_s:g} s, {seen.queued:.4g} of them waiting)"
        else:
            load = f"the policy (at {seen.total:.4g} requests, {seen.requests_per_s:.4g} new ones per second)"
        return f"{load} want {desired:.4g} replicas, {self.delay_s(memory.direction):g} s long"

    def status(self, seen: Demand, answer: Answer | None, memory: ScalingMemory) -> AutoscalingStatus:
        """What people see."""
        waiting = ""
        if self.is_held(self.direction(answer)):
            waiting = "for all processes to report to the new controller"
        elif memory.direction != "none":
            left_s = max(0.0, self.due_at(memory) - self.now)
            waiting = f"to go {memory.direction} to {self.wanted(answer)} in {left_s:.0f} s"
        return AutoscalingStatus(
            min_replicas=self.bounds.least,
            max_replicas=self.bounds.most,
            policy=self.config.policy.policy_function,
            ongoing=round(seen.ongoing, DIGITS),
            queued=round(seen.queued, DIGITS),
            desired=round(answer.number, DIGITS) if answer is not None else 0.0,
            waiting=waiting,
            error=answer.error if answer is not None else "",
            decisions=memory.decisions,
        )


def _tick(at: float) -> int:
    """The last step at or before a moment, exactly: what is not yet due by the clock is not yet counted."""
    tick = math.floor(at * TICKS_PER_S) + 1
    while tick / TICKS_PER_S > at:
        tick -= 1
    return tick


def _ceil(number: float) -> int:
    return math.ceil(round(number, DIGITS))
