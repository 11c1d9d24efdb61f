"""The whole decision: ``(desired, observed, memory, now) -> Plan``. Law: looks at the state, never at what happened;
decides nothing before one complete observation; applications disturb each other in nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from skate.controlplane.decide.fleet import FleetPlan, plan_proxies
from skate.controlplane.decide.reconcile import reconcile
from skate.controlplane.decide.survey import OVERDUE_S, Survey, adopted, is_complete, survey
from skate.controlplane.decide.values import (
    RECOVERY_S,
    Action,
    DeploymentMemory,
    Desired,
    Memory,
    Observed,
    Plan,
    ReplicaMemory,
    StartReplica,
    StopReplica,
)
from skate.core.specs import DeploymentSpec


def decide(desired: Desired, observed: Observed, memory: Memory, now: float) -> Plan:
    """What to do now so that what is seen becomes what is wanted; with ``memory.ending`` nothing is wanted."""
    if not is_complete(observed, now, RECOVERY_S):
        return Plan((), memory, wake_at=observed.started_at + RECOVERY_S, waiting=True)
    memory = adopted(memory, observed)
    fleet = plan_proxies(() if memory.ending else desired.proxies, observed, memory.proxies, now)
    round = _Round(survey(memory, observed, now), memory, now)
    if not memory.ending:
        for spec, revision in wanted_deployments(desired):
            round.settle(spec, revision)
        round.clear(keep={spec.key for spec, _ in wanted_deployments(desired)})
    elif fleet.none_left:  # replicas go last: the requests that proxies still hold need them
        round.clear(keep=set())
    return _plan(desired, memory, fleet, round)


def wanted_deployments(desired: Desired) -> Iterable[tuple[DeploymentSpec, int]]:
    """The deployments that shall run, with the revision of their application."""
    for goal in desired.apps.values():
        if not goal.deleting:
            for spec in goal.spec.deployments:
                yield spec, goal.revision


class _Round:
    """Collects one decision; lives only inside ``decide``."""

    def __init__(self, found: Survey, memory: Memory, now: float) -> None:
        self.found = found
        self.now = now
        self.actions: list[Action] = list(found.actions)
        self.replicas: dict[str, ReplicaMemory] = dict(found.replicas)
        self.before = memory.deployments
        self.deployments: dict[str, DeploymentMemory] = {}
        self.next_ordinal = memory.next_ordinal
        self.wakes: list[float] = [] if found.wake_at is None else [found.wake_at]

    def settle(self, spec: DeploymentSpec, revision: int) -> None:
        """Brings one deployment to what is wanted."""
        standing = self.found.standing.get(spec.key, [])
        endings = self.found.endings.get(spec.key, [])
        plan = reconcile(spec, revision, standing, endings, self.before.get(spec.key), self.now)
        self.deployments[spec.key] = plan.memory
        if plan.wake_at is not None:
            self.wakes.append(plan.wake_at)
        for _ in range(plan.starts):
            self._start(spec)
        for id in plan.stops:
            self._stop(id, spec.options.graceful_shutdown_timeout_s)

    def clear(self, keep: set[str]) -> None:
        """Stops everything that stands and is of no wanted deployment."""
        for key, standing in self.found.standing.items():
            if key not in keep:
                for one in standing:
                    self._stop(one.id, self.replicas[one.id].grace_s)

    def _start(self, spec: DeploymentSpec) -> None:
        ordinal, self.next_ordinal = self.next_ordinal, self.next_ordinal + 1
        id = f"{spec.key}#{ordinal}"
        grace_s = spec.options.graceful_shutdown_timeout_s
        self.replicas[id] = ReplicaMemory(spec.app, spec.name, spec.version, ordinal, grace_s)
        self.actions.append(StartReplica(id, spec.app, spec.name))

    def _stop(self, id: str, grace_s: float) -> None:
        stop_by = self.now + grace_s + OVERDUE_S
        self.replicas[id] = replace(self.replicas[id], stop_by=stop_by)
        self.actions.append(StopReplica(id, grace_s))
        self.wakes.append(stop_by)


def _plan(desired: Desired, memory: Memory, fleet: FleetPlan, round: _Round) -> Plan:
    if fleet.wake_at is not None:
        round.wakes.append(fleet.wake_at)
    occupied = {replica.app for replica in round.replicas.values()}
    deployments = memory.deployments if memory.ending else round.deployments
    after = replace(
        memory,
        next_ordinal=round.next_ordinal,
        replicas=round.replicas,
        deployments=deployments,
        proxies=fleet.memory,
    )
    return Plan(
        actions=(*fleet.actions, *round.actions),
        memory=after,
        wake_at=min(round.wakes, default=None),
        gone=tuple(name for name, goal in desired.apps.items() if goal.deleting and name not in occupied),
        ended=memory.ending and fleet.none_left and not round.replicas,
    )
