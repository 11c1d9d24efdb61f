"""The controller is killed at every turn of its loop, in the middle of everything, and a new one goes on."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from skate.controlplane.store import MemoryStore
from skate.core.config import AppConfig, ApplyRequest, ServeConfig
from skate.core.errors import SkateError
from skate.core.specs import AppSpec
from tests.controlplane.fakes import Desk, Router, desk, until
from tests.decide.world import deployment, goal

TURNS = 60


def app(version: str, replicas: int, config: str = "c1") -> AppSpec:
    return goal("a", deployment("a", "A", version, replicas, config)).spec


async def change(here: Desk, wanted: AppSpec | None) -> None:
    """Asks until somebody has answered."""
    while True:
        with suppress(SkateError):
            client = await here.client()
            await (client.deploy(wanted) if wanted is not None else client.delete("a"))
            return
        if wanted is None and "a" not in here.controller._state.goals:
            return
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("wanted", "count"),
    [(app("v1", 3), 3), (app("v2", 3), 3), (app("v1", 30), 30), (app("v1", 1), 1), (app("v1", 2, "c2"), 2), (None, 0)],
    ids=["again", "update", "up", "down", "reconfigure", "delete"],
)
def test_whenever_it_is_killed_what_was_wanted_comes_about(wanted: AppSpec | None, count: int) -> None:
    async def main(turns: int) -> None:
        async with desk(store=MemoryStore()) as here:
            await change(here, app("v1", 2))
            await here.state("a", "RUNNING")
            asking = asyncio.create_task(change(here, wanted))
            for _ in range(turns):
                await asyncio.sleep(0)
            await here.kill()
            here.start()
            router = Router()
            (await here.connect("proxy 9")).subscribe("snapshots", b"", router.take, lambda error: None)
            await until(asking.done, "an answer", here)

            def is_so() -> bool:
                shown = here.now("a")
                alive = [one for one in here.engine.processes.values() if one.exit_code is None]
                state = shown.status if shown is not None else None
                return state == ("RUNNING" if count else None) and len(alive) == len(here.engine.processes) == count

            await until(is_so, f"what was wanted, killed after {turns} turns", here)
            await until(lambda: len(router.ids("a/A")) == count, "the routers to know", here)
            state = here.controller._state
            assert not any(one.failures.in_a_row for one in state.memory.deployments.values()), (
                "a start is said to have failed"
            )
            saved = here.store.load()
            assert saved.memory.deployments == state.memory.deployments and saved.goals == state.goals

    for turns in range(TURNS):
        asyncio.run(main(turns))


def test_whenever_it_is_killed_an_order_that_was_taken_is_built() -> None:
    async def main(turns: int) -> None:
        async with desk(store=MemoryStore()) as here:
            await change(here, app("v1", 2))
            await here.state("a", "RUNNING")
            wish = ApplyRequest(
                ServeConfig((AppConfig("a", "good", "/a", {"A": "v2"}), AppConfig("b", "good", "/b", {"B": "v1"})))
            )
            asking = asyncio.create_task((await here.client()).apply(wish))
            for _ in range(turns):
                await asyncio.sleep(0)
            await here.kill()
            here.start()
            with suppress(SkateError):
                assert await asking
            taken = "order" in {kind for kind, _ in here.store.rows} or "b" in here.controller._state.goals

            def is_so() -> bool:
                versions = {one.spec.id.partition("#")[0] for one in here.engine.processes.values()}
                shown = {name: one.status for name, one in here.controller.calls.status().applications.items()}
                names = {"a", "b"} if taken else {"a"}
                return shown == dict.fromkeys(names, "RUNNING") and versions == ({"a/A", "b/B"} if taken else {"a/A"})

            await until(is_so, f"what was wanted, killed after {turns} turns", here)
            goal = here.controller._state.goals["a"]
            assert goal.spec.deployments[0].version == ("v2" if taken else "v1")
            assert not here.controller._state.orders and not here.engine.alive("builder")

    for turns in range(TURNS):
        asyncio.run(main(turns))
