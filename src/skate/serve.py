"""The public API: ``from skate import serve``.

Law: the names and meanings are Ray Serve's of today, so whoever knows them knows these; each function here only
translates to the floors below. What blocks, blocks the calling thread and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from skate.authoring.deployment import Deployment, deployment
from skate.authoring.graph import Application, build
from skate.authoring.ingress import ingress
from skate.controlplane import instance as instances
from skate.controlplane.instance import EngineName
from skate.core import context, origin
from skate.core.admin_options import admin_options as read_admin_options
from skate.core.context import ReplicaContext, RequestContext
from skate.core.environment import environment
from skate.core.errors import ContextError, NotFoundError, NotRunningError, OptionError
from skate.core.options import check_http_options, check_name, check_route_prefix
from skate.core.specs import (
    ApplicationStatus,
    AppSpec,
    AutoscalingStatus,
    CrashLoop,
    DeploymentStatus,
    HttpOptions,
    ProxyStatus,
    ReplicaStatus,
    ScalingDecision,
    ServeStatus,
)
from skate.dataplane import caller as callers
from skate.dataplane.handle import DeploymentHandle, Response
from skate.dataplane.stream import ResponseStream

__all__ = [
    "Application",
    "ApplicationStatus",
    "AutoscalingStatus",
    "CrashLoop",
    "Deployment",
    "DeploymentHandle",
    "DeploymentStatus",
    "HttpOptions",
    "ProxyStatus",
    "ReplicaContext",
    "ReplicaStatus",
    "RequestContext",
    "Response",
    "ResponseStream",
    "ScalingDecision",
    "ServeStatus",
    "delete",
    "deployment",
    "get_app_handle",
    "get_deployment_handle",
    "get_replica_context",
    "get_request_context",
    "ingress",
    "run",
    "shutdown",
    "start",
    "status",
]

T = TypeVar("T")
DEFAULT_APP = "default"

logger = logging.getLogger("skate")


def start(
    *,
    http_options: HttpOptions | Mapping[str, Any] | None = None,
    http: bool = True,
    admin_options: Mapping[str, Any] | None = None,
    proxies: int = 1,
    engine: EngineName = "process",
    preload: Sequence[str] = (),
) -> None:
    """Starts an instance if none is running; it ends with this process.

    ``http_options``: a dict or HttpOptions with ``host`` (default ``127.0.0.1``), ``port`` (8000; 0 takes a free one),
    ``root_path``, ``request_timeout_s`` (None: no limit), ``keep_alive_timeout_s`` (90), ``max_body_bytes``
    (100 MiB), ``show_traceback`` (False). ``http`` False: no HTTP at all.
    ``admin_options``: a dict with ``host`` (default ``127.0.0.1``), ``port`` (8265) and ``token_file`` of the REST API;
    None: there is none. ``proxies``: processes that share the
    port. ``engine``: ``process`` (default) or ``inline`` (everything in this process, for tests). ``preload``:
    modules that the template imports before replicas are forked from it.

    The options of a running instance are not changed. Raises OptionError, AddressInUseError.
    """
    _refuse_in_replica("serve.start()")
    if not isinstance(proxies, int) or isinstance(proxies, bool) or not 1 <= proxies <= 64:
        raise OptionError(f"proxies must be a number from 1 to 64, not {proxies!r}")
    if not isinstance(http, bool):
        raise OptionError(f"http must be True or False, not {http!r}; addresses go into http_options")
    if isinstance(preload, str) or not all(isinstance(name, str) for name in preload):
        raise OptionError(f"preload takes a list of module names, such as ['numpy'], not {preload!r}")
    if engine not in ("process", "inline"):
        raise OptionError(f"engine must be 'process' or 'inline', not {engine!r}")
    options = _http_options(http_options) if http else None
    admin = None if admin_options is None else read_admin_options(admin_options, environment().admin_token)
    instance, new = instances.start(options, engine=engine, proxies=proxies, preload=tuple(preload), admin=admin)
    given = http_options is not None or admin is not None or preload or proxies != 1 or not http or engine != "process"
    if not new and given:
        logger.warning("serve.start(): an instance is running already; its options stay as they are")
    callers.start(instance.address)


def run(
    target: Application[T],
    *,
    name: str = DEFAULT_APP,
    route_prefix: str | None = "/",
    blocking: bool = False,
    on_status: Callable[[ServeStatus], None] | None = None,
) -> DeploymentHandle[T]:
    """Deploys an application, waits until it is ready and returns the handle of its ingress.

    Starts an instance first if none is running; that one ends with this process. ``name``: of the application
    (default ``default``); an application of that name is replaced. ``route_prefix``: where HTTP finds it
    (default ``/``; None: nowhere). ``blocking``: wait for Ctrl-C, then end what was started here.
    ``on_status`` hears every change while it starts.

    Raises TypeError if ``target`` is no bound deployment, GraphError, OptionError, CodeError before anything
    runs, AddressInUseError, and DeployError with the replica's traceback when it cannot become ready.
    """
    _refuse_in_replica("serve.run()")
    spec = application_spec(target, name, route_prefix)
    instance, _ = instances.start(HttpOptions())
    if not instance.owned and not instance.announced:
        instance.announced = True
        logger.warning(
            "serve.run(): joining the instance that runs in %s, started by another process; it ends with that one. "
            "For one of your own set SKATE_INSTANCE to another name",
            instance.runtime_dir,
        )
    by = origin.said(_command(), os.getcwd(), os.getpid())
    _warn_of_others(instance, name, by)
    revision = instance.deploy(spec, on_status, by)
    handle: DeploymentHandle[T] = DeploymentHandle(spec.name, spec.ingress, address=instance.address)
    if blocking:
        _say_where(instance.status(), name, route_prefix)
        try:
            wait_for_interrupt()
        finally:
            if instance.owned:
                shutdown()
            else:  # what somebody else has deployed under this name meanwhile stays
                with contextlib.suppress(NotFoundError, NotRunningError):
                    instance.delete(name, revision)
    return handle


def _command() -> str:
    """How this process was started, in words."""
    script = sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c", "-m") else ""
    return f"python {os.path.basename(script)}" if script else "python"


def _warn_of_others(instance: instances.Instance, name: str, by: str) -> None:
    if instance.owned:
        return
    before = instance.status().applications.get(name)
    if before is not None and before.status != "DELETING" and not origin.same(before.deployed_by, by):
        logger.warning("serve.run(): application %s was deployed by %s; it is replaced", name, before.deployed_by)


def _say_where(status: ServeStatus, name: str, route_prefix: str | None) -> None:
    addresses = [f"http://{proxy.address}{route_prefix}" for proxy in status.proxies.values() if route_prefix]
    where = f" at {addresses[0]}" if addresses else ""
    print(f"Application {name} is ready{where}; Ctrl-C ends it.", flush=True)


def application_spec(target: Any, name: str = DEFAULT_APP, route_prefix: str | None = "/") -> AppSpec:
    """The application as a plain value. Raises what ``run`` raises before anything runs."""
    if not isinstance(target, Application):
        hint = " (did you forget .bind()?)" if isinstance(target, (Deployment, type)) or callable(target) else ""
        raise TypeError(
            f"serve.run() takes a bound deployment, Deployment.bind(...), not {type(target).__name__}{hint}"
        )
    check_name(name)
    prefix = check_route_prefix(route_prefix)
    paths = tuple(os.path.abspath(path or ".") for path in sys.path if not path.endswith(".zip"))
    return build(target, name, prefix, sys_path=paths, cwd=os.getcwd())


def wait_for_interrupt() -> None:
    """Returns at Ctrl-C (KeyboardInterrupt is not passed on)."""
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return


def shutdown() -> None:
    """Ends the whole instance, with all its applications and processes; does nothing when none is running."""
    _refuse_in_replica("serve.shutdown()")
    try:
        instance = instances.find()
    except NotRunningError:
        return
    try:
        instance.shutdown()
    finally:
        instances.forget()


def delete(name: str) -> None:
    """Deletes an application and waits until its replicas have ended. Raises NotFoundError, NotRunningError."""
    check_name(name)
    instances.find().delete(name)


def status() -> ServeStatus:
    """The state of everything that runs; an empty ServeStatus when nothing does."""
    try:
        return instances.find().status()
    except NotRunningError:
        return ServeStatus()


def get_app_handle(name: str = DEFAULT_APP) -> DeploymentHandle[Any]:
    """The handle of an application's ingress. Raises NotFoundError, NotRunningError."""
    for lane in tuple(_caller().router.lanes.values()):  # its thread may change them meanwhile
        if lane.target.app == name and lane.target.ingress:
            return DeploymentHandle(name, lane.target.name, address=_caller().address)
    raise NotFoundError(f"no application {name!r} is running; running are: {_known_apps()}")


