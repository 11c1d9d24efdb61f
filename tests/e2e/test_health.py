"""Replicas that are ill are replaced, busy ones are not; another configuration reaches running ones, under traffic."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from starlette.requests import Request

from skate import serve
from skate.core.errors import ReplicaDiedError
from skate.core.specs import DeploymentStatus, ReplicaStatus
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate, Notes
from tests.e2e.traffic import traffic
from tests.e2e.world import Instance, calls, until


def deployment(name: str) -> DeploymentStatus:
    return serve.status().applications["a1"].deployments[name]


def ready(name: str) -> list[ReplicaStatus]:
    return [replica for replica in deployment(name).replicas if replica.phase == "ready"]


def pid(name: str) -> int:
    (only,) = until(lambda: ready(name))
    return only.pid


def replaced(name: str, pid: int) -> bool:
    """Whether another process serves, and that one no longer."""
    found = [replica.pid for replica in ready(name)]
    return bool(found) and pid not in found


def test_a_failing_check_replaces_the_replica_and_traffic_does_not_notice(
    deploy: Deploy, instance: Instance, gate: Gate
) -> None:
    gate.open()

    @serve.deployment(name="Moody", health_check_period_s=0.05, health_check_timeout_s=5)
    class Moody:
        def __init__(self) -> None:
            self.born_well = gate.is_open()

        def check_health(self) -> None:
            if self.born_well and not gate.is_open():
                raise RuntimeError("the weather has changed")

        async def __call__(self, request: Request) -> str:
            return "fine"

    handle = deploy(Moody.bind())
    before = pid("Moody")
    with traffic(instance.url, handle) as seen:
        seen.grows(30)
        gate.shut()
        until(lambda: replaced("Moody", before))
        seen.grows(30)
    assert seen.bad("fine") == []
    assert calls().open == 0


def test_a_blocked_loop_replaces_the_replica_while_it_is_blocked(deploy: Deploy) -> None:
    @serve.deployment(name="Stuck", health_check_timeout_s=0.2, graceful_shutdown_timeout_s=0)
    class Stuck:
        async def __call__(self, block: bool) -> str:
            while block:
                time.sleep(0.01)
            return "free"

    handle = deploy(Stuck.bind(), route_prefix=None)
    before = pid("Stuck")
    stuck = handle.remote(True)
    until(lambda: replaced("Stuck", before))
    assert handle.remote(False).result(timeout_s=10) == "free"
    with pytest.raises(ReplicaDiedError):
        stuck.result(timeout_s=10)


def test_a_busy_replica_is_left_in_peace(deploy: Deploy, gate: Gate) -> None:
    @serve.deployment(name="Busy", health_check_timeout_s=0.2, health_check_period_s=0.05, max_ongoing_requests=2)
    class Busy:
        def check_health(self) -> None:
            return

        def __call__(self) -> str:
            gate.wait()
            return "done"

    handle = deploy(Busy.bind(), route_prefix=None)
    before = pid("Busy")
    held = [handle.remote() for _ in range(6)]
    time.sleep(1.0)  # five timeouts, twenty periods
    assert [(replica.pid, replica.strikes) for replica in ready("Busy")] == [(before, 0)]
    gate.open()
    assert [one.result(timeout_s=10) for one in held] == ["done"] * 6


def tuned(notes: Notes, config: Any, limit: int = 5) -> Any:
    @serve.deployment(name="Tuned", user_config=config, max_ongoing_requests=limit)
    class Tuned:
        def reconfigure(self, config: Any) -> None:
            notes.add(config)
            if config == "bad":
                raise ValueError("no weights of that name")

        async def __call__(self, request: Request) -> str:
            await asyncio.sleep(0.002)
            return "fine"

    return Tuned.bind()


def test_another_configuration_keeps_process_and_requests(deploy: Deploy, instance: Instance, notes: Notes) -> None:
    handle = deploy(tuned(notes, "one"))
    before = pid("Tuned")
    with traffic(instance.url, handle) as seen:
        for word, limit in (("two", 1), ("three", 20)):
            seen.grows(30)
            deploy(tuned(notes, word, limit))
            until(lambda word=word: notes.has(word))  # type: ignore[misc]
        seen.grows(30)
    assert seen.bad("fine") == [] and pid("Tuned") == before
    assert notes.read() == ["one", "two", "three"]


def test_a_configuration_that_fails_is_said_and_the_next_one_recovers(deploy: Deploy, notes: Notes) -> None:
    handle = deploy(tuned(notes, "one"))
    before = pid("Tuned")
    waiting = threading.Thread(target=lambda: _quietly(deploy, tuned(notes, "bad")))
    waiting.start()
    until(lambda: deployment("Tuned").status == "DEPLOY_FAILED")
    failed = deployment("Tuned")
    assert "no weights of that name" in failed.message and "Traceback" in failed.message
    assert handle.remote(None).result(timeout_s=10) == "fine"
    waiting.join(20)
    deploy(tuned(notes, "two"))
    assert deployment("Tuned").status == "HEALTHY" and pid("Tuned") == before
    assert notes.read() == ["one", "bad", "two"]  # each once


def _quietly(deploy: Deploy, app: Any) -> None:
    try:
        deploy(app)
    except Exception:
        return
