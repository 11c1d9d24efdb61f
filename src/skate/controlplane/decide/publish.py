"""What routers are told: who may be sent calls, and under which paths. Law: keyed, the last one wins; the difference
between two states names every key that changed and nothing else, so applying it to the first gives the second.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from skate.controlplane.decide.reconcile import gave_up
from skate.controlplane.decide.status import Living, current, living_replicas
from skate.controlplane.decide.survey import is_ready
from skate.controlplane.decide.values import DeploymentMemory, Desired, Memory, Observed
from skate.core.specs import (
    AppSpec,
    DeploymentSpec,
    DeploymentTarget,
    ReplicaTarget,
    RequestRouterTarget,
    Route,
    Snapshot,
)

CAUSE_MAX = 300  # characters of a cause that callers are shown; the status has all of it


class Published(msgspec.Struct, frozen=True):
    """Everything that routers know at one moment."""

    deployments: dict[str, DeploymentTarget] = {}
    routes: tuple[Route, ...] = ()


def published(desired: Desired, observed: Observed, memory: Memory, addresses: dict[str, str]) -> Published:
    """What routers shall know. ``addresses``: where each replica listens, by id."""
    living = living_replicas(observed, memory)
    deployments: dict[str, DeploymentTarget] = {}
    routes: list[Route] = []
    for goal in desired.apps.values():
        if goal.deleting:
            continue
        for spec in goal.spec.deployments:
            chooser = request_router_of(goal.spec, spec)
            target = target_of(spec, living, current(goal, spec, memory), addresses)
            deployments[spec.key] = replace(target, request_router=chooser) if chooser is not None else target
        if goal.spec.route_prefix is not None:
            routes.append(Route(goal.spec.route_prefix, goal.spec.name, goal.spec.ingress))
    return Published(deployments, tuple(sorted(routes, key=lambda route: route.prefix)))


def target_of(
    spec: DeploymentSpec, living: Living, memory: DeploymentMemory | None, addresses: dict[str, str]
) -> DeploymentTarget:
    """One deployment as routers see it. Replicas of the version before serve along until they are stopped."""
    replicas = tuple(
        ReplicaTarget(seen.id, addresses[seen.id])
        for replica, seen in living.get(spec.key, [])
        if is_ready(replica, seen)
    )
    unavailable = None
    if not replicas and memory is not None and gave_up(spec, memory):
        unavailable = f"deployment {spec.key} failed to start: {cause_of(memory.failures.error)}"
    pressure = spec.options.backpressure_config
    return DeploymentTarget(
        app=spec.app,
        name=spec.name,
        max_ongoing_requests=spec.options.max_ongoing_requests,
        max_queued_requests=spec.options.max_queued_requests,
        replicas=replicas,
        unavailable=unavailable,
        asgi=spec.asgi,
        backpressure_status=pressure.status_code,
        retry_after_s=pressure.retry_after_s,
        ingress=spec.ingress,
        retry=spec.options.retry,
    )


def request_router_of(app: AppSpec, spec: DeploymentSpec) -> RequestRouterTarget | None:
    """Who chooses the replicas, with what a router needs to import it."""
    config = spec.options.request_router_config
    if config is None or config.request_router_class is None:
        return None
    return RequestRouterTarget(config.request_router_class, config.request_router_kwargs, app.sys_path, app.cwd)


def cause_of(error: str) -> str:
    """The last line of a traceback, which names the exception."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1][:CAUSE_MAX] if lines else "see the status of the application"


def whole(state: Published, generation: int) -> Snapshot:
    """Everything, for a router that knows nothing yet."""
    return Snapshot(generation, True, dict(state.deployments), state.routes)


def delta(before: Published, after: Published, generation: int) -> Snapshot | None:
    """What changed; None when nothing did."""
    changed: dict[str, DeploymentTarget | None] = {
        key: target for key, target in after.deployments.items() if before.deployments.get(key) != target
    }
    changed.update({key: None for key in before.deployments if key not in after.deployments})
    routes = after.routes if after.routes != before.routes else None
    if not changed and routes is None:
        return None
    return Snapshot(generation, False, changed, routes)
