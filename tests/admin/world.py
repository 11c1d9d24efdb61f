"""A controller that answers what a test has put into it, and the REST API in front of it without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx

from skate.admin.api import Api
from skate.admin.app import build
from skate.controlplane.client import ControllerClient
from skate.core.clock import ManualClock
from skate.core.config import ApplyRequest, ServeConfig
from skate.core.errors import NotRunningError
from skate.core.specs import (
    ApplicationStatus,
    AppPlan,
    AutoscalingStatus,
    Change,
    DeploymentStatus,
    Event,
    HttpOptions,
    ProxyStatus,
    ReplicaStatus,
    Revision,
    ServeStatus,
)

NOW = 1000.0
LOCAL = "http://localhost:8265"
SHOP = ApplicationStatus(
    name="shop",
    status="RUNNING",
    message="",
    route_prefix="/shop",
    last_deployed_time_s=900.0,
    deployments={
        "Model": DeploymentStatus(
            "Model",
            "HEALTHY",
            "",
            2,
            (ReplicaStatus("shop/Model#1", "ready", 7, 30.0), ReplicaStatus("b", "loading", 8, 1.0)),
        ),
        "Scaled": DeploymentStatus("Scaled", "HEALTHY", "", 1, autoscaling=AutoscalingStatus(1, 4, "default")),
    },
    revision=3,
    source="declarative",
)
OWN = ApplicationStatus("own", "RUNNING", "", "/", 800.0)
FILE = {
    "applications": [
        {
            "name": "shop",
            "import_path": "shop.app:build",
            "route_prefix": "/shop",
            "runtime_env": {"env_vars": {"KEY": "secret-1"}, "pip": ["https://jo:secret-2@example.org/a.whl"]},
            "deployments": [
                {
                    "name": "Model",
                    "max_ongoing_requests": 9,
                    "ray_actor_options": {"num_cpus": 2, "runtime_env": {"env_vars": {"KEY": "secret-3"}}},
                }
            ],
        }
    ]
}


class FakeController:
    """The control calls, by ``calls`` what was asked. ``errors``: what a call raises instead of answering."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.errors: dict[str, Exception] = {}
        self.here = True
        self.files = ServeConfig()
        self.seen = ServeStatus(
            controller_pid=42,
            proxies={"0": ProxyStatus("0", "HEALTHY", 43, "127.0.0.1:8000")},
            applications={"shop": SHOP, "own": OWN},
        )

    def client(self) -> ControllerClient:
        if not self.here:
            raise NotRunningError("the controller is away")
        return cast(ControllerClient, self)

    def _called(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments))
        if name in self.errors:
            raise self.errors[name]

    async def apply(self, request: ApplyRequest) -> dict[str, int]:
        self._called("apply", request)
        return {app.name: 5 for app in request.config.applications}

    async def plan(self, request: ApplyRequest, timeout_s: float | None = None) -> list[AppPlan]:
        self._called("plan", request)
        return [AppPlan("shop", "change", (Change("Model", "restart", ("code",)),))]

    async def config(self) -> ServeConfig:
        self._called("config")
        return self.files

    async def scale(self, app: str, deployment: str, replicas: int, by: str = "") -> None:
        self._called("scale", app, deployment, replicas, by)

    async def delete(self, name: str, timeout_s: float | None = None, revision: int | None = None) -> None:
        self._called("delete", name)

    async def history(self, app: str) -> list[Revision]:
        self._called("history", app)
        return [Revision(app, 1, 1.0, "deploy"), Revision(app, 2, 2.0, "scale", current=True)]

    async def rollback(self, app: str, revision: int | None = None, by: str = "") -> int:
        self._called("rollback", app, revision, by)
        return 4

    async def events(self, after: int = 0, app: str | None = None, limit: int = 1000) -> list[Event]:
        self._called("events", after, app, limit)
        return [Event(number, 1.0, "shop", "Model", "scaled", "") for number in range(after + 1, after + 3)]

    async def status(self) -> ServeStatus:
        self._called("status")
        return self.seen

    async def metrics(self) -> str:
        self._called("metrics")
        return "skate_up 1\n"


@asynccontextmanager
async def api(
    controller: FakeController, token: str | None = None, base: str = LOCAL
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the REST API over the controller."""
    clock = ManualClock(NOW)
    app = build(Api(controller.client, clock, HttpOptions(), "/folder"), token, "1.2")
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 5))
    async with httpx.AsyncClient(transport=transport, base_url=base) as made:
        yield made
