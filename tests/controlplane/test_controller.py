"""The controller's shell on a fake engine, a manual clock and connections in memory."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from msgspec.structs import replace

from skate.controlplane import controller as controllers
from skate.controlplane.processes import CLOSING_S
from skate.controlplane.store import MemoryStore
from skate.core.errors import NotFoundError, NotRunningError, OptionError, SkateError, WireError
from skate.core.specs import (
    AdminConfig,
    AdminOptions,
    AppSpec,
    DeploymentSpec,
    HttpOptions,
    LedgerReport,
    ProxyConfig,
    ServeStatus,
)
from skate.engine.base import Action, EngineError, ProcessSeen, StopProcess
from tests.controlplane.fakes import Desk, Router, desk, report_calls, until
from tests.decide.world import deployment, goal


def app(name: str, *deployments: DeploymentSpec, prefix: str | None = "") -> AppSpec:
    return goal(name, *(deployments or (deployment(name, "A"),)), prefix=prefix).spec


def test_deploy_runs_and_delete_answers_when_all_is_gone() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.deploy(app("a", deployment("a", "A", replicas=2)))
            status = await here.state("a", "RUNNING")
            replicas = status.applications["a"].deployments["A"].replicas
            assert [one.id for one in replicas] == ["a/A#1", "a/A#2"] and all(one.phase == "ready" for one in replicas)
            first = here.engine.alive()[0].spec
            assert first.title == "skate: replica a/A#1" and first.entry == "skate.dataplane.replica.worker:run"
            await client.delete("a")
            assert not here.engine.processes and "a" not in (await client.status()).applications
            with pytest.raises(NotFoundError, match="no application 'a'"):
                await client.delete("a")

    asyncio.run(main())


def test_routers_hear_first_everything_then_what_changed() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            router, late = Router(), Router()
            (await here.connect("proxy 9")).subscribe("snapshots", b"", router.take, lambda error: None)
            await until(lambda: router.snapshots, "the first snapshot")
            assert router.snapshots[0].whole
            await client.deploy(app("a"))
            await until(lambda: router.ids("a/A") == ["a/A#1"], "the replica")
            assert [route.prefix for route in router.routes] == ["/a"]
            assert router.deployments["a/A"].replicas[0].address == "memory:a/A#1"
            (await here.connect("driver 2")).subscribe("snapshots", b"", late.take, lambda error: None)
            await until(lambda: late.ids("a/A") == ["a/A#1"], "the replica")
            assert len(late.snapshots) == 1
            await client.deploy(app("a", deployment("a", "A", "v2")))
            await until(lambda: router.ids("a/A") == ["a/A#2"], "the new replica")
            assert not any(one.whole for one in router.snapshots[1:])
            assert all(router.snapshots[i].generation < router.snapshots[i + 1].generation for i in range(2))
            await client.delete("a")
            assert not router.deployments and not router.routes

    asyncio.run(main())


def test_a_replica_is_unpublished_before_it_is_told_to_stop() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            router = Router()
            (await here.connect("proxy 9")).subscribe("snapshots", b"", router.take, lambda error: None)
            await client.deploy(app("a", deployment("a", "A", "busy", graceful_shutdown_timeout_s=3.0)))
            await until(lambda: router.ids("a/A"), "the replica")
            deleting = asyncio.create_task(client.delete("a"))
            await until(lambda: not router.deployments, "the deployment to go")
            await until(lambda: here.engine.processes["a/A#1"].stopping.is_set(), "the stop")
            assert here.engine.processes["a/A#1"].grace_s == 3.0 + CLOSING_S
            assert here.controller.calls.status().applications["a"].status == "DELETING"
            assert not deleting.done()
            await client.deploy(app("a"))  # comes back while the last one is still going
            await here.state("a", "RUNNING")
            assert not deleting.done() and [one.spec.id for one in here.engine.alive()] == ["a/A#1", "a/A#2"]
            here.engine.release.set()
            await deleting
            assert [one.spec.id for one in here.engine.alive()] == ["a/A#2"]

    asyncio.run(main())


def test_a_stop_that_is_not_obeyed_is_asked_for_again_without_grace() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.deploy(app("a", deployment("a", "A", "busy", graceful_shutdown_timeout_s=3.0)))
            await here.state("a", "RUNNING")
            deleting = asyncio.create_task(client.delete("a"))
            await until(lambda: here.engine.processes["a/A#1"].grace_s == 3.0 + CLOSING_S, "the stop")
            here.clock.advance(8.1)
            await until(lambda: here.engine.processes["a/A#1"].grace_s == 0.0, "the kill")
            here.engine.crash("a/A#1")
            await deleting

    asyncio.run(main())


def test_a_crashed_replica_is_replaced_and_nothing_ticks_afterwards() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.deploy(app("a"))
            await here.state("a", "RUNNING")
            here.engine.crash("a/A#1")
            await until(lambda: [one.spec.id for one in here.engine.alive()] == ["a/A#2"], "the replacement")
            await here.state("a", "RUNNING")
            await until(lambda: not here.engine.processes.get("a/A#1"), "the dead one to be forgotten")
            for _ in range(20):
                await asyncio.sleep(0)
            assert not here.clock._sleepers, "a timer is set although nothing is to be done"
            count = here.controller._state.decisions.count
            for _ in range(50):
                await asyncio.sleep(0)
            assert here.controller._state.decisions.count == count

    asyncio.run(main())


def test_a_bad_constructor_ends_in_deploy_failed_and_callers_are_told() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            router = Router()
            (await here.connect("proxy 9")).subscribe("snapshots", b"", router.take, lambda error: None)
            await client.deploy(app("a", deployment("a", "A", "bad")))
            for _ in range(5):
                await until(lambda: not here.engine.alive(), "the failure", here)
                for _ in range(30):
                    await asyncio.sleep(0)
                here.clock.advance(0.2)
            status = await here.state("a", "DEPLOY_FAILED")
            assert "ValueError: bad constructor" in status.applications["a"].message
            await until(lambda: router.deployments["a/A"].unavailable, "the reason")
            assert "ValueError: bad constructor" in str(router.deployments["a/A"].unavailable)
            await client.deploy(app("a"))
            await here.state("a", "RUNNING")
            await until(lambda: router.ids("a/A") and not router.deployments["a/A"].unavailable, "recovery")

    asyncio.run(main())


def test_an_engine_that_cannot_start_processes_is_a_failed_start() -> None:
    async def main() -> None:
        async with desk() as here:
            here.engine.refuse = "fork: no memory left"
            client = await here.client()
            await client.deploy(app("a"))
            await until(
                lambda: "no memory left" in here.controller.calls.status().applications["a"].message, "the reason"
            )
            for _ in range(3):
                for _ in range(30):
                    await asyncio.sleep(0)
                here.clock.advance(0.2)
            await here.state("a", "DEPLOY_FAILED")

    asyncio.run(main())


def test_the_engine_is_asked_for_so_much_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "ACTIONS_MAX", 3)

    async def main() -> None:
        async with desk() as here:
            client, perform, asked = await here.client(), here.engine.perform, [0, 0]

            async def slowly(action: Action) -> ProcessSeen | None:
                asked[0] += 1
                asked[1] = max(asked)
                await asyncio.sleep(0)
                asked[0] -= 1
                return await perform(action)

            monkeypatch.setattr(here.engine, "perform", slowly)
            await client.deploy(app("a", deployment("a", "A", replicas=10)))
            await here.state("a", "RUNNING")
            assert asked[1] == 3

    asyncio.run(main())


def test_a_start_that_was_answered_too_late_is_found_and_not_done_twice() -> None:
    async def main() -> None:
        async with desk() as here:
            client, perform = await here.client(), here.engine.perform

            async def late(action: Action) -> ProcessSeen | None:
                here.engine.perform = perform  # type: ignore[method-assign]
                await perform(action)
                raise EngineError("the supervisor did not answer within 30 s")

            here.engine.perform = late  # type: ignore[method-assign]
            await client.deploy(app("a"))
            await here.state("a", "RUNNING")
            assert [one.spec.id for one in here.engine.alive()] == ["a/A#1"]

    asyncio.run(main())


def test_a_route_in_use_is_refused_and_names_both() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.deploy(app("a", prefix="/x"))
            with pytest.raises(OptionError, match="'b' is in use by application 'a'"):
                await client.deploy(app("b", prefix="/x"))
            assert "b" not in (await client.status()).applications
            await client.deploy(app("b", prefix=None))
            await client.deploy(app("c", prefix=None))
            await here.state("c", "RUNNING")

    asyncio.run(main())


def test_a_new_controller_adopts_replicas_and_goes_on() -> None:
    async def main() -> None:
        async with desk(http=HttpOptions()) as here:
            client = await here.client()
            await client.deploy(app("a", deployment("a", "A", replicas=2)))
            await here.state("a", "RUNNING")
            starts = len(here.engine.actions)
            await here.kill()
            here.start()
            client = await here.client()
            status = await client.status()
            assert status.applications["a"].status == "RUNNING"
            assert len(here.engine.actions) == starts
            router = Router()
            (await here.connect("proxy 9")).subscribe("snapshots", b"", router.take, lambda error: None)
            await until(lambda: router.ids("a/A") == ["a/A#1", "a/A#2"], "both replicas")
            here.engine.crash("a/A#1")
            await until(lambda: router.ids("a/A") == ["a/A#2", "a/A#3"], "the replacement")

    asyncio.run(main())


def test_a_new_controller_goes_on_with_the_shutdown_of_the_one_before() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.deploy(app("a", deployment("a", "A", "busy")))
            await here.state("a", "RUNNING")
            await client.shutdown()
            await until(lambda: here.engine.processes["a/A#1"].stopping.is_set(), "the stop")
            await here.kill()
            here.start()
            here.engine.release.set()
            assert here.task is not None
            await here.task
            assert not here.engine.processes

    asyncio.run(main())


@pytest.mark.parametrize("by", ["call", "signal"])
def test_shutdown_ends_proxies_then_replicas_then_the_controller(by: str) -> None:
    async def main() -> None:
        store = MemoryStore()
        async with desk(store, HttpOptions()) as here:
            client = await here.client()
            await client.deploy(app("a"))
            await here.state("a", "RUNNING")
            ends: list[ServeStatus] = []

            async def watch() -> None:
                with pytest.raises(NotRunningError, match="ended"):
                    async for status in client.watch_status():
                        ends.append(status)

            watching = asyncio.create_task(watch())
            await until(lambda: ends, "a status")
            if by == "call":
                await client.shutdown()
                with pytest.raises(SkateError, match="shutting down"):
                    await client.deploy(app("b"))
            else:
                here.stopping.set()
            assert here.task is not None
            await here.task
            stops = [one.id for one in here.engine.actions if isinstance(one, StopProcess)]
            assert stops == ["proxy 0", "a/A#1"] and not here.engine.processes
            assert set(store.load().goals) == {"a"}  # for whoever restores it
            await watching

    asyncio.run(main())


def test_a_proxy_that_dies_is_started_again() -> None:
    async def main() -> None:
        async with desk(http=HttpOptions(port=8123)) as here:
            await here.connect()
            await until(lambda: _proxy(here.controller.calls.status()) == "HEALTHY", "the proxy")
            shown = here.controller.calls.status().proxies["0"]
            assert shown.address == "127.0.0.1:8123"
            assert here.engine.alive("proxy")[0].spec.title == "skate: proxy 0"
            here.engine.crash("proxy 0")
            await until(lambda: here.controller.calls.status().proxies["0"].pid > shown.pid, "the next one")
            await until(lambda: _proxy(here.controller.calls.status()) == "HEALTHY", "the proxy")

    asyncio.run(main())


def _proxy(status: ServeStatus) -> str:
    return status.proxies["0"].status if "0" in status.proxies else ""


def test_proxies_that_share_any_free_port_get_the_same_one() -> None:
    async def main() -> None:
        async with desk(http=HttpOptions(port=0), proxies=2) as here:
            await here.connect()
            await until(lambda: len(here.engine.alive("proxy")) == 2, "both proxies")
            told = [msgspec.msgpack.decode(one.spec.config, type=ProxyConfig) for one in here.engine.alive("proxy")]
            first, second = told
            assert (first.share_port, second.share_port) == (True, True)
            assert first.http.port == second.http.port != 0

    asyncio.run(main())


def test_the_rest_server_is_kept_as_a_proxy_is_and_is_none() -> None:
    async def main() -> None:
        async with desk(http=HttpOptions(port=0), proxies=2, admin=AdminOptions(port=8265)) as here:
            await here.connect()
            await until(lambda: _admin(here) == "HEALTHY", "the REST server")
            status = here.controller.calls.status()
            assert set(status.proxies) == {"0", "1"}
            assert status.admin is not None and status.admin.address == "127.0.0.1:8265"
            (process,) = here.engine.alive("admin")
            config = msgspec.msgpack.decode(process.spec.config, type=AdminConfig)
            assert (config.http, config.controller) == (here.config.http, here.config.address)
            here.engine.crash(process.spec.id)
            await until(lambda: process not in here.engine.alive("admin"), "its end")
            await until(lambda: here.engine.alive("admin"), "another one")
            await until(lambda: _admin(here) == "HEALTHY", "the REST server")
            told = [msgspec.msgpack.decode(one.spec.config, type=ProxyConfig) for one in here.engine.alive("proxy")]
            assert 8265 not in {one.http.port for one in told}
            assert here.task is not None
            here.stopping.set()
            await here.task
            assert not here.engine.processes

    asyncio.run(main())


def test_a_rest_server_without_a_port_is_tried_again_and_keeps_nobody_waiting() -> None:
    async def main() -> None:
        async with desk(admin=AdminOptions()) as here:
            here.engine.port_in_use = True
            client = await here.client()
            await client.deploy(app("a"))
            await here.state("a", "RUNNING")
            await until(lambda: _admin(here) == "UNHEALTHY", "the word of the REST server")
            status = here.controller.calls.status()
            assert status.admin is not None and status.admin.message == "the port is in use"
            here.engine.port_in_use = False
            for _ in range(10):
                here.clock.advance(10.0)
                await asyncio.sleep(0)
            await until(lambda: _admin(here) == "HEALTHY", "the next try")

    asyncio.run(main())


def _admin(here: Desk) -> str:
    admin = here.controller.calls.status().admin
    return admin.status if admin is not None else ""


def test_a_watcher_sees_the_last_of_quick_changes_not_all() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            seen: list[str] = []

            async def watch() -> None:
                async for status in client.watch_status():
                    seen.append(status.applications["a"].status if "a" in status.applications else "none")

            watching = asyncio.create_task(watch())
            await until(lambda: seen, "the first status")
            await client.deploy(app("a"))
            await here.state("a", "RUNNING")
            for _ in range(30):
                await asyncio.sleep(0)
            assert seen == ["none"]  # all of it happened within the 50 ms between two statuses
            here.clock.advance(0.06)
            await until(lambda: len(seen) > 1, "the second status")
            assert seen == ["none", "RUNNING"]
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(main())


def test_the_counts_of_calls_balance_when_a_process_goes_away() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            driver = await here.connect("driver 7")
            open = LedgerReport(accepted=10, open=3, ok=7, queued=1, sent=1, started=1)
            await report_calls(driver, {"a/A": open})
            await report_calls(driver, {"a/B": LedgerReport(accepted=1, ok=1)})
            status = await client.status()
            assert status.calls == replace(open, accepted=11, ok=8)
            assert status.calls_by_deployment == {"a/A": open, "a/B": LedgerReport(accepted=1, ok=1)}
            driver.close()
            await until(lambda: here.controller.calls.status().calls.open == 0, "the loss")
            assert (await client.status()).calls == LedgerReport(accepted=11, ok=8, lost=3)

    asyncio.run(main())


def test_nonsense_is_refused_and_disturbs_nothing() -> None:
    async def main() -> None:
        async with desk() as here:
            peer = await here.connect("stranger")
            with pytest.raises(NotFoundError, match="no control call 'explode'"):
                await peer.ask("explode")
            for method in ("deploy", "delete", "report_replica", "report_proxy", "report_ledger"):
                with pytest.raises(WireError, match=method):
                    await peer.ask(method, b"\xc1")
            await peer.ask("report_replica", msgspec.msgpack.encode({"id": "x/y#9", "phase": "ready", "pid": 1}))
            assert not (await (await here.client()).status()).applications

    asyncio.run(main())


def test_what_concerns_one_deployment_does_not_make_the_routes_of_all_anew() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.deploy(app("a"))
            await here.state("a", "RUNNING")
            before, published = here.controller._state.desired, here.controller._state.publications.state
            here.engine.crash("a/A#1")
            await until(lambda: here.controller._state.publications.state is not published, "the change")
            assert here.controller._state.publications.state.routes is before.routes is published.routes

    asyncio.run(main())


def test_a_watcher_of_much_is_told_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with desk() as here:
            client, seen = await here.client(), []
            status = here.controller.calls.status

            def slow() -> ServeStatus:
                here.clock.advance(0.1)
                return status()

            monkeypatch.setattr(here.controller.calls, "status", slow)
            client.peer.subscribe("watch_status", b"", seen.append, lambda error: None)
            await until(lambda: seen, "the first status")
            await client.deploy(app("a"))
            here.clock.advance(1.9)
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(seen) == 1
            here.clock.advance(0.2)
            await until(lambda: len(seen) == 2, "the second status")

    asyncio.run(main())
