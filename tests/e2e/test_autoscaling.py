"""Autoscaling on real processes: from zero and back, up with the load, by a policy of a user's own, over a kill."""

from __future__ import annotations

import os
import signal
from typing import Any

import httpx
import pytest

from skate import serve
from skate.core.errors import OptionError, SkateError
from skate.core.specs import DeploymentStatus
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate
from tests.e2e.scalers import Steps
from tests.e2e.world import until

QUICK = {"upscale_delay_s": 0.1, "downscale_delay_s": 0.1, "look_back_period_s": 0.2, "target_ongoing_requests": 1}


def held(gate: Gate | None = None, **config: Any) -> Any:
    """Answers when the gate is open."""

    @serve.deployment(autoscaling_config={**QUICK, **config})
    class Held:
        async def __call__(self) -> str:
            if gate is not None:
                await gate.passed()
            return "ok"

    return Held.bind()


def shown(app: str = "a1") -> DeploymentStatus:
    return serve.status().applications[app].deployments["Held"]


def rests_at(count: int) -> bool:
    now = shown()
    return now.target_replicas == count and [one.phase for one in now.replicas] == ["ready"] * count


def is_back() -> bool:
    """A controller answers again."""
    try:
        return bool(serve.status().applications)
    except SkateError:
        return False


def test_from_zero_by_a_waiting_request_and_back(deploy: Deploy, http: httpx.Client) -> None:
    handle = deploy(held(min_replicas=0, max_replicas=2))
    assert shown().target_replicas == 0 and serve.status().applications["a1"].status == "RUNNING"
    assert http.get("/-/healthz").status_code == 200
    assert http.get("/a1").text == "ok"
    until(lambda: rests_at(0))
    assert handle.remote().result() == "ok"
    scaling = shown().autoscaling
    assert scaling is not None and (scaling.min_replicas, scaling.max_replicas) == (0, 2)
    ups = [one for one in scaling.decisions if one.after > one.before]
    assert [(one.before, one.after) for one in ups] == [(0, 1)] * 2 and "no replica" in ups[0].reason
    until(lambda: rests_at(0))


def test_up_with_the_load_and_down_without_it_and_a_killed_controller_goes_on(deploy: Deploy, gate: Gate) -> None:
    handle = deploy(held(gate, min_replicas=1, max_replicas=3))
    assert shown().target_replicas == 1
    waiting = [handle.remote() for _ in range(8)]
    until(lambda: rests_at(3))
    before = shown()
    os.kill(serve.status().controller_pid, signal.SIGKILL)
    until(is_back)
    until(lambda: shown().autoscaling is not None and rests_at(3))
    after = shown()
    assert [one.pid for one in after.replicas] == [one.pid for one in before.replicas]
    assert after.autoscaling is not None and before.autoscaling is not None
    assert after.autoscaling.decisions == before.autoscaling.decisions != ()
    gate.open()
    assert [one.result() for one in waiting] == ["ok"] * 8
    until(lambda: rests_at(1))


def test_a_policy_of_the_users_own_that_breaks_leaves_the_number_and_is_seen(deploy: Deploy) -> None:
    policy = {"policy_function": Steps, "policy_kwargs": {"patience": 1}}
    deploy(held(max_replicas=5, policy=policy, upscale_delay_s=0, downscale_delay_s=0))
    until(lambda: rests_at(3))
    until(lambda: rests_at(2))
    scaling = until(lambda: (now := shown().autoscaling) and now.error and now)
    assert "RuntimeError: no more ideas" in scaling.error and scaling.policy == "tests.e2e.scalers:Steps"
    assert rests_at(2)


def test_what_the_controller_could_not_ask_is_refused_at_once(deploy: Deploy) -> None:
    with pytest.raises(OptionError, match=r"deployment 'Held': autoscaling_config.policy.policy_function='tests.e2e"):
        deploy(held(policy={"policy_function": "tests.e2e.scalers:Step"}))
