"""Code that keeps a replica's loop from turning is named, with its line; code that does not is left in peace."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skate import serve
from skate.core.specs import ReplicaStatus
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Notes
from tests.e2e.world import environment, until


def replica(app: str = "a1", deployment: str = "Model") -> ReplicaStatus:
    return serve.status().applications[app].deployments[deployment].replicas[0]


@serve.deployment(max_ongoing_requests=50, loop_block_warning_s=0.1)
class Model:
    def __init__(self, notes: Notes) -> None:
        self.notes = notes

    async def blocks(self, seconds: float) -> None:
        self.slow(seconds)

    def slow(self, seconds: float) -> None:
        time.sleep(seconds)  # the line that is to be named

    async def short(self) -> int:
        end = time.perf_counter() + 0.002
        while time.perf_counter() < end:
            pass
        return 1

    def on_a_thread(self, seconds: float) -> None:
        time.sleep(seconds)


MARK = "# the line that is to be named"
LINE = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith(MARK))
PLACE = f"test_blocked_loop.py:{LINE})"


def test_status_names_function_and_line_and_counts(deploy: Deploy, notes: Notes) -> None:
    handle = deploy(Model.bind(notes))
    handle.blocks.remote(0.5).result()
    (blocked,) = until(lambda: replica().loop_blocked)
    assert blocked.place.startswith("Model.slow (") and blocked.place.endswith(PLACE)
    assert blocked.episodes == 1 and blocked.seconds > 0.1
    handle.blocks.remote(0.5).result()
    until(lambda: replica().loop_blocked[0].episodes == 2)
    assert replica().loop_blocked[0].seconds > blocked.seconds


def test_no_alarm_without_a_fault(deploy: Deploy, notes: Notes) -> None:
    handle = deploy(Model.bind(notes))
    sleeping = handle.on_a_thread.remote(1.0)
    assert sum(handle.short.remote().result() for _ in range(100)) == 100
    many = [handle.short.remote() for _ in range(1000)]
    assert sum(one.result() for one in many) == 1000
    sleeping.result()
    handle.blocks.remote(0.5).result()  # what is counted after all this is the first that there is
    (blocked,) = until(lambda: replica().loop_blocked)
    assert blocked.place.endswith(PLACE) and blocked.episodes == 1


@pytest.mark.parametrize("bound", [None, 0])
def test_it_can_be_turned_off(deploy: Deploy, notes: Notes, bound: float | None) -> None:
    handle = deploy(Model.options(loop_block_warning_s=bound).bind(notes))
    handle.blocks.remote(0.3).result()
    assert replica().loop_blocked == ()


def test_the_command_shows_it(deploy: Deploy, notes: Notes) -> None:
    handle = deploy(Model.bind(notes))
    handle.blocks.remote(0.5).result()
    until(lambda: replica().loop_blocked)
    shown = subprocess.run(
        [sys.executable, "-m", "skate", "status", "--json"], capture_output=True, text=True, env=environment()
    )
    seen: Any = json.loads(shown.stdout)
    (found,) = seen["applications"]["a1"]["deployments"]["Model"]["replicas"][0]["loop_blocked"]
    assert found["place"].endswith(PLACE) and found["episodes"] == 1


def test_the_log_says_it_in_two_lines(script: Callable[..., Any]) -> None:
    run = script(
        """
os.environ["SKATE_INSTANCE"] = "log"

class Blocks:
    async def __call__(self):
        time.sleep(0.8)

serve.start(http=False)
handle = serve.run(serve.deployment(Blocks).bind())
for _ in range(3):
    handle.remote().result()
while serve.status().applications["default"].deployments["Blocks"].replicas[0].loop_blocked[:1] == ():
    time.sleep(0.01)
"""
    )
    run.ends()
    lines = [line for line in run.errors.read_text().splitlines() if "event loop" in line]
    assert len(lines) == 2, lines
    assert all("default/Blocks#" in line and "Blocks.__call__ (app.py:10)" in line for line in lines)
    assert "asyncio.to_thread" in lines[0] and "it was blocked for 0." in lines[1]
