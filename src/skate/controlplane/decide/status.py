"""What users are told, derived anew each time from what is wanted, seen and remembered. Law: nothing here is stored.

The states are Ray Serve's. An application is as bad as its worst deployment.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from msgspec.structs import replace

from skate.controlplane.decide import restart
from skate.controlplane.decide.ledger import total
from skate.controlplane.decide.reconcile import gave_up, is_failing, is_settled
from skate.controlplane.decide.rollout import Standing
from skate.controlplane.decide.survey import is_ready
from skate.controlplane.decide.values import (
    ADMIN,
    DeploymentMemory,
    Desired,
    Goal,
    Memory,
    Observed,
    Order,
    ProxyMemory,
    ProxySeen,
    ReplicaMemory,
    ReplicaSeen,
)
from skate.core.specs import (
    ApplicationState,
    ApplicationStatus,
    AutoscalingStatus,
    Counts,
    CrashLoop,
    DeploymentSpec,
    DeploymentState,
    DeploymentStatus,
    ProxyStatus,
    ReplicaPhase,
    ReplicaStatus,
    ServeStatus,
    StatusTrigger,
)

WORST_FIRST: tuple[ApplicationState, ...] = ("DEPLOY_FAILED", "UNHEALTHY", "DEPLOYING", "RUNNING")

Living = list[tuple[ReplicaMemory, ReplicaSeen]]  # of one deployment, oldest first


def serve_status(
    desired: Desired,
    orders: dict[str, Order],
    observed: Observed,
    memory: Memory,
    now: float,
    calls: Counts | None = None,
    pid: int = 0,
    scalings: Mapping[str, AutoscalingStatus] | None = None,
) -> ServeStatus:
    """The whole instance. ``orders``: applications that are being built, or could not be."""
    calls = calls or {}
    applications = {
        name: application_status(goal, observed, memory, now, orders.get(name), scalings or {})
        for name, goal in desired.apps.items()
    }
    for name, order in orders.items():
        if name not in applications:
            applications[name] = unbuilt_status(order, memory.ending)
    proxies = {
        id: proxy_status(id, observed.proxies.get(id), slot, memory.ending) for id, slot in memory.proxies.items()
    }
    admin = proxies.pop(ADMIN, None)
    return ServeStatus(
        controller_pid=pid,
        proxies=proxies,
        applications=applications,
        calls=total(calls.values()),
        calls_by_deployment=calls,
        target_capacity=desired.capacity,
        admin=admin,
    )


def living_replicas(key: str, observed: Observed, memory: Memory) -> Living:
    """The remembered replicas of a deployment whose process lives."""
    known = memory.deployments.get(key)
    group = observed.replicas.get(key)
    if known is None or group is None:
        return []
    living = [(replica, group[id]) for id, replica in known.replicas.items() if id in group and group[id].alive]
    living.sort(key=lambda pair: pair[0].ordinal)
    return living


def unbuilt_status(order: Order, ending: bool) -> ApplicationStatus:
    """An application of which there is nothing but the order."""
    return ApplicationStatus(
        name=order.config.name,
        status="DELETING" if ending else "DEPLOY_FAILED" if order.error else "DEPLOYING",
        message=order.error or f"importing {order.config.import_path}",
        route_prefix=order.config.route_prefix,
        last_deployed_time_s=order.at,
        source="declarative",
        deployed_by=order.by,
    )


def application_status(
    goal: Goal,
    observed: Observed,
    memory: Memory,
    now: float,
    order: Order | None = None,
    scalings: Mapping[str, AutoscalingStatus] = MappingProxyType({}),
) -> ApplicationStatus:
    """One application, as bad as its worst deployment. ``order``: a newer state of it that is not built yet."""
    deployments = {
        spec.name: replace(
            deployment_status(
                spec,
                living_replicas(spec.key, observed, memory),
                current(goal, spec, memory),
                now,
                goal.deleting or memory.ending,
            ),
            autoscaling=scalings.get(spec.key),
        )
        for spec in goal.spec.deployments
    }
    states = {name: of_deployment(deployment) for name, deployment in deployments.items()}
    worst: ApplicationState = min(states.values(), key=WORST_FIRST.index, default="RUNNING")
    for spec in (one for part in goal.retiring for one in part.deployments):
        living = living_replicas(spec.key, observed, memory)
        deployments[spec.name] = deployment_status(spec, living, current(goal, spec, memory), now, deleting=True)
    message = ""
    if goal.deleting or memory.ending:
        worst = "DELETING"
    elif order is not None:  # what runs goes on
        worst = "DEPLOY_FAILED" if order.error else "DEPLOYING"
        message = order.error or f"importing {order.config.import_path}; what ran before goes on"
    elif worst != "RUNNING":
        told = [(name, deployments[name].message) for name, state in states.items() if state == worst]
        message = "\n".join(f"{name}: {text}" for name, text in told if text)
    return ApplicationStatus(
        name=goal.spec.name,
        status=worst,
        message=message,
        route_prefix=goal.spec.route_prefix,
        last_deployed_time_s=order.at if order is not None else goal.deployed_at,
        deployments=deployments,
        revision=goal.revision,
        source="imperative" if goal.source is None else "declarative",
        deployed_by=order.by if order is not None else goal.by,
    )


def of_deployment(deployment: DeploymentStatus) -> ApplicationState:
    """What the state of a deployment makes of its application: one that only follows the load runs."""
    match deployment.status:
        case "DEPLOY_FAILED" | "UNHEALTHY" as bad:
            return bad
        case "HEALTHY":
            return "RUNNING"
        case "UPSCALING" | "DOWNSCALING" if deployment.status_trigger == "AUTOSCALING":
            return "RUNNING"
    return "DEPLOYING"


def current(goal: Goal, spec: DeploymentSpec, memory: Memory) -> DeploymentMemory | None:
    """How the deployment fares at this revision; None as long as nothing was decided about it."""
    found = memory.deployments.get(spec.key)
    return found if found is not None and found.revision == goal.revision else None


def deployment_status(
    spec: DeploymentSpec, living: Living, memory: DeploymentMemory | None, now: float, deleting: bool = False
) -> DeploymentStatus:
    """One deployment."""
    state: DeploymentState = "UPDATING"
    trigger: StatusTrigger = "CONFIG_UPDATE_STARTED"
    message = ""
    crash_loop = None
    if memory is not None:
        state, trigger, message = deployment_state(spec, living, memory)
        crash_loop = crash_loop_of(spec, memory, now)
    if deleting:
        state, trigger, message, crash_loop = "UPDATING", "DELETING", "", None
    return DeploymentStatus(
        name=spec.name,
        status=state,
        message=message,
        target_replicas=memory.target if memory is not None else spec.options.replicas,
        replicas=tuple(replica_status(replica, seen, now) for replica, seen in living),
        status_trigger=trigger,
        version=spec.version,
        crash_loop=crash_loop,
    )


def replica_status(replica: ReplicaMemory, seen: ReplicaSeen, now: float) -> ReplicaStatus:
    """One replica."""
    return ReplicaStatus(
        id=seen.id,
        phase=shown_phase(replica, seen),
        pid=seen.pid,
        phase_s=max(0.0, now - seen.since),
        message=seen.message or seen.config_error or seen.health_error,
        loop_blocked=seen.blocked,
        version=replica.version,
        strikes=seen.strikes,
    )


def crash_loop_of(spec: DeploymentSpec, memory: DeploymentMemory, now: float) -> CrashLoop | None:
    """Whether its replicas end again and again, and how that goes on."""
    failures = memory.failures
    fresh = restart.forgotten(failures, now)
    if not restart.is_loop(fresh, memory.target):
        return None
    wait_s = max(0.0, restart.next_try_at(failures, memory.target, now) - now)
    return CrashLoop(fresh.recent, None if gave_up(spec, memory) else wait_s, failures.error)


def deployment_state(
    spec: DeploymentSpec, living: Living, memory: DeploymentMemory
) -> tuple[DeploymentState, StatusTrigger, str]:
    """The state of a deployment, what brought it there, and the sentence that explains it."""
    target, failures = memory.target, memory.failures
    standing = [
        Standing(
            seen.id,
            replica.version,
            "ready" if is_ready(replica, seen) else "starting",
            replica.ordinal,
            config=seen.config if seen.reported else None,
        )
        for replica, seen in living
        if not replica.stopping
    ]
    refused = [seen for _, seen in living if seen.refused and seen.refused == spec.config]
    ready = sum(one.stage == "ready" for one in standing)
    if is_settled(spec, target, standing) and not gave_up(spec, memory):
        return "HEALTHY", _completed(memory), ""
    if refused:
        text = f"replica {refused[0].id} could not take up the new configuration and goes on with the one before."
        return "DEPLOY_FAILED", "INTERNAL_ERROR", f"{text} The error:\n{refused[0].config_error}"
    if memory.settled and not gave_up(spec, memory):
        why = f" The last error:\n{failures.error}" if failures.error else ""
        unhealthy: StatusTrigger = "HEALTH_CHECK_FAILED" if "is unhealthy" in failures.error[:200] else "INTERNAL_ERROR"
        return "UNHEALTHY", unhealthy, f"{ready} of {target} replicas are ready.{why}"
    if is_failing(spec, memory):
        ending = "No more are tried until it is deployed again." if gave_up(spec, memory) else "Trying goes on slowly."
        count = f"{failures.in_a_row} replicas failed to start in a row."
        return "DEPLOY_FAILED", "REPLICA_STARTUP_FAILED", f"{count} {ending} The last error:\n{failures.error}"
    trigger: StatusTrigger = "AUTOSCALING" if memory.automatic else "CONFIG_UPDATE_STARTED"
    if failures.in_a_row:
        left = restart.budget(spec.options.max_constructor_retry_count, target) - failures.in_a_row
        text = f"A replica failed to start; {left} more may fail. The error:\n{failures.error}"
        return memory.course, "REPLICA_STARTUP_FAILED", text
    return memory.course, trigger, ""


def _completed(memory: DeploymentMemory) -> StatusTrigger:
    match memory.course:
        case "UPSCALING":
            return "UPSCALE_COMPLETED"
        case "DOWNSCALING":
            return "DOWNSCALE_COMPLETED"
    return "CONFIG_UPDATE_COMPLETED"


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
