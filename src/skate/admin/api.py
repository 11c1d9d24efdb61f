"""What can be asked and ordered: each endpoint of the REST API, as a few lines over one or two control calls.

Law: nothing is decided here; the controller has the last word, and what it refuses is passed on. Deploying and deleting
are asynchronous, as in Ray Serve: the answer says that the order is stored, the status says what becomes of it.

``DELETE /api/serve/applications/`` ends all applications and leaves the instance, and with it this API, running.
Ray Serve shuts itself down there, but the dashboard that took the request stays, and the next PUT starts it again.
So to a client both look the same. An instance is ended by ``skate shutdown``.
"""

from __future__ import annotations

import asyncio
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import PlainTextResponse, Response

from skate.admin.answers import Failure, json_response
from skate.admin.details import ApplicationDetails, InstanceDetails, application_details, instance_details
from skate.admin.endpoints import ApplicationBody, Asked, Endpoint, FileBody, Parameter
from skate.admin.files import read_application, read_file, shown_applications
from skate.controlplane.client import ControllerClient
from skate.core.clock import Clock
from skate.core.config import ApplyRequest, ServeConfig
from skate.core.errors import CallTimeoutError, NotFoundError, OptionError
from skate.core.specs import AppPlan, Event, HttpOptions, Revision, ServeStatus
from skate.observe.metrics import CONTENT_TYPE as METRICS_TYPE

DELETE_S = 1.0  # a deletion that takes longer is answered with 202
PLANS_MAX = 2  # at once: each imports user code
PLAN_RETRY_S = "5"
EVENTS_MAX = 1000  # in one answer
PRESENT = "; running are: "


class Stored(msgspec.Struct, frozen=True):
    """Orders that were stored, by application; the status of each says what becomes of it."""

    orders: dict[str, int]


class Said(msgspec.Struct, frozen=True):
    """What came of a request, in words."""

    message: str


class History(msgspec.Struct, frozen=True):
    """The kept revisions of one application, oldest first."""

    revisions: list[Revision]


class NewRevision(msgspec.Struct, frozen=True):
    """The revision that is wanted now."""

    revision: int


class Events(msgspec.Struct, frozen=True):
    """Some of the log, oldest first; ``last`` is what to ask for with ``after`` next time."""

    events: list[Event]
    last: int


class Plans(msgspec.Struct, frozen=True):
    """What a deploy would do to each application."""

    applications: list[AppPlan]


class Version(msgspec.Struct, frozen=True):
    """What runs here. ``ray_version``: whose REST API this is; clients of Ray Serve ask for it before anything else."""

    skate_version: str
    python_version: str
    ray_version: str = "2.60.0"


class ScaleBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another number of replicas."""

    target_num_replicas: int


class RollbackBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """To which revision; None: the one before the current one."""

    revision: int | None = None


@dataclass(slots=True)
class Api:
    """What the endpoints work with. ``controller`` raises NotRunningError while the controller is away.

    ``folder``: where code is looked for that no ``working_dir`` holds, that is, where the instance was started.
    """

    controller: Callable[[], ControllerClient]
    clock: Clock
    http: HttpOptions | None = None
    folder: str | None = None
    document: Callable[[], Mapping[str, Any]] = dict  # OpenAPI
    plans: int = 0  # under way

    def order(self, config: ServeConfig, by: str, prune: bool = False) -> ApplyRequest:
        """What the controller is asked to apply."""
        path = (self.folder,) if self.folder is not None else ()
        return ApplyRequest(config, path, self.folder, prune, by)


async def get_instance(api: Api, asked: Asked) -> InstanceDetails:
    status, config = await _seen(api)
    return instance_details(status, config, api.http, api.clock.wall(), asked.query["api_type"])


async def _seen(api: Api) -> tuple[ServeStatus, ServeConfig]:
    controller = api.controller()
    return await asyncio.gather(controller.status(), controller.config())


async def put_instance(api: Api, asked: Asked) -> Stored:
    request = api.order(read_file(asked.body), asked.by, prune=True)
    return Stored(await api.controller().apply(request))


async def delete_instance(api: Api, asked: Asked) -> Response:
    controller = api.controller()
    await controller.apply(ApplyRequest(ServeConfig(), prune=True, by=asked.by))  # also what is only being built
    names = list((await controller.status()).applications)
    if all(await asyncio.gather(*(_deleted(controller, name) for name in names))):
        return json_response(Said("all applications are deleted"))
    return json_response(Said(f"being deleted: {', '.join(names)}"), 202)


async def _deleted(controller: ControllerClient, name: str, strict: bool = False) -> bool:
    """Orders it; whether it is gone already."""
    try:
        await controller.delete(name, DELETE_S)
    except CallTimeoutError:
        return False
    except NotFoundError:
        if strict:
            raise
    return True


async def get_application(api: Api, asked: Asked) -> ApplicationDetails:
    status, config = await _seen(api)
    name = asked.path["name"]
    if name not in status.applications:
        known = ", ".join(sorted(status.applications)) or "none"
        raise NotFoundError(f"there is no application {name!r}{PRESENT}{known}")
    return application_details(status.applications[name], shown_applications(config).get(name), api.clock.wall())


async def put_application(api: Api, asked: Asked) -> Stored:
    request = api.order(read_application(asked.body, asked.path["name"]), asked.by)
    return Stored(await api.controller().apply(request))


async def delete_application(api: Api, asked: Asked) -> Response:
    name = asked.path["name"]
    if await _deleted(api.controller(), name, strict=True):
        return json_response(Said(f"application {name} is deleted"))
    return json_response(Said(f"application {name} is being deleted"), 202)


async def get_history(api: Api, asked: Asked) -> History:
    return History(await api.controller().history(asked.path["name"]))


async def post_rollback(api: Api, asked: Asked) -> NewRevision:
    return NewRevision(await api.controller().rollback(asked.path["name"], asked.body.revision, asked.by))


async def post_scale(api: Api, asked: Asked) -> Said:
    app, deployment, number = asked.path["name"], asked.path["deployment"], asked.body.target_num_replicas
    if number < 0:
        raise Failure(400, "OptionError", f"target_num_replicas={number}: takes a whole number >= 0")
    controller = api.controller()
    try:
        await controller.scale(app, deployment, number, asked.by)
    except OptionError as error:
        seen = (await controller.status()).applications.get(app)
        scaled = seen.deployments.get(deployment) if seen is not None else None
        if seen is not None and (seen.status == "DELETING" or (scaled is not None and scaled.autoscaling is not None)):
            raise Failure(412, "PreconditionFailed", str(error)) from None
        raise
    return Said(f"deployment {deployment} of application {app} is scaled to {number} replicas")


async def get_events(api: Api, asked: Asked) -> Events:
    after = asked.query["after"]
    events = await api.controller().events(after, asked.query["app"], asked.query["limit"])
    return Events(events, events[-1].id if events else after)


async def post_plan(api: Api, asked: Asked) -> Plans:
    request = api.order(read_file(asked.body), asked.by, asked.query["prune"])
    if api.plans >= PLANS_MAX:
        retry = {"retry-after": PLAN_RETRY_S}
        raise Failure(429, "Busy", f"{PLANS_MAX} plans are being made, which is the most at a time", headers=retry)
    api.plans += 1
    try:
        return Plans(await api.controller().plan(request))
    finally:
        api.plans -= 1


async def get_status(api: Api, asked: Asked) -> ServeStatus:
    return await api.controller().status()


async def get_version(api: Api, asked: Asked) -> Version:
    return Version(str(vars(sys.modules["skate"]).get("__version__", "unknown")), platform.python_version())


async def get_metrics(api: Api, asked: Asked) -> Response:
    return Response(await api.controller().metrics(), headers={"content-type": METRICS_TYPE})


async def get_health(api: Api, asked: Asked) -> Response:
    return PlainTextResponse("success")


async def get_openapi(api: Api, asked: Asked) -> Response:
    return json_response(api.document())


_APPS = "/api/serve/applications/"
_APP = _APPS + "{name}"
_SOURCE = Parameter(
    "api_type", "Applications of one source.", {"type": "string", "enum": ["imperative", "declarative"]}
)
_LOG = (
    Parameter("after", "Only events with a higher id.", {"type": "integer", "minimum": 0}, 0),
    Parameter("app", "Only of this application.", {"type": "string"}),
    Parameter("limit", "At most so many, the newest.", {"type": "integer", "minimum": 1, "maximum": EVENTS_MAX}, 1000),
)
_PRUNE = Parameter("prune", "Also delete what came from files and is not named.", {"type": "boolean"}, True)

ENDPOINTS = (
    Endpoint("GET", _APPS, get_instance, "The whole instance.", InstanceDetails, query=(_SOURCE,)),
    Endpoint(
        "PUT",
        _APPS,
        put_instance,
        "Deploys a file; applications that came from files and are not in it are deleted.",
        Stored,
        FileBody,
        failures=(400,),
    ),
    Endpoint("DELETE", _APPS, delete_instance, "Deletes all applications; the instance stays.", Said),
    Endpoint("GET", _APP, get_application, "One application.", ApplicationDetails, failures=(404,)),
    Endpoint("PUT", _APP, put_application, "Deploys one application.", Stored, ApplicationBody, failures=(400,)),
    Endpoint("DELETE", _APP, delete_application, "Deletes one application; 202: it is going.", Said, failures=(404,)),
    Endpoint("GET", _APP + "/history", get_history, "Its kept revisions.", History, failures=(404,)),
    Endpoint(
        "POST",
        _APP + "/rollback",
        post_rollback,
        "Wants a former revision again.",
        NewRevision,
        RollbackBody,
        optional=True,
        failures=(400, 404),
    ),
    Endpoint(
        "POST",
        "/api/v1/applications/{name}/deployments/{deployment}/scale",
        post_scale,
        "Wants another number of replicas; 412: it is scaled by load, or is being deleted.",
        Said,
        ScaleBody,
        failures=(400, 404, 412),
    ),
    Endpoint("GET", "/api/serve/events", get_events, "What was decided and what happened.", Events, query=_LOG),
    Endpoint(
        "POST",
        "/api/serve/plan",
        post_plan,
        "What PUT of this file would restart, reconfigure and leave; it is built for that, and nothing is deployed.",
        Plans,
        FileBody,
        query=(_PRUNE,),
        failures=(400, 429),
    ),
    Endpoint("GET", "/api/serve/status", get_status, "The instance as `skate status --json` shows it.", ServeStatus),
    Endpoint("GET", "/api/version", get_version, "What runs here.", Version),
    Endpoint("GET", "/api/ray/version", get_version, "The same, where Ray's clients look for it.", Version),
    Endpoint("GET", "/metrics", get_metrics, "The instance as Prometheus text.", Response),
    Endpoint("GET", "/-/healthz", get_health, "Whether this server answers.", Response),
    Endpoint("GET", "/openapi.json", get_openapi, "This document.", Response),
)
