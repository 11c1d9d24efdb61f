"""Deployments that a new revision does not have: they go when it is there and what they have in hand has ended."""

from __future__ import annotations

import asyncio

from skate.controlplane.arrivals import AGAIN_S, TOLD_S
from skate.core.config import AppConfig, ApplyRequest, ServeConfig
from skate.core.specs import AppSpec, LedgerReport
from tests.controlplane.fakes import Desk, Router, desk, report_calls, until
from tests.decide.world import deployment, goal


def app(name: str, version: str = "v1", **options: object) -> AppSpec:
    """An application of one deployment of that name."""
    return goal("a", deployment("a", name, version, **options)).spec  # type: ignore[arg-type]


async def running(here: Desk, router: Router) -> None:
    (await here.connect("proxy 9")).subscribe("snapshots", b"", router.take, lambda error: None)
    await (await here.client()).deploy(app("A", graceful_shutdown_timeout_s=9.0))
    await until(lambda: answering(router) == "A" and router.ids("a/A"), "the first revision")


def answering(router: Router) -> str:
    return router.routes[0].deployment if router.routes else ""


async def fail(here: Desk) -> None:
    """Lets the starts of a version fail until no more are tried."""
    for _ in range(4):
        await asyncio.sleep(0.001)
        here.clock.advance(0.2)
    await here.state("a", "DEPLOY_FAILED")


def test_a_renamed_deployment_answers_until_the_new_one_is_there_and_ends_its_calls() -> None:
    async def main() -> None:
        async with desk() as here:
            router = Router()
            await running(here, router)
            client, proxy = await here.client(), await here.connect("proxy 8")
            await client.deploy(app("B", "bad"))
            await fail(here)
            assert (answering(router), router.ids("a/A")) == ("A", ["a/A#1"])  # the version that never started is none
            shown = (await client.status()).applications["a"].deployments
            assert list(shown) == ["B", "A"] and shown["A"].status_trigger == "DELETING"
            await report_calls(proxy, {"a/A": LedgerReport(accepted=1, open=1, queued=1)})
            await client.deploy(app("C"))
            await here.state("a", "RUNNING")
            await until(lambda: answering(router) == "C" and "a/B" not in router.deployments, "the new one to answer")
            here.clock.advance(TOLD_S)
            await asyncio.sleep(0.001)
            assert router.ids("a/A") == ["a/A#1"]  # a call waits for it
            await report_calls(proxy, {"a/A": LedgerReport(accepted=1, ok=1)})
            here.clock.advance(AGAIN_S)
            await until(lambda: "a/A" not in router.deployments and not here.engine.processes.get("a/A#1"), "its end")
            assert list((await client.status()).applications["a"].deployments) == ["C"]
            await until(lambda: here.controller._next_look() is None, "quiet: nothing is to be done")

    asyncio.run(main())


def test_a_call_that_does_not_end_holds_it_no_longer_than_its_grace() -> None:
    async def main() -> None:
        async with desk() as here:
            router = Router()
            await running(here, router)
            await report_calls(await here.connect("proxy 8"), {"a/A": LedgerReport(accepted=1, open=1, started=1)})
            await (await here.client()).deploy(app("B"))
            await until(lambda: answering(router) == "B", "the new one to answer")
            here.clock.advance(9.0)
            await until(lambda: "a/A" not in router.deployments, "its end")

    asyncio.run(main())


def test_a_new_controller_goes_on_with_it_and_a_rollback_finds_it_running() -> None:
    async def main() -> None:
        async with desk() as here:
            router = Router()
            await running(here, router)
            await (await here.client()).deploy(app("B", "bad"))
            await fail(here)
            await here.kill()
            here.start()
            client = await here.client()
            (await here.connect("proxy 9")).subscribe("snapshots", b"", router.take, lambda error: None)
            await until(lambda: router.ids("a/A") == ["a/A#1"], "the former one")
            assert answering(router) == "A"
            await client.rollback("a")
            await here.state("a", "RUNNING")
            await until(lambda: "a/B" not in router.deployments, "the failed one to go")
            assert (answering(router), router.ids("a/A")) == ("A", ["a/A#1"])

    asyncio.run(main())


def test_a_rollback_goes_to_what_worked() -> None:
    async def main() -> None:
        async with desk() as here:
            await running(here, Router())
            client = await here.client()
            await client.deploy(app("A", "v2"))
            await here.state("a", "RUNNING")
            await client.deploy(app("A", "bad"))
            await fail(here)
            await client.deploy(app("A", "v3"))
            await here.state("a", "RUNNING")
            await until(lambda: here.store.revisions("a")[-1].worked, "the note that it worked")
            assert [one.worked for one in await client.history("a")] == [True, True, False, True]
            assert await client.rollback("a") == 5
            assert (await client.history("a"))[-1].cause == "rollback to 2"

    asyncio.run(main())


def test_a_rollback_after_a_deploy_that_could_not_be_built_goes_to_what_serves() -> None:
    async def main() -> None:
        async with desk() as here:
            await running(here, Router())
            client = await here.client()
            await client.deploy(app("A", "v2"))
            await here.state("a", "RUNNING")
            await client.apply(ApplyRequest(ServeConfig((AppConfig("a", "bad", "/a"),))))
            await here.state("a", "DEPLOY_FAILED")
            assert await client.rollback("a") == 2
            status = await here.state("a", "RUNNING")
            assert status.applications["a"].message == ""

    asyncio.run(main())
