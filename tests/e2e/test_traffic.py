"""Steady traffic while versions and numbers change under it: every request gets its answer."""

from __future__ import annotations

import os
import signal

import pytest

from skate import serve
from tests.e2e.conftest import Deploy
from tests.e2e.traffic import ready, traffic, version
from tests.e2e.world import Instance, calls, lives, until


@pytest.mark.parametrize("replicas", [1, 3])
def test_no_request_is_lost_while_versions_change(deploy: Deploy, instance: Instance, replicas: int) -> None:
    handle = deploy(version("v0", num_replicas=replicas))
    with traffic(instance.url, handle) as seen:
        for n in range(1, 4):
            seen.grows(30)
            deploy(version(f"v{n}", num_replicas=replicas))
        seen.grows(30)
    assert seen.bad("v0", "v1", "v2", "v3") == []
    assert min(seen.seen[f"v{n}"] for n in range(4)) > 0
    assert calls().open == 0


def test_no_request_is_lost_while_numbers_change(deploy: Deploy, instance: Instance) -> None:
    handle = deploy(version("same"))
    with traffic(instance.url, handle) as seen:
        for n in (3, 1, 4, 2):
            deploy(version("same", num_replicas=n))
            seen.grows(30)
            until(lambda n=n: len(ready()) == n)  # type: ignore[misc]
    assert seen.bad("same") == []
    assert calls().open == 0


@pytest.mark.parametrize("replicas", [1, 2])
def test_no_request_is_lost_when_a_stranger_says_sigterm(deploy: Deploy, instance: Instance, replicas: int) -> None:
    handle = deploy(version("same", num_replicas=replicas))
    until(lambda: len(ready()) == replicas)
    with traffic(instance.url, handle) as seen:
        for _ in range(2):
            seen.grows(30)
            before = ready()
            os.kill(before[0], signal.SIGTERM)
            os.kill(before[0], signal.SIGTERM)  # the second one hastens nothing
            until(lambda before=before: not lives(before[0]))  # type: ignore[misc]
            until(lambda before=before: len(set(ready()) - set(before[:1])) == replicas)  # type: ignore[misc]
        seen.grows(30)
    assert seen.bad("same") == []
    assert calls().open == 0


def test_deleting_under_traffic_is_404_or_503(deploy: Deploy, instance: Instance) -> None:
    handle = deploy(version("here"))
    with traffic(instance.url, handle) as seen:
        seen.grows(30)
        serve.delete("a1")
        seen.grows(30)
    bad = [word for word in seen.bad("here") if not word.startswith(("404", "503", "Deployment", "NotFound"))]
    assert bad == []
    assert calls().open == 0
