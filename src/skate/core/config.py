"""Applications as files and REST say them: plain values, before any user code was imported.

Law: names and shapes are Ray Serve's. What stands here was checked; ``authoring.config`` reads and checks it,
``controlplane.builder`` imports the code and makes an ``AppSpec`` of it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from skate.core.specs import AppSpec


class AppConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """One application of a file. ``deployments``: options over those of the code, by name of the deployment."""

    name: str
    import_path: str
    route_prefix: str | None = "/"
    args: dict[str, Any] = {}
    runtime_env: dict[str, Any] = {}
    deployments: dict[str, dict[str, Any]] = {}
    logging_config: dict[str, Any] | None = None
    autoscaling_policy: dict[str, Any] | None = None
    external_scaler_enabled: bool = False


class ServeConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """A whole file. ``target_capacity``: percent, scales the replicas of everything; None: 100."""

    applications: tuple[AppConfig, ...] = ()
    http_options: dict[str, Any] = {}
    grpc_options: dict[str, Any] = {}
    logging_config: dict[str, Any] | None = None
    proxy_location: str | None = None
    target_capacity: float | None = None


class ApplyRequest(msgspec.Struct, frozen=True):
    """Applications that somebody wants to be deployed, and where their code is looked for.

    ``prune``: applications that came from files and are not named here are deleted.
    """

    config: ServeConfig
    sys_path: tuple[str, ...] = ()
    cwd: str | None = None
    prune: bool = False
    by: str = ""


class BuildRequest(msgspec.Struct, frozen=True):
    """What a builder process is started with (``ProcessSpec.config`` of role builder)."""

    id: str  # of the process; the answer names it
    controller: str  # address
    app: AppConfig
    logging_config: dict[str, Any] | None = None  # of the whole file
    sys_path: tuple[str, ...] = ()
    cwd: str | None = None


class BuildResult(msgspec.Struct, frozen=True):
    """What came of a build: exactly one of the two. ``error``: a sentence, and the traceback of the user's code."""

    id: str  # of the process
    spec: AppSpec | None = None
    error: str = ""
