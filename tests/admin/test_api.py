"""The REST API without a socket: what each endpoint asks of the controller, and what it makes of the answer."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest
from fastapi.openapi.models import OpenAPI

from skate.admin.api import ENDPOINTS, PLANS_MAX
from skate.admin.body import BODY_MAX, DEPTH_MAX, depth
from skate.admin.endpoints import Endpoint
from skate.admin.files import REDACTED, read_file, shown_file
from skate.admin.openapi import document
from skate.controlplane.client import ControllerClient
from skate.core.config import ApplyRequest
from skate.core.errors import CallTimeoutError, DeployError, NotFoundError, NotRunningError, OptionError
from skate.core.specs import AppPlan, ServeStatus
from tests.admin.world import FILE, FakeController, api

APPS = "/api/serve/applications/"
SCALE = "/api/v1/applications/shop/deployments/{}/scale"
NO_BODY = ("GET", "DELETE")


def run(test: Callable[[FakeController, httpx.AsyncClient], Awaitable[None]]) -> None:
    async def whole() -> None:
        controller = FakeController()
        async with api(controller) as web:
            await test(controller, web)

    asyncio.run(whole())


def test_the_fake_has_the_control_calls_of_the_client() -> None:
    for name, method in vars(FakeController).items():
        if inspect.iscoroutinefunction(method):
            real = inspect.signature(getattr(ControllerClient, name))
            assert list(inspect.signature(method).parameters) == list(real.parameters), name


# -- the whole instance ---------------------------------------------------------------------------


def test_the_instance_has_the_shape_of_ray_serve() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        controller.files = read_file(FILE)
        answer = await web.get(APPS)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        told = answer.json()
        assert told["controller_info"] == {"pid": 42}
        assert told["proxy_location"] == "HeadOnly"
        assert told["http_options"]["port"] == 8000
        assert told["proxies"]["0"]["status"] == "HEALTHY"
        assert set(told["applications"]) == {"shop", "own"}
        shop = told["applications"]["shop"]
        assert (shop["name"], shop["route_prefix"], shop["status"]) == ("shop", "/shop", "RUNNING")
        assert (shop["source"], shop["last_deployed_time_s"], shop["docs_path"]) == ("declarative", 900.0, None)
        model = shop["deployments"]["Model"]
        assert (model["status"], model["status_trigger"], model["target_num_replicas"]) == ("HEALTHY", "UNSPECIFIED", 2)
        assert model["deployment_config"]["max_ongoing_requests"] == 9
        assert model["deployment_config"]["num_replicas"] == 2
        assert model["required_resources"] == {"CPU": 2}
        first, second = model["replicas"]
        assert (first["replica_id"], first["state"], first["pid"], first["start_time_s"]) == (
            "shop/Model#1",
            "RUNNING",
            7,
            970.0,
        )
        assert second["state"] == "STARTING"
        scaled = shop["deployments"]["Scaled"]
        assert scaled["autoscaling_detail"]["max_replicas"] == 4
        assert scaled["deployment_config"]["num_replicas"] == "auto"
        assert told["applications"]["own"]["deployed_app_config"] is None

    run(test)


def test_secrets_are_not_shown() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        controller.files = read_file(FILE)
        for path in (APPS, APPS + "shop"):
            answer = await web.get(path)
            assert "secret" not in answer.text
            assert answer.text.count(REDACTED) >= 3
        env = answer.json()["deployed_app_config"]["runtime_env"]
        assert env == {"env_vars": {"KEY": REDACTED}, "pip": [f"https://{REDACTED}@example.org/a.whl"]}

    run(test)


def test_what_was_shown_redacted_is_not_taken_for_a_value() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        shown = shown_file(read_file(FILE))
        answer = await web.put(APPS, json=shown)
        assert answer.status_code == 400
        for place in ("runtime_env.env_vars.KEY", "runtime_env.pip[0]", "deployments[0].ray_actor_options.runtime_env"):
            assert f"applications[0].{place}" in answer.json()["message"]
        assert controller.calls == []

    run(test)


def test_one_source() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        for source, name in (("declarative", "shop"), ("imperative", "own")):
            answer = await web.get(APPS, params={"api_type": source})
            assert list(answer.json()["applications"]) == [name]
        answer = await web.get(APPS, params={"api_type": "other"})
        assert (answer.status_code, answer.json()["type"]) == (400, "BadParameter")

    run(test)


def test_a_file_is_applied_with_prune() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        answer = await web.put(APPS, json=FILE)
        assert (answer.status_code, answer.json()) == (200, {"orders": {"shop": 5}})
        ((name, request),) = controller.calls
        file = read_file(FILE)
        assert (name, request) == ("apply", ApplyRequest(file, ("/folder",), "/folder", True, "REST from 127.0.0.1"))

    run(test)


def test_mistakes_come_back_as_json_and_nothing_is_applied() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        answer = await web.put(APPS, json={"applications": [{"name": "a"}]})
        assert (answer.status_code, answer.json()["type"]) == (400, "ConfigError")
        assert answer.json()["mistakes"] == [answer.json()["message"]]
        assert answer.json()["message"].startswith("the body: applications[0]: lacks import_path")
        assert controller.calls == []
        controller.errors["apply"] = OptionError("two mistakes\n  one\n  the other")
        answer = await web.put(APPS, json=FILE)
        assert (answer.status_code, answer.json()["mistakes"]) == (400, ["two mistakes", "one", "the other"])

    run(test)


def test_all_applications_are_deleted_those_that_are_being_built_too() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        answer = await web.delete(APPS)
        assert answer.status_code == 200
        apply, _, *deletes = controller.calls
        assert apply[0] == "apply" and apply[1].prune and apply[1].config.applications == ()
        assert sorted(deletes) == [("delete", "own"), ("delete", "shop")]
        controller.errors["delete"] = CallTimeoutError("it takes its grace")
        answer = await web.delete(APPS)
        assert (answer.status_code, answer.json()["message"]) == (202, "being deleted: shop, own")
        controller.errors["delete"] = NotFoundError("somebody else was faster")
        assert (await web.delete(APPS)).status_code == 200

    run(test)


# -- one application ------------------------------------------------------------------------------


def test_one_application() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        assert (await web.get(APPS + "shop")).json()["revision"] == 3
        answer = await web.get(APPS + "shoq")
        assert (answer.status_code, answer.json()["type"]) == (404, "NotFoundError")
        assert "own, shop" in answer.json()["message"]

    run(test)


def test_one_application_is_applied_and_others_are_left_alone() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        answer = await web.put(APPS + "shop", json={"import_path": "shop.app:build"})
        assert answer.json() == {"orders": {"shop": 5}}
        request = controller.calls[0][1]
        assert (request.prune, request.config.applications[0].name) == (False, "shop")
        answer = await web.put(APPS + "shop", json={"name": "other", "import_path": "shop.app:build"})
        assert (answer.status_code, answer.json()["type"]) == (400, "OtherName")

    run(test)


def test_one_application_is_deleted() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        assert (await web.delete(APPS + "shop")).status_code == 200
        controller.errors["delete"] = CallTimeoutError("it takes its grace")
        assert (await web.delete(APPS + "shop")).status_code == 202
        controller.errors["delete"] = NotFoundError("there is no application 'shop'")
        assert (await web.delete(APPS + "shop")).status_code == 404

    run(test)


def test_history_and_rollback() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        told = (await web.get(APPS + "shop/history")).json()
        assert [(one["revision"], one["cause"]) for one in told["revisions"]] == [(1, "deploy"), (2, "scale")]
        assert (await web.post(APPS + "shop/rollback", json={"revision": 1})).json() == {"revision": 4}
        json_type = {"content-type": "application/json"}
        assert (await web.post(APPS + "shop/rollback", headers=json_type)).json() == {"revision": 4}
        by = "REST from 127.0.0.1"
        assert controller.calls[1:] == [("rollback", "shop", 1, by), ("rollback", "shop", None, by)]
        assert (await web.post(APPS + "shop/rollback", json={"revison": 1})).status_code == 400

    run(test)


def test_scale_has_the_codes_of_ray_serve() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        answer = await web.post(SCALE.format("Model"), json={"target_num_replicas": 3})
        assert (answer.status_code, list(answer.json())) == (200, ["message"])
        assert controller.calls == [("scale", "shop", "Model", 3, "REST from 127.0.0.1")]
        for bad in ({}, {"target_num_replicas": -1}, {"target_num_replicas": "3"}, {"replicas": 3}, [], "x"):
            answer = await web.post(SCALE.format("Model"), json=bad)
            assert answer.status_code == 400, bad
        controller.errors["scale"] = NotFoundError("no deployment 'X'")
        assert (await web.post(SCALE.format("X"), json={"target_num_replicas": 3})).status_code == 404
        controller.errors["scale"] = OptionError("it is scaled by load")
        assert (await web.post(SCALE.format("Scaled"), json={"target_num_replicas": 3})).status_code == 412
        assert (await web.post(SCALE.format("Model"), json={"target_num_replicas": 3})).status_code == 400
        controller.errors["scale"] = NotRunningError("the controller is away")
        assert (await web.post(SCALE.format("Model"), json={"target_num_replicas": 3})).status_code == 503

    run(test)


# -- the rest -------------------------------------------------------------------------------------


def test_events_go_on_where_one_stopped() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        told = (await web.get("/api/serve/events", params={"after": 7, "app": "shop", "limit": 2})).json()
        assert ([one["id"] for one in told["events"]], told["last"]) == ([8, 9], 9)
        assert controller.calls == [("events", 7, "shop", 2)]
        for bad in ({"after": -1}, {"after": "x"}, {"limit": 0}, {"limit": 1001}, {"aftr": 1}, {"after": "1" * 99}):
            assert (await web.get("/api/serve/events", params=bad)).status_code == 400, bad

    run(test)


def test_a_plan_deploys_nothing() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        told = (await web.post("/api/serve/plan", json=FILE)).json()
        assert told["applications"][0]["changes"] == [{"deployment": "Model", "action": "restart", "why": ["code"]}]
        await web.post("/api/serve/plan?prune=false", json=FILE)
        assert [(name, request.prune) for name, request in controller.calls] == [("plan", True), ("plan", False)]

    run(test)


def test_only_so_many_plans_at_once() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        go, begun = asyncio.Event(), asyncio.Semaphore(0)

        async def plan(request: ApplyRequest, timeout_s: float | None = None) -> list[AppPlan]:
            begun.release()
            await go.wait()
            return []

        controller.plan = plan  # type: ignore[method-assign]
        under_way = [asyncio.ensure_future(web.post("/api/serve/plan", json=FILE)) for _ in range(PLANS_MAX)]
        for _ in under_way:
            await begun.acquire()
        answer = await web.post("/api/serve/plan", json=FILE)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
        go.set()
        assert [answer.status_code for answer in await asyncio.gather(*under_way)] == [200] * PLANS_MAX
        assert (await web.post("/api/serve/plan", json=FILE)).status_code == 200

    run(test)


def test_status_version_metrics_health() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        status = msgspec.json.decode((await web.get("/api/serve/status")).content, type=ServeStatus)
        assert status == controller.seen
        assert set((await web.get("/api/ray/version")).json()) == {"skate_version", "python_version", "ray_version"}
        metrics = await web.get("/metrics")
        assert (metrics.text, metrics.headers["content-type"][:10]) == ("skate_up 1\n", "text/plain")
        assert (await web.get("/-/healthz")).text == "success"

    run(test)


def named(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


@pytest.mark.parametrize("endpoint", [one for one in ENDPOINTS if one.path.startswith("/api/serve")], ids=named)
def test_without_the_controller_it_is_503_and_no_wait(endpoint: Endpoint) -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        controller.here = False
        path = endpoint.path.format(name="shop", deployment="Model")
        body: dict[str, Any] = {} if endpoint.method in NO_BODY else {"json": {} if endpoint.optional else FILE}
        if path.endswith("applications/shop") and body:
            body = {"json": FILE["applications"][0]}
        answer = await web.request(endpoint.method, path, **body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["type"] == "NotRunningError"

    run(test)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CallTimeoutError("slow"), 504),
        (DeployError("no"), 500),
        (ZeroDivisionError("a secret"), 500),
    ],
)
def test_errors_have_one_shape(error: Exception, status: int) -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        controller.errors["status"] = error
        answer = await web.get("/api/serve/status")
        assert answer.status_code == status
        assert {"type", "message"} <= set(answer.json())
        assert "secret" not in answer.text

    run(test)


def test_what_is_not_there() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        answer = await web.get("/api/nothing")
        assert answer.status_code == 404
        assert "/openapi.json" in answer.json()["message"]
        answer = await web.delete("/api/serve/status")
        assert (answer.status_code, sorted(answer.headers["allow"].split(", "))) == (405, ["GET", "HEAD"])
        head = await web.head("/api/serve/status")
        assert (head.status_code, head.content) == (200, b"")
        assert (await web.get(APPS.rstrip("/"))).status_code == 200

    run(test)


# -- bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "missing"),
        (b"{", 400, "no JSON"),
        (b"\xff\xfe{}", 400, "no JSON"),
        (b"[]", 400, "object"),
        (b'"text"', 400, "object"),
        (b'{"a": NaN}', 400, "no JSON"),
        (b"[" * 100_000, 400, "nested"),
        (b'{"a":' * (DEPTH_MAX + 1) + b"1" + b"}" * (DEPTH_MAX + 1), 400, "nested"),
        (b'{"a": "' + b"x" * BODY_MAX + b'"}', 413, "bytes"),
    ],
)
def test_bad_bodies_are_refused(body: bytes, status: int, said: str) -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        answer = await web.put(APPS, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == status
        assert said in answer.json()["message"]
        assert controller.calls == []

    run(test)


def test_the_depth_of_a_document() -> None:
    documents = (b"1", b"[]", b'{"a": [1, [2]]}', b'["[[[", "\\"[["]', b'"[[[', b"]][")
    assert [depth(raw) for raw in documents] == [0, 1, 3, 1, 0, 1]
    deep = json.dumps([[["]]", {"a\\": "}}"}]]])
    assert depth(deep.encode()) == 4


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skate.admin.body.BODY_S", 0.01)

    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        async def slow() -> Any:
            yield b"{"
            await asyncio.Event().wait()

        answer = await web.put(APPS, content=slow(), headers={"content-type": "application/json"})
        assert answer.status_code == 408

    run(test)


# -- the document ---------------------------------------------------------------------------------


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [one for each in value.values() for one in references(each)]
    return [one for each in value for one in references(each)] if isinstance(value, list) else []


def resolves(document: Any, reference: str) -> bool:
    for step in reference.removeprefix("#/").split("/"):
        document = document.get(step)
    return document is not None


def test_the_schema_of_files_keeps_its_references() -> None:
    file = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "properties": {"applications": {"items": {"$ref": "#/definitions/application"}}},
        "definitions": {"application": {"type": "object", "properties": {"$ref": {"type": "string"}}}},
    }
    made = document(ENDPOINTS, "1", False, file)
    assert all(resolves(made, reference) for reference in references(made))
    assert "#/components/schemas/FileBody/definitions/application" in references(made)
    assert made["components"]["schemas"]["FileBody"]["definitions"] == file["definitions"]


def test_the_openapi_document_is_complete() -> None:
    async def test(controller: FakeController, web: httpx.AsyncClient) -> None:
        told = (await web.get("/openapi.json")).json()
        assert told["openapi"] == "3.1.0"
        OpenAPI.model_validate(told)
        operations = {(method.upper(), path) for path, methods in told["paths"].items() for method in methods}
        assert operations == {(one.method, one.path) for one in ENDPOINTS}
        assert references(told) and all(resolves(told, reference) for reference in references(told))
        names = [each["operationId"] for methods in told["paths"].values() for each in methods.values()]
        assert len(names) == len(set(names))
        assert "securitySchemes" not in told["components"]
        details = told["components"]["schemas"]["InstanceDetails"]["properties"]
        assert {"controller_info", "proxies", "applications", "target_capacity"} <= set(details)

    run(test)
