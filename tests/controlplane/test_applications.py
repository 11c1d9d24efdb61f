"""What users may want of a running controller: orders, scaling, revisions, reconfiguring in place."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec
import pytest
from msgspec.structs import replace

from skate.controlplane.builds import BUILDS_MAX
from skate.controlplane.decide.survey import STUCK_GRACE_S
from skate.controlplane.decide.values import RECOVERY_S
from skate.controlplane.store import MemoryStore
from skate.core.config import AppConfig, ApplyRequest, ServeConfig
from skate.core.errors import NotFoundError, OptionError
from skate.core.specs import AppSpec, Change, DeploymentSpec, HealthReport, LoopReport
from skate.engine.base import StopProcess
from tests.controlplane.fakes import Desk, Router, desk, until
from tests.decide.world import deployment, goal


def app(name: str, *deployments: DeploymentSpec) -> AppSpec:
    return goal(name, *deployments).spec


def config(name: str, path: str = "good", prefix: str | None = "", **versions: str) -> AppConfig:
    return AppConfig(name, path, f"/{name}" if prefix == "" else prefix, dict(versions))


def request(*apps: AppConfig, **more: Any) -> ApplyRequest:
    return ApplyRequest(ServeConfig(apps), **more)


def ids(here: Desk) -> list[str]:
    return [one.spec.id for one in here.engine.alive()]


# -- orders -----------------------------------------------------------------------------------------


def test_an_order_is_built_by_a_process_and_then_deployed() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            assert await client.apply(request(config("a", A="v1"), by="me")) == {"a": 1}
            status = await here.state("a", "RUNNING")
            shown = status.applications["a"]
            assert (shown.source, shown.deployed_by, shown.revision) == ("declarative", "me", 1)
            assert (await client.config()).applications == (config("a", A="v1"),)
            await until(lambda: not here.engine.alive("builder"), "the builder's end")
            await until(lambda: not [one for one in here.engine.processes if "build" in one], "it to be forgotten")
            kinds = [one.kind for one in await client.events(app="a")]
            assert kinds == ["deployed", "updating", "healthy"]

    asyncio.run(main())


def test_a_builder_that_dies_unheard_is_missed() -> None:
    async def main() -> None:
        async with desk() as here:
            await (await here.client()).apply(request(config("a", "hangs", A="v1")))
            await until(lambda: here.engine.alive("builder"), "the builder")
            here.engine.crash_unheard(here.engine.alive("builder")[0].spec.id)
            assert "was killed" in (await here.state("a", "DEPLOY_FAILED")).applications["a"].message
            assert not here.engine.processes

    asyncio.run(main())


@pytest.mark.parametrize(("path", "said"), [("bad", "ImportError: no"), ("dies", "ended with exit code 3")])
def test_what_cannot_be_built_fails_with_the_reason_and_leaves_what_runs(path: str, said: str) -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.apply(request(config("new", path)))
            assert said in (await here.state("new", "DEPLOY_FAILED")).applications["new"].message
            await client.apply(request(config("a", A="v1")))
            await here.state("a", "RUNNING")
            await client.apply(request(config("a", path)))
            status = await here.state("a", "DEPLOY_FAILED")
            assert said in status.applications["a"].message and ids(here) == ["a/A#1"]
            assert status.applications["a"].deployments["A"].status == "HEALTHY"
            await client.apply(request(config("a", A="v1")))  # corrected
            await here.state("a", "RUNNING")
            assert ids(here) == ["a/A#1"], "what did not change was started anew"
            await client.delete("new")
            assert here.now("new") is None

    asyncio.run(main())


def test_an_order_that_is_being_built_survives_the_controller() -> None:
    async def main() -> None:
        async with desk(store=MemoryStore()) as here:
            client = await here.client()
            await client.apply(request(config("a", "hangs", A="v1")))
            await until(lambda: here.engine.alive("builder"), "the builder")
            first = here.engine.alive("builder")[0]
            await here.kill()
            here.start()
            client = await here.client()
            await until(lambda: first.stopping.is_set(), "the old builder's end")
            await until(lambda: here.engine.alive("builder"), "another builder")
            here.engine.release.set()
            await here.state("a", "RUNNING")
            assert len(ids(here)) == 1

    asyncio.run(main())


def test_only_the_latest_order_of_an_application_counts() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.apply(request(config("a", "hangs", A="old")))
            await until(lambda: here.engine.alive("builder"), "the builder")
            await client.apply(request(config("a", A="new")))
            await here.state("a", "RUNNING")
            here.engine.release.set()
            await until(lambda: not here.engine.alive("builder"), "the end of the first builder")
            for _ in range(100):
                await asyncio.sleep(0)
            assert [one.version for one in _replicas(here, "a", "A")] == ["new"]

    asyncio.run(main())


def test_a_build_that_is_wanted_no_more_ends_and_keeps_no_other_from_beginning() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            for number in range(BUILDS_MAX):
                await client.apply(request(config(f"hangs{number}", "hangs")))
            await until(lambda: len(here.engine.alive("builder")) == BUILDS_MAX, "the builders")
            hanging = here.engine.alive("builder")
            await client.delete("hangs0")
            await until(hanging[0].stopping.is_set, "the end of its builder")
            await client.apply(request(config("hangs1", A="v1")))
            await here.state("hangs1", "RUNNING")
            assert [one.stopping.is_set() for one in hanging] == [True, True, False, False]

    asyncio.run(main())


@pytest.mark.parametrize("trace", [True, False])
def test_a_builder_that_ended_while_the_line_to_the_engine_was_lost_is_an_error(trace: bool) -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.apply(request(config("a", "hangs")))
            await until(lambda: here.engine.alive("builder"), "the builder")
            for _ in range(20):
                await asyncio.sleep(0)
            builder = here.engine.alive("builder")[0]
            builder.exit_code = -9  # nobody is told
            if not trace:
                del here.engine.processes[builder.spec.id]
            here.controller._engine_changed(None)
            said = "killed by signal 9" if trace else "gone without a trace"
            assert said in (await here.state("a", "DEPLOY_FAILED")).applications["a"].message

    asyncio.run(main())


def _replicas(here: Desk, name: str, part: str) -> Any:
    return here.controller.calls.status().applications[name].deployments[part].replicas


def test_pruning_deletes_what_came_from_a_file_and_nothing_else() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.deploy(app("script", deployment("script", "A")))
            await client.apply(request(config("a", A="v1"), config("b", A="v1")))
            for name in ("a", "b", "script"):
                await here.state(name, "RUNNING")
            await client.apply(request(config("a", A="v1")))
            await here.state("b", "RUNNING")
            await client.apply(request(config("a", A="v1"), prune=True))
            await until(lambda: here.now("b") is None, "b to go")
            await here.state("a", "RUNNING")
            await here.state("script", "RUNNING")

    asyncio.run(main())


def test_a_route_that_is_taken_is_refused_also_by_what_is_not_built_yet() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.apply(request(config("a", "hangs", prefix="/x", A="v1")))
            with pytest.raises(OptionError, match="in use by application 'a'"):
                await client.deploy(goal("b", deployment("b", "A"), prefix="/x").spec)
            with pytest.raises(OptionError, match="in use by application 'b'"):
                await client.apply(request(config("b", prefix="/y"), config("c", prefix="/y")))
            assert set(here.controller.calls.status().applications) == {"a"}
            pruned = request(config("b", prefix="/x", A="v1"), prune=True)  # what goes gives its route free
            await client.apply(pruned)
            await here.state("b", "RUNNING")

    asyncio.run(main())


def test_a_plan_says_what_a_deploy_would_do_and_does_nothing() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.apply(request(config("a", A="v1", B="v1", C="v1"), config("gone", A="v1")))
            await here.state("a", "RUNNING")
            await here.state("gone", "RUNNING")
            wish = request(config("a", A="v1", B="v2", D="v1"), config("n", A="v1"), config("x", "bad"), prune=True)
            before = len(await client.events())
            plans = {plan.app: plan for plan in await client.plan(wish)}
            assert {name: plan.action for name, plan in plans.items()} == {
                "a": "change",
                "n": "add",
                "x": "add",
                "gone": "remove",
            }
            assert plans["a"].changes == (
                Change("A", "leave"),
                Change("B", "restart", ("code or constructor arguments",)),
                Change("D", "add"),
                Change("C", "remove"),
            )
            assert plans["x"].error == "ImportError: no"
            with pytest.raises(OptionError, match="in use by application 'gone'"):
                await client.plan(request(config("other", prefix="/gone", A="v1")))
            assert len(await client.events()) == before and set(here.controller.calls.status().applications) == {
                "a",
                "gone",
            }

    asyncio.run(main())


# -- scaling, revisions -----------------------------------------------------------------------------


def test_scaling_touches_no_running_replica() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.deploy(app("a", deployment("a", "A")))
            await here.state("a", "RUNNING")
            await client.scale("a", "A", 3)
            await until(lambda: len(_replicas(here, "a", "A")) == 3, "three replicas", here)
            status = await here.state("a", "RUNNING")
            assert ids(here) == ["a/A#1", "a/A#2", "a/A#3"]
            assert status.applications["a"].deployments["A"].status_trigger == "UPSCALE_COMPLETED"
            await client.scale("a", "A", 1)
            await until(lambda: ids(here) == ["a/A#1"], "one replica")
            assert (await here.state("a", "RUNNING")).applications["a"].revision == 1
            with pytest.raises(NotFoundError, match="has no deployment 'AA'"):
                await client.scale("a", "AA", 1)
            with pytest.raises(OptionError, match="num_replicas=0"):
                await client.scale("a", "A", 0)
            with pytest.raises(NotFoundError, match="no application 'b'"):
                await client.scale("b", "A", 1)

    asyncio.run(main())


def test_an_unchanged_deploy_is_no_revision_and_a_rollback_is_one() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            for version, revision in (("v1", 1), ("v1", 1), ("v2", 2), ("v3", 3)):
                assert await client.deploy(app("a", deployment("a", "A", version)), by="me") == revision
                await here.state("a", "RUNNING")
            assert await client.rollback("a", by="you") == 4
            await until(lambda: [one.version for one in _replicas(here, "a", "A")] == ["v2"], "the rollback", here)
            assert await client.rollback("a", 1) == 5
            await until(lambda: [one.version for one in _replicas(here, "a", "A")] == ["v1"], "the rollback", here)
            history = await client.history("a")
            assert [(one.revision, one.cause, one.by) for one in history] == [
                (1, "deploy", "me"),
                (2, "deploy", "me"),
                (3, "deploy", "me"),
                (4, "rollback to 2", "you"),
                (5, "rollback to 1", ""),
            ]
            assert [one.current for one in history] == [False] * 4 + [True]
            with pytest.raises(NotFoundError, match="kept are: 1, 2, 3, 4, 5"):
                await client.rollback("a", 9)

    asyncio.run(main())


def test_only_the_named_revision_is_deleted() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            first = await client.deploy(app("a", deployment("a", "A")))
            second = await client.deploy(app("a", deployment("a", "A", "v2")))
            await client.delete("a", revision=first)  # somebody else has replaced it
            assert (await here.state("a", "RUNNING")).applications["a"].revision == second
            await client.delete("a", revision=second)
            assert here.now("a") is None
            assert await client.deploy(app("a", deployment("a", "A"))) == 3  # numbers are never used twice

    asyncio.run(main())


# -- in place ---------------------------------------------------------------------------------------


def test_another_configuration_is_told_to_the_running_ones() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            wanted = deployment("a", "A", replicas=3, config="c1")
            await client.deploy(app("a", wanted))
            await here.state("a", "RUNNING")
            await client.deploy(app("a", replace(wanted, config="c2")))
            await here.state("a", "RUNNING")
            assert here.engine.told == [(f"a/A#{number}", "c2") for number in (1, 2, 3)], "one after the other"
            assert ids(here) == ["a/A#1", "a/A#2", "a/A#3"]

    asyncio.run(main())


def test_a_configuration_that_is_refused_goes_no_further_and_can_be_corrected() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            wanted = deployment("a", "A", replicas=3, config="c1")
            await client.deploy(app("a", wanted))
            await here.state("a", "RUNNING")
            await client.deploy(app("a", replace(wanted, config="bad")))
            status = await here.state("a", "DEPLOY_FAILED")
            assert "ValueError: no" in status.applications["a"].message
            for _ in range(100):
                await asyncio.sleep(0)
            assert here.engine.told == [("a/A#1", "bad")]
            await client.deploy(app("a", wanted))
            await here.state("a", "RUNNING")
            assert here.engine.told[1:] == [("a/A#1", "c1")]  # it may hold half of the other
            assert ids(here) == ["a/A#1", "a/A#2", "a/A#3"]

    asyncio.run(main())


# -- health -----------------------------------------------------------------------------------------


def test_three_strikes_replace_a_replica_and_fewer_do_not() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.deploy(app("a", deployment("a", "A")))
            await here.state("a", "RUNNING")
            for strikes in (1, 2, 0, 1, 2):
                await client.peer.ask("report_health", _health("a/A#1", strikes))
            for _ in range(100):
                await asyncio.sleep(0)
            assert ids(here) == ["a/A#1"]
            await client.peer.ask("report_health", _health("a/A#1", 3))
            await until(lambda: ids(here) == ["a/A#2"], "another one", here)
            died = [one.message for one in await client.events() if one.kind == "replica_died"]
            assert died == ["replica a/A#1 is unhealthy: 3 health checks failed in a row: RuntimeError: ill"]

    asyncio.run(main())


def test_one_kind_of_health_does_not_hide_the_other_and_a_stuck_loop_gets_no_grace() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.deploy(app("a", deployment("a", "A", graceful_shutdown_timeout_s=60.0)))
            await here.state("a", "RUNNING")
            await client.peer.ask("report_health", _health("a/A#1", 2))
            await client.peer.ask("report_health", _health("a/A#1", 0, "loop"))
            assert [one.strikes for one in _replicas(here, "a", "A")] == [2]
            await client.peer.ask("report_health", _health("a/A#1", 3, "loop"))
            await until(lambda: ids(here) == ["a/A#2"], "another one", here)
            graces = [one.grace_s for one in here.engine.actions if isinstance(one, StopProcess)]
            assert graces == [STUCK_GRACE_S]

    asyncio.run(main())


def _health(id: str, strikes: int, kind: Literal["check", "loop"] = "check") -> bytes:
    return msgspec.msgpack.encode(HealthReport(id, strikes, kind, "RuntimeError: ill"))


# -- after a restart --------------------------------------------------------------------------------


def test_events_and_revisions_survive_the_controller() -> None:
    async def main() -> None:
        async with desk(store=MemoryStore()) as here:
            client = await here.client()
            await client.deploy(app("a", deployment("a", "A", "v1")))
            await here.state("a", "RUNNING")
            await client.deploy(app("a", deployment("a", "A", "v2")))
            await here.state("a", "RUNNING")
            before = await client.events()
            await here.kill()
            here.start()
            client = await here.client()
            here.clock.advance(RECOVERY_S)
            await here.state("a", "RUNNING")
            assert (await client.events())[: len(before)] == before
            assert [one.revision for one in await client.history("a")] == [1, 2]
            assert await client.rollback("a") == 3

    asyncio.run(main())


def test_a_delete_that_was_overtaken_by_a_deploy_waits_for_nobody_who_stays() -> None:
    async def main() -> None:
        async with desk() as here:
            client = await here.client()
            await client.deploy(app("a", deployment("a", "A")))
            await here.state("a", "RUNNING")
            deleted = asyncio.ensure_future(client.delete("a"))
            deployed = asyncio.ensure_future(client.deploy(app("a", deployment("a", "A"))))  # before any decision
            assert await deployed == 2
            await until(deleted.done, "the answer to the delete", here)
            assert ids(here) == ["a/A#1"]

    asyncio.run(main())


def test_a_wish_is_stored_as_a_whole_before_it_is_answered() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with desk(store=store) as here:
            client = await here.client()
            await client.apply(request(config("a", "hangs"), config("b", A="v1")))
            await here.state("b", "RUNNING")
            seen: list[Any] = []
            here.controller._step = lambda: asyncio.sleep(3600)  # type: ignore[assignment,method-assign,return-value]
            await client.peer.ask("report_loop", msgspec.msgpack.encode(LoopReport("b/A#1", ())))
            wish = ApplyRequest(ServeConfig((config("c"),), target_capacity=50.0), prune=True)
            await client.apply(wish)
            seen.append(store.load())  # as after a kill of the controller right after the answer
            assert (set(seen[0].orders), seen[0].goals["b"].deleting, seen[0].capacity) == ({"c"}, True, 50.0)
            await client.delete("c")
            assert not store.load().orders

    asyncio.run(main())


def test_two_applications_of_a_file_may_change_places() -> None:
    async def main() -> None:
        async with desk() as here:
            client, router = await here.client(), Router()
            (await here.connect("proxy 9")).subscribe("snapshots", b"", router.take, lambda error: None)
            places = [("a", "/x"), ("b", "/y")], [("a", "/y"), ("b", "/x")]
            for place in places:
                here.clock.advance(1.0)
                await client.apply(request(*(config(name, prefix=prefix, A="v1") for name, prefix in place)))
                for name, _ in place:
                    await here.state(name, "RUNNING")
                expected = {prefix: name for name, prefix in place}
                await until(lambda so=expected: {one.prefix: one.app for one in router.routes} == so, "routes")
            with pytest.raises(OptionError, match="in use by application 'b'"):
                await client.apply(request(config("a", prefix="/x", A="v1")))

    asyncio.run(main())
