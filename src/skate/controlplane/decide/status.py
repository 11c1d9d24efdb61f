"""What users are told, derived anew each time from what is wanted, seen and remembered. Law: nothing here is stored.

The states are Ray Serve's. An application is as bad as its worst deployment.
"""

from __future__ import annotations

from typing import Literal

from skate.controlplane.decide import restart
from skate.controlplane.decide.ledger import total
from skate.controlplane.decide.reconcile import gave_up, is_failing, is_settled
from skate.controlplane.decide.rollout import Standing
from skate.controlplane.decide.survey import is_ready
from skate.controlplane.decide.values import (
    DeploymentMemory,
    Desired,
    Goal,
    Memory,
    Observed,
    ProxyMemory,
    ProxySeen,
    ReplicaMemory,
    ReplicaSeen,
)
from skate.core.specs import (
    ApplicationState,
    ApplicationStatus,
    Counts,
    DeploymentSpec,
    DeploymentState,
    DeploymentStatus,
    ProxyStatus,
    ReplicaPhase,
    ReplicaStatus,
    ServeStatus,
)

OF_DEPLOYMENT: dict[DeploymentState, ApplicationState] = {
    "DEPLOY_FAILED": "DEPLOY_FAILED",
    "UNHEALTHY": "UNHEALTHY",
    "UPDATING": "DEPLOYING",
    "UPSCALING": "DEPLOYING",
    "DOWNSCALING": "DEPLOYING",
    "HEALTHY": "RUNNING",
}
WORST_FIRST: tuple[ApplicationState, ...] = ("DEPLOY_FAILED", "UNHEALTHY", "DEPLOYING", "RUNNING")

Living = dict[str, list[tuple[ReplicaMemory, ReplicaSeen]]]  # by deployment key, oldest first


def serve_status(
    desired: Desired, observed: Observed, memory: Memory, now: float, calls: Counts, pid: int
) -> ServeStatus:
    """The whole instance."""
    living = living_replicas(observed, memory)
    return ServeStatus(
        controller_pid=pid,
        proxies={
            id: proxy_status(id, observed.proxies.get(id), slot, memory.ending) for id, slot in memory.proxies.items()
        },
        applications={
            name: application_status(goal, living, memory, now, memory.ending) for name, goal in desired.apps.items()
        },
        calls=total(calls.values()),
        calls_by_deployment=calls,
    )


def living_replicas(observed: Observed, memory: Memory) -> Living:
    """Remembered replicas whose process lives."""
    found: Living = {}
    for id, replica in sorted(memory.replicas.items(), key=lambda item: item[1].ordinal):
        seen = observed.replicas.get(id)
        if seen is not None and seen.alive:
            found.setdefault(replica.key, []).append((replica, seen))
    return found


def application_status(goal: Goal, living: Living, memory: Memory, now: float, ending: bool) -> ApplicationStatus:
    """One application, as bad as its worst deployment."""
    deployments = {
        spec.name: deployment_status(spec, living.get(spec.key, []), current(goal, spec, memory), now)
        for spec in goal.spec.deployments
    }
    states = {name: OF_DEPLOYMENT[deployment.status] for name, deployment in deployments.items()}
    worst: ApplicationState = min(states.values(), key=WORST_FIRST.index, default="RUNNING")
    message = ""
    if goal.deleting or ending:
        worst = "DELETING"
    elif worst != "RUNNING":
        told = [f"{name}: {one.message}" for name, one in deployments.items() if states[name] == worst and one.message]
        message = "\n".join(told)
    return ApplicationStatus(
        name=goal.spec.name,
        status=worst,
        message=message,
        route_prefix=goal.spec.route_prefix,
        last_deployed_time_s=goal.deployed_at,
        deployments=deployments,
    )


def current(goal: Goal, spec: DeploymentSpec, memory: Memory) -> DeploymentMemory | None:
    """How the deployment fares at this revision; None as long as nothing was decided about it."""
    found = memory.deployments.get(spec.key)
    return found if found is not None and found.revision == goal.revision else None


def deployment_status(
    spec: DeploymentSpec,
    living: list[tuple[ReplicaMemory, ReplicaSeen]],
    memory: DeploymentMemory | None,
    now: float,
) -> DeploymentStatus:
    """One deployment."""
    target = spec.options.replicas
    state: DeploymentState = "UPDATING"
    message = ""
    if memory is not None:
        state, message = deployment_state(spec, target, living, memory)
    return DeploymentStatus(
        name=spec.name,
        status=state,
        message=message,
        target_replicas=target,
        replicas=tuple(
            ReplicaStatus(
                seen.id, shown_phase(replica, seen), seen.pid, max(0.0, now - seen.since), seen.message, seen.blocked
            )
            for replica, seen in living
        ),
    )


def deployment_state(
    spec: DeploymentSpec, target: int, living: list[tuple[ReplicaMemory, ReplicaSeen]], memory: DeploymentMemory
) -> tuple[DeploymentState, str]:
    """The state of a deployment and the sentence that explains it."""
    standing = [
        Standing(seen.id, replica.version, "ready" if is_ready(replica, seen) else "starting", replica.ordinal)
        for replica, seen in living
        if not replica.stopping
    ]
    failures = memory.failures
    if is_settled(spec.version, target, standing):
        return "HEALTHY", ""
    if memory.settled:
        ready = sum(one.stage == "ready" for one in standing)
        why = f" The last error:\n{failures.error}" if failures.error else ""
        return "UNHEALTHY", f"{ready} of {target} replicas are ready.{why}"
    if is_failing(spec, memory):
        ending = "No more are tried until it is deployed again." if gave_up(spec, memory) else "Trying goes on slowly."
        count = f"{failures.in_a_row} replicas failed to start in a row."
        return "DEPLOY_FAILED", f"{count} {ending} The last error:\n{failures.error}"
    if failures.in_a_row:
        left = restart.budget(spec.options.max_constructor_retry_count, target) - failures.in_a_row
        return memory.course, f"A replica failed to start; {left} more may fail. The error:\n{failures.error}"
    return memory.course, ""


def shown_phase(replica: ReplicaMemory, seen: ReplicaSeen) -> ReplicaPhase:
    """The phase as users see it: whoever was told to stop is draining, whatever it said last."""
    if seen.phase == "failed":
        return "failed"
    return "draining" if replica.stopping else "ready" if is_ready(replica, seen) else seen.phase


def proxy_status(id: str, seen: ProxySeen | None, slot: ProxyMemory, ending: bool) -> ProxyStatus:
    """One proxy."""
    state: Literal["STARTING", "HEALTHY", "UNHEALTHY", "DRAINING"]
    if ending:
        state = "DRAINING"
    elif seen is not None and seen.alive and seen.phase == "ready":
        state = "HEALTHY"
    elif slot.failures.in_a_row:
        state = "UNHEALTHY"
    else:
        state = "STARTING"
    living = seen is not None and seen.alive
    return ProxyStatus(
        id=id,
        status=state,
        pid=seen.pid if seen is not None and living else 0,
        address=slot.address,
        message=slot.failures.error if state == "UNHEALTHY" else "",
    )
