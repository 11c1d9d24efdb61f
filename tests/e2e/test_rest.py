"""The REST API of a real instance, a port that is taken, and a controller that is killed."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from skate import serve
from skate.core.specs import ProxyStatus
from tests.e2e.conftest import Deploy
from tests.e2e.world import LIMIT_S, Instance, Script, here, until

TAKEN = """
serve.start(http_options={"port": 0}, admin_options={"port": int(sys.argv[1])})
while (seen := serve.status().admin) is None or seen.status != "UNHEALTHY":
    time.sleep(0.01)
print(seen.message, flush=True)
serve.shutdown()
"""


@serve.deployment
class Hello:
    def __call__(self) -> str:
        return "hello"


def admin(state: str) -> ProxyStatus:
    """The REST server, once it is in that state."""

    def found() -> ProxyStatus | None:
        seen = serve.status().admin
        return seen if seen is not None and seen.status == state else None

    shown: ProxyStatus = until(found)
    return shown


@pytest.fixture(scope="module")
def instance(runtime_dir: Path) -> Iterator[Instance]:
    """A running instance with a REST API."""
    serve.start(http_options={"port": 0}, admin_options={"port": 0})
    running = here()
    yield running
    serve.shutdown()
    assert running.leftovers() == []


@pytest.fixture
def web(instance: Instance) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{admin('HEALTHY').address}", timeout=LIMIT_S, trust_env=False) as made:
        yield made


def test_an_application_is_seen_scaled_and_deleted(deploy: Deploy, web: httpx.Client) -> None:
    deploy(Hello.bind())
    told = web.get("/api/serve/applications/").json()["applications"]["a1"]
    assert (told["status"], told["source"]) == ("RUNNING", "imperative")
    assert [one["state"] for one in told["deployments"]["Hello"]["replicas"]] == ["RUNNING"]
    scaled = web.post("/api/v1/applications/a1/deployments/Hello/scale", json={"target_num_replicas": 2})
    assert scaled.status_code == 200, scaled.text
    until(lambda: len(_running(web)) == 2)
    assert any(event["kind"] == "deployed" for event in web.get("/api/serve/events?app=a1").json()["events"])
    assert web.delete("/api/serve/applications/a1").status_code in (200, 202)
    until(lambda: web.get("/api/serve/applications/a1").status_code == 404)


def _running(web: httpx.Client) -> list[Any]:
    replicas = web.get("/api/serve/applications/a1").json()["deployments"]["Hello"]["replicas"]
    return [one for one in replicas if one["state"] == "RUNNING"]


def test_the_controller_comes_back_and_so_does_the_api(deploy: Deploy, web: httpx.Client) -> None:
    deploy(Hello.bind())
    pid = web.get("/api/serve/status").json()["controller_pid"]
    os.kill(pid, signal.SIGKILL)

    def answered() -> bool:
        answer = web.get("/api/serve/status")
        assert answer.status_code == 200 or (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        return answer.status_code == 200 and answer.json()["controller_pid"] != pid

    until(answered)
    assert admin("HEALTHY").address == web.base_url.netloc.decode()


def test_a_taken_port_keeps_nobody_from_starting(
    instance: Instance, monkeypatch: pytest.MonkeyPatch, script: Callable[..., Script]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("SKATE_INSTANCE", "second")
        started = script(TAKEN, str(other.getsockname()[1]))
        assert "another process uses this port" in started.line()
        assert started.ends() == []