def get_deployment_handle(deployment_name: str, app_name: str | None = None) -> DeploymentHandle[Any]:
    """The handle of a deployment; ``app_name`` defaults to the application of the calling replica.

    Raises NotFoundError, ContextError when ``app_name`` is left out outside a replica, NotRunningError.
    """
    if app_name is None:
        here = context.replica_context()
        if here is None:
            raise ContextError(
                "get_deployment_handle() needs app_name outside a replica: "
                "get_deployment_handle(name, app_name='default')"
            )
        app_name = here.app_name
    lanes = _caller().router.lanes
    if f"{app_name}/{deployment_name}" not in lanes:
        known = ", ".join(sorted(lane.target.name for lane in tuple(lanes.values()) if lane.target.app == app_name))
        where = f"its deployments are: {known}" if known else f"no such application; running are: {_known_apps()}"
        raise NotFoundError(f"no deployment {deployment_name!r} in application {app_name!r}; {where}")
    return DeploymentHandle(app_name, deployment_name, address=_caller().address)


def get_replica_context() -> ReplicaContext:
    """The replica that the calling code runs in. Raises ContextError outside a replica."""
    here = context.replica_context()
    if here is None:
        raise ContextError("get_replica_context() was called outside a replica")
    return here


def get_request_context() -> RequestContext:
    """The request that the calling code works for: its id, application, route and deadline. ContextError if none."""
    here = context.request.get()
    if here is None:
        raise ContextError("get_request_context() was called outside a request")
    return here


def _caller() -> callers.Caller:
    try:
        return callers.current()
    except NotRunningError:
        return callers.start(instances.find().address)


def _known_apps() -> str:
    return ", ".join(sorted({lane.target.app for lane in tuple(_caller().router.lanes.values())})) or "none"


def _http_options(given: HttpOptions | Mapping[str, Any] | None) -> HttpOptions:
    if given is None:
        return HttpOptions()
    if not isinstance(given, (HttpOptions, Mapping)):
        raise OptionError(f"http_options takes a dict such as {{'port': 8000}}, not {given!r}")
    plain = msgspec.structs.asdict(given) if isinstance(given, HttpOptions) else given
    return HttpOptions(**check_http_options(plain))


def _refuse_in_replica(what: str) -> None:
    if context.replica_context() is not None:
        raise ContextError(f"{what} cannot be called inside a replica: call it from a script or the command line")
