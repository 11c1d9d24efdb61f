"""One deployment: what is wanted against what stands, given how its starts went. Law: a crash is repaired at once and
then ever more slowly; starts that never worked end with a budget; what is ready keeps serving meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from skate.controlplane.decide import restart, rollout
from skate.controlplane.decide.rollout import Standing
from skate.controlplane.decide.values import Course, DeploymentMemory
from skate.core.specs import DeploymentSpec


class Ending(msgspec.Struct, frozen=True):
    """A replica that ended or failed without having been asked to."""

    version: str
    ran: bool
    error: str


class DeploymentPlan(msgspec.Struct, frozen=True):
    """How many to start, whom to stop, what to remember, and when to look again."""

    starts: int
    stops: tuple[str, ...]
    memory: DeploymentMemory
    wake_at: float | None = None


def reconcile(
    spec: DeploymentSpec,
    revision: int,
    standing: Sequence[Standing],
    endings: Sequence[Ending],
    before: DeploymentMemory | None,
    now: float,
) -> DeploymentPlan:
    """What this deployment needs next."""
    target = spec.options.replicas
    memory = learned(renewed(before, spec.version, revision, target), standing, endings, now)
    pace = rollout.pace_of(spec.options, target)
    leaving = rollout.to_stop(spec.version, target, pace, standing)
    gone = {one.id for one in leaving}
    staying = [one for one in standing if one.id not in gone]
    starts = rollout.to_start(spec.version, target, pace, staying)
    wake_at = None
    if not memory.ran and memory.failures.in_a_row:  # all may try once; then no more than may still fail
        tries = restart.budget(spec.options.max_constructor_retry_count, target) - memory.failures.in_a_row
        under_way = sum(one.version == spec.version and one.stage == "starting" for one in staying)
        starts = max(0, min(starts, tries - under_way))
    if starts and (next_at := restart.next_try_at(memory.failures, target, now)) > now:
        starts, wake_at = 0, next_at
    if not memory.settled and is_settled(spec.version, target, staying):
        memory = replace(memory, settled=True)
    return DeploymentPlan(starts, tuple(one.id for one in leaving), memory, wake_at)


def renewed(before: DeploymentMemory | None, version: str, revision: int, target: int) -> DeploymentMemory:
    """The memory for this revision: a deploy forgives what failed before it."""
    if before is None:
        return DeploymentMemory(version, revision, target)
    if before.revision == revision and before.version == version:
        return before
    same = before.version == version
    course: Course = "UPDATING"
    if same and before.settled and before.target != target:
        course = "UPSCALING" if target > before.target else "DOWNSCALING"
    return DeploymentMemory(version, revision, target, ran=before.ran and same, course=course)


def learned(
    memory: DeploymentMemory, standing: Sequence[Standing], endings: Sequence[Ending], now: float
) -> DeploymentMemory:
    """The memory after what happened to replicas of the wanted version."""
    mine = [ending for ending in endings if ending.version == memory.version]
    crashed = [ending for ending in mine if ending.ran]
    unborn = [ending for ending in mine if not ending.ran]
    ready = [one for one in standing if one.version == memory.version and one.stage == "ready"]
    failures = memory.failures
    if crashed or any(one.fresh for one in ready):
        failures = restart.worked(failures)
    failures = restart.noted(failures, len(crashed), True, now, crashed[-1].error if crashed else "")
    failures = restart.noted(failures, len(unborn), False, now, unborn[-1].error if unborn else "")
    return replace(memory, ran=memory.ran or bool(ready or crashed), failures=failures)


def is_settled(version: str, target: int, standing: Sequence[Standing]) -> bool:
    """Whether exactly what is wanted is there and ready."""
    return len(standing) == target and all(one.version == version and one.stage == "ready" for one in standing)


def gave_up(spec: DeploymentSpec, memory: DeploymentMemory) -> bool:
    """Whether no more starts are tried until the next deploy."""
    return not memory.ran and is_failing(spec, memory)


def is_failing(spec: DeploymentSpec, memory: DeploymentMemory) -> bool:
    """Whether so many starts failed in a row that this counts as a failed deploy."""
    target = spec.options.replicas
    return memory.failures.in_a_row >= restart.budget(spec.options.max_constructor_retry_count, target)
