"""One deployment: what is wanted against what stands, given how its starts went. Law: a crash is repaired at once and
then ever more slowly; starts that never worked end with a budget; what is ready keeps serving meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from msgspec.structs import replace

from skate.controlplane.decide import restart, rollout
from skate.controlplane.decide.rollout import Standing
from skate.controlplane.decide.values import Course, DeploymentMemory, Group, Happening
from skate.core.specs import DeploymentSpec


class Ending(msgspec.Struct, frozen=True):
    """A replica that ended, failed or became unhealthy without having been asked to end. ``unseen``: there is no trace
    of it; the controller may have been killed before it had it started, so it says nothing about starting."""

    id: str
    version: str
    ran: bool
    error: str
    unseen: bool = False


class Target(msgspec.Struct, frozen=True):
    """How many replicas are wanted. ``automatic``: the autoscaler says so."""

    replicas: int
    automatic: bool = False


class DeploymentPlan(msgspec.Struct, frozen=True):
    """How many to start, whom to stop and whom to reconfigure, what to remember, and when to look again."""

    starts: int
    stops: tuple[str, ...]
    reconfigures: tuple[str, ...]
    memory: DeploymentMemory
    wake_at: float | None = None
    events: tuple[Happening, ...] = ()


def reconcile(
    spec: DeploymentSpec,
    revision: int,
    wanted: Target,
    standing: Sequence[Standing],
    endings: Sequence[Ending],
    before: DeploymentMemory | None,
    now: float,
) -> DeploymentPlan:
    """What this deployment needs next."""
    target = wanted.replicas
    memory = learned(renewed(before, spec, revision, wanted), standing, endings, now)
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
    if not memory.settled and is_settled(spec, target, staying):
        memory = replace(memory, settled=True)
    return DeploymentPlan(
        starts,
        tuple(one.id for one in leaving),
        tuple(one.id for one in rollout.to_reconfigure(spec, target, staying)),
        memory,
        wake_at,
        tuple(events(spec, before, memory, endings, wanted.automatic)),
    )


def at_rest(spec: DeploymentSpec, revision: int, target: int, before: DeploymentMemory, group: Group) -> bool:
    """Whether everything is as it is wanted, so that there is nothing to decide; seen at a glance, for most are."""
    version, config = spec.version, spec.config
    if not before.settled or before.target != target or before.revision != revision:
        return False
    if before.version != version or before.config != config or len(group) != target or len(before.replicas) != target:
        return False
    remembered = before.replicas
    for id, seen in group.items():
        replica = remembered.get(id)
        if replica is None or seen.phase != "ready" or not seen.alive or seen.strikes or seen.config != config:
            return False
        if replica.stop_by is not None or not replica.ran or replica.version != version or not seen.reported:
            return False
    return True


def renewed(before: DeploymentMemory | None, spec: DeploymentSpec, revision: int, wanted: Target) -> DeploymentMemory:
    """The memory for this revision and number: a deploy forgives what failed before it, a new number does not."""
    target = wanted.replicas
    if before is None or not before.version:  # nothing is known, or only replicas that somebody else started
        replicas = before.replicas if before is not None else {}
        return DeploymentMemory(spec.version, revision, target, spec.config, replicas=replicas)
    deployed = before.revision != revision or before.version != spec.version
    if not deployed and before.target == target and before.config == spec.config:
        return before
    same = before.version == spec.version and before.config == spec.config
    course: Course = "UPDATING"
    if same and before.target != target and (before.settled or before.course != "UPDATING"):
        course = "UPSCALING" if target > before.target else "DOWNSCALING"
    after = replace(
        before,
        target=target,
        config=spec.config,
        settled=False,
        course=course,
        automatic=wanted.automatic and course != "UPDATING",
    )
    if not deployed:
        return after
    ran = before.ran and before.version == spec.version
    return replace(after, version=spec.version, revision=revision, ran=ran, failures=type(after.failures)())


def learned(
    memory: DeploymentMemory, standing: Sequence[Standing], endings: Sequence[Ending], now: float
) -> DeploymentMemory:
    """The memory after what happened to replicas of the wanted version."""
    mine = [ending for ending in endings if ending.version == memory.version]
    crashed = [ending for ending in mine if ending.ran]
    unborn = [ending for ending in mine if not ending.ran and not ending.unseen]
    unseen = [ending for ending in mine if not ending.ran and ending.unseen]
    ready = [one for one in standing if one.version == memory.version and one.stage == "ready"]
    failures = memory.failures
    if crashed or any(one.fresh for one in ready):
        failures = restart.worked(failures)
    failures = restart.noted(failures, len(crashed), True, now, crashed[-1].error if crashed else "")
    failures = restart.noted(failures, len(unseen), True, now, unseen[-1].error if unseen else "")
    failures = restart.noted(failures, len(unborn), False, now, unborn[-1].error if unborn else "")
    ran = memory.ran or bool(ready or crashed)
    if ran == memory.ran and failures == memory.failures:
        return memory  # the same object: nothing changed
    return replace(memory, ran=ran, failures=failures)


def is_settled(spec: DeploymentSpec, target: int, standing: Sequence[Standing]) -> bool:
    """Whether exactly what is wanted is there, ready, and runs the wanted configuration as far as it has said so."""
    return len(standing) == target and all(
        one.version == spec.version and one.stage == "ready" and one.config in (None, spec.config) for one in standing
    )


def gave_up(spec: DeploymentSpec, memory: DeploymentMemory) -> bool:
    """Whether no more starts are tried until the next deploy."""
    return not memory.ran and is_failing(spec, memory)


def is_failing(spec: DeploymentSpec, memory: DeploymentMemory) -> bool:
    """Whether so many starts failed in a row that this counts as a failed deploy."""
    return memory.failures.in_a_row >= restart.budget(spec.options.max_constructor_retry_count, memory.target)


# -- what the log of events is told ---------------------------------------------------------------


def events(
    spec: DeploymentSpec,
    before: DeploymentMemory | None,
    after: DeploymentMemory,
    endings: Sequence[Ending],
    automatic: bool,
) -> Iterator[Happening]:
    """What happened to this deployment between two looks. ``automatic``: the autoscaler tells of its numbers itself."""
    for ending in endings:
        kind = "replica_died" if ending.ran else "start_failed"
        yield Happening(spec.app, spec.name, kind, ending.error, {"replica": ending.id})
    if before is None or before.version != after.version:
        yield Happening(spec.app, spec.name, "updating", f"{_counted(after.target)} of version {after.version[:8]}")
    elif before.config != after.config:
        yield Happening(spec.app, spec.name, "reconfiguring", f"configuration {after.config[:8]}, in place")
    if before is not None and before.version and before.target != after.target and not automatic:
        details = {"before": before.target, "after": after.target}
        text = f"from {before.target} to {after.target} replicas, as wanted"
        yield Happening(spec.app, spec.name, "scaled", text, details)
    if after.settled and (before is None or not before.settled):
        yield Happening(spec.app, spec.name, "healthy", f"{_counted(after.target)} ready, as wanted")
    fails = before is not None and before.version == after.version and is_failing(spec, before)
    if is_failing(spec, after) and not fails:
        text = f"{after.failures.in_a_row} replicas failed to start in a row; {restart.last_line(after.failures.error)}"
        yield Happening(spec.app, spec.name, "deploy_failed", text)
    loops = before is not None and restart.is_loop(before.failures, before.target)
    if restart.is_loop(after.failures, after.target) and not loops:
        text = f"{after.failures.recent} replicas ended within a minute; starts are slowed down"
        yield Happening(spec.app, spec.name, "crash_loop", text)


def _counted(replicas: int) -> str:
    return f"{replicas} replica{'s' * (replicas != 1)}"
