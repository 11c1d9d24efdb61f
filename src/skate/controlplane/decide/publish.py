"""What routers are told: who may be sent calls, and under which paths. Law: one value for each deployment, which
follows from what is wanted, seen and remembered of it and from nothing else.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from skate.controlplane.decide import restart
from skate.controlplane.decide.reconcile import gave_up
from skate.controlplane.decide.restart import last_line
from skate.controlplane.decide.status import Living, current, living_replicas
from skate.controlplane.decide.survey import is_ready
from skate.controlplane.decide.values import DeploymentMemory, Desired, Memory, Observed, Wanted
from skate.core.specs import (
    AppSpec,
    DeploymentSpec,
    DeploymentTarget,
    ReplicaTarget,
    RequestRouterTarget,
    Route,
)


class Published(msgspec.Struct, frozen=True):
    """Everything that routers know at one moment."""

    deployments: dict[str, DeploymentTarget] = {}
    routes: tuple[Route, ...] = ()


def published(desired: Desired, observed: Observed, memory: Memory, place: str) -> Published:
    """What routers shall know. ``place``: where replicas listen, see ``address_of``."""
    deployments = {key: deployment(key, wanted, observed, memory, place) for key, wanted in desired.wanted.items()}
    return Published(deployments, desired.routes)


def deployment(key: str, wanted: Wanted, observed: Observed, memory: Memory, place: str) -> DeploymentTarget:
    """One deployment as routers see it."""
    living = living_replicas(key, observed, memory)
    known = current(wanted.goal, wanted.spec, memory)
    target = target_of(wanted.spec, living, known, place)
    if target.unavailable is not None and known is not None and _former_comes(wanted, known):
        target = replace(target, unavailable=None)
    chooser = request_router_of(wanted.goal.spec, wanted.spec)
    return replace(target, request_router=chooser) if chooser is not None else target


def _former_comes(wanted: Wanted, memory: DeploymentMemory) -> bool:
    """Whether the version that worked before is about to serve again, so that calls may wait for it."""
    return wanted.former is not None and not restart.is_loop(memory.former_failures, memory.target)


def address_of(id: str, place: str) -> str:
    """Where a replica listens. ``place``: ``unix:`` and a directory, or ``memory:``."""
    return f"{place}/r-{id.rpartition('#')[2]}.sock" if place.startswith("unix:") else f"{place}{id}"


def target_of(spec: DeploymentSpec, living: Living, memory: DeploymentMemory | None, place: str) -> DeploymentTarget:
    """One deployment as routers see it. Replicas of the version before serve along until they are stopped."""
    replicas = tuple(
        ReplicaTarget(seen.id, address_of(seen.id, place)) for replica, seen in living if is_ready(replica, seen)
    )
    unavailable = None
    if not replicas and memory is not None and gave_up(spec, memory):
        unavailable = f"deployment {spec.key} failed to start: {last_line(memory.failures.error)}"
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
        asleep=memory is not None and memory.target == 0,
    )


def request_router_of(app: AppSpec, spec: DeploymentSpec) -> RequestRouterTarget | None:
    """Who chooses the replicas, with what a router needs to import it."""
    config = spec.options.request_router_config
    if config is None or config.request_router_class is None:
        return None
    return RequestRouterTarget(config.request_router_class, config.request_router_kwargs, app.sys_path, app.cwd)
