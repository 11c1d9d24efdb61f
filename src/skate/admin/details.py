"""The instance in the shape of Ray Serve's ServeInstanceDetails. Pure: a status and a file in, a value out.

Law: Ray Serve's names mean what they mean there; what it has and one machine has not (actor ids, placement groups) is
left out, and what only Skate has stands beside it under its own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from skate.admin.files import shown_applications
from skate.core.config import ServeConfig
from skate.core.specs import (
    ApplicationState,
    ApplicationStatus,
    AutoscalingStatus,
    CrashLoop,
    DeploymentState,
    DeploymentStatus,
    HttpOptions,
    ProxyStatus,
    ReplicaPhase,
    ReplicaStatus,
    ServeStatus,
    StatusTrigger,
)

ReplicaState = Literal["STARTING", "RUNNING", "STOPPING"]
Source = Literal["imperative", "declarative"]

_STATES: dict[ReplicaPhase, ReplicaState] = {"ready": "RUNNING", "draining": "STOPPING", "failed": "STOPPING"}
_RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


class ReplicaDetails(msgspec.Struct, frozen=True):
    """One replica. ``start_time_s``: wall time since when it is in its phase."""

    replica_id: str
    state: ReplicaState
    pid: int
    start_time_s: float
    phase: ReplicaPhase
    message: str = ""
    version: str = ""


class DeploymentDetails(msgspec.Struct, frozen=True):
    """One deployment. ``deployment_config``: what the file says of it, and the number of replicas."""

    name: str
    status: DeploymentState
    status_trigger: StatusTrigger
    message: str
    deployment_config: dict[str, Any]
    target_num_replicas: int
    required_resources: dict[str, float]
    replicas: tuple[ReplicaDetails, ...]
    autoscaling_detail: AutoscalingStatus | None = None
    crash_loop: CrashLoop | None = None
    version: str = ""


class ApplicationDetails(msgspec.Struct, frozen=True):
    """One application. ``deployed_app_config``: as a file has it, without secrets; None: it came from code."""

    name: str
    route_prefix: str | None
    docs_path: str | None
    status: ApplicationState
    message: str
    last_deployed_time_s: float
    deployed_app_config: dict[str, Any] | None
    source: Source
    deployments: dict[str, DeploymentDetails]
    external_scaler_enabled: bool = False
    revision: int = 0
    deployed_by: str = ""


class ControllerDetails(msgspec.Struct, frozen=True):
    """The controller."""

    pid: int


class InstanceDetails(msgspec.Struct, frozen=True):
    """The whole instance."""

    controller_info: ControllerDetails
    proxy_location: str
    http_options: dict[str, Any] | None
    grpc_options: dict[str, Any] | None
    proxies: dict[str, ProxyStatus]
    applications: dict[str, ApplicationDetails]
    target_capacity: float | None
    admin: ProxyStatus | None = None


def instance_details(
    status: ServeStatus, config: ServeConfig, http: HttpOptions | None, now: float, source: Source | None = None
) -> InstanceDetails:
    """The whole instance, with the applications of one source or of all. ``now``: wall time."""
    files = shown_applications(config)
    chosen = {name: app for name, app in status.applications.items() if source in (None, app.source)}
    return InstanceDetails(
        controller_info=ControllerDetails(status.controller_pid),
        proxy_location=config.proxy_location or ("Disabled" if http is None else "HeadOnly"),
        http_options=None if http is None else msgspec.to_builtins(http),
        grpc_options=config.grpc_options or None,
        proxies=status.proxies,
        applications={name: application_details(app, files.get(name), now) for name, app in chosen.items()},
        target_capacity=status.target_capacity,
        admin=status.admin,
    )


def application_details(app: ApplicationStatus, file: dict[str, Any] | None, now: float) -> ApplicationDetails:
    """One application; ``file``: what is wanted of it, as a file has it and without secrets."""
    file = file if app.source == "declarative" else None
    overrides = {str(one.get("name")): one for one in (file or {}).get("deployments", ())}
    return ApplicationDetails(
        name=app.name,
        route_prefix=app.route_prefix,
        docs_path=None,
        status=app.status,
        message=app.message,
        last_deployed_time_s=app.last_deployed_time_s,
        deployed_app_config=file,
        source=app.source,
        deployments={name: _deployment(one, overrides.get(name, {}), now) for name, one in app.deployments.items()},
        external_scaler_enabled=bool((file or {}).get("external_scaler_enabled", False)),
        revision=app.revision,
        deployed_by=app.deployed_by,
    )


def _deployment(seen: DeploymentStatus, override: Mapping[str, Any], now: float) -> DeploymentDetails:
    replicas = "auto" if seen.autoscaling is not None else seen.target_replicas
    return DeploymentDetails(
        name=seen.name,
        status=seen.status,
        status_trigger=seen.status_trigger,
        message=seen.message,
        deployment_config={**override, "name": seen.name, "num_replicas": replicas},
        target_num_replicas=seen.target_replicas,
        required_resources=_resources(override.get("ray_actor_options") or {}),
        replicas=tuple(_replica(one, now) for one in seen.replicas),
        autoscaling_detail=seen.autoscaling,
        crash_loop=seen.crash_loop,
        version=seen.version,
    )


def _resources(options: Mapping[str, Any]) -> dict[str, float]:
    named = {_RESOURCES[key]: value for key, value in options.items() if key in _RESOURCES and value is not None}
    return {**named, **(options.get("resources") or {})}


def _replica(seen: ReplicaStatus, now: float) -> ReplicaDetails:
    state = _STATES.get(seen.phase, "STARTING")
    return ReplicaDetails(seen.id, state, seen.pid, now - seen.phase_s, seen.phase, seen.message, seen.version)
