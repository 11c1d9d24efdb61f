"""The count of all calls of an instance, from its first one on, through deaths: it balances to the last one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys

import skate
from skate import serve
from skate.core.errors import ReplicaDiedError
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate, Notes
from tests.e2e.traffic import CLIENTS, ready, traffic, version
from tests.e2e.world import Instance, calls, client, environment, until

DEATHS = 5


def test_deaths_cost_only_what_the_dead_had_in_hand(deploy: Deploy, instance: Instance) -> None:
    handle = deploy(version("alive", num_replicas=3))
    with traffic(instance.url, handle) as seen:
        for _ in range(DEATHS):
            seen.grows(30)
            os.kill(random.choice(until(ready)), signal.SIGKILL)
        seen.grows(30)
        until(lambda: len(ready()) == 3)
    bad = [word for word in seen.bad("alive") if not (word.startswith("500") and "died" in word)]
    assert [word for word in bad if not word.startswith(ReplicaDiedError.__name__)] == []
    until(lambda: serve.status().calls.accepted == seen.seen.total())  # proxies tell their counts now and then
    told, failed = calls(), seen.seen.total() - seen.seen["alive"]
    assert (told.ok, told.lost, told.open) == (seen.seen["alive"], failed, 0)
    assert failed <= DEATHS * (CLIENTS + 1)


def test_every_stage_shows_for_each_deployment(deploy: Deploy, instance: Instance, notes: Notes, gate: Gate) -> None:
    @serve.deployment(max_ongoing_requests=2)
    class Slow:
        async def __call__(self) -> str:
            notes.add("begun")
            await gate.passed()
            return "done"

    handle = deploy(Slow.bind())
    held = [handle.remote() for _ in range(5)]
    until(lambda: notes.has("begun", 2))
    key = f"{handle.app_name}/Slow"
    told = serve.status().calls_by_deployment[key]
    assert (told.accepted, told.queued, told.sent, told.started) == (5, 0, 3, 2)  # the only replica has all of them
    command = [sys.executable, "-m", "skate", "status", "--calls", "--json"]
    printed = json.loads(subprocess.run(command, env=environment(), capture_output=True, check=True).stdout)
    assert (printed[key]["sent"], printed[key]["started"]) == (3, 2)
    gate.open()
    assert skate.get(held) == ["done"] * 5
    assert serve.status().calls_by_deployment[key].ok == 5
    with client(instance.url) as http:
        text = http.get("/-/metrics").text
    labels = f'app="{handle.app_name}",deployment="Slow"'
    assert f'skate_calls_total{{{labels},outcome="ok"}} 5\n' in text
    assert f'skate_replicas{{{labels},phase="ready"}} 1\n' in text
    command = [sys.executable, "-m", "skate", "metrics"]
    assert f"skate_calls_accepted_total{{{labels}}} 5\n" in subprocess.check_output(
        command, env=environment(), text=True
    )
