"""Another configuration while a replica serves: in place, beside the requests, one at a time, and never half."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, ClassVar

import pytest

from skate.core import context
from skate.core.errors import NotFoundError, NotRunningError, WireError
from skate.core.specs import UNSURE_CONFIG
from skate.dataplane.replica.settings import _same
from tests.replica.desk import replica_of, run
from tests.replica.line import until

LIMIT_S = 10.0


class Model:
    """Notes what it is given; a gate holds up handlers, another one ``reconfigure``."""

    given: ClassVar[list[Any]]
    gate: ClassVar[threading.Event]
    slow: ClassVar[threading.Event]
    running: ClassVar[int]
    most: ClassVar[int]

    @classmethod
    def fresh(cls) -> type[Model]:
        cls.given, cls.gate, cls.slow, cls.running, cls.most = [], threading.Event(), threading.Event(), 0, 0
        cls.slow.set()
        return cls

    def reconfigure(self, config: Any) -> None:
        assert self.slow.wait(LIMIT_S)
        self.given.append(config)
        if config == "bad":
            raise ValueError("no such weights")
        if config == "exit":
            raise SystemExit(3)
        self.config = config

    async def __call__(self) -> Any:
        return await self._counted()

    def block(self) -> Any:
        assert self.gate.wait(LIMIT_S)
        return getattr(self, "config", None)

    async def _counted(self) -> Any:
        cls = type(self)
        cls.running += 1
        cls.most = max(cls.most, cls.running)
        while not self.gate.is_set():
            await asyncio.sleep(0.001)
        cls.running -= 1
        return getattr(self, "config", None)


class Async:
    async def reconfigure(self, config: Any) -> None:
        await asyncio.sleep(0)
        if config == "cancel":
            raise asyncio.CancelledError
        here = context.replica.get()
        assert here is not None and here.servable_object is self
        self.config = config

    def __call__(self) -> Any:
        return getattr(self, "config", None)


class Plain:
    def __call__(self) -> str:
        return "plain"


def test_it_runs_though_all_slots_and_threads_are_taken() -> None:
    async def scenario() -> None:
        async with replica_of(Model.fresh(), {"max_ongoing_requests": 2, "user_config": 1}) as desk:
            assert Model.given == [1]
            held = [desk.call("block"), desk.call("block"), desk.call("block")]
            await until(lambda: sum(one.started for one in held) == 2)
            report = await desk.reconfigure("c1", max_ongoing_requests=2, user_config=2)
            assert (report.config, report.config_error, report.phase) == ("c1", "", "ready")
            assert Model.given == [1, 2]
            assert desk.ear.replica[-1] == report  # told before the call was answered
            Model.gate.set()
            assert [await one.value() for one in held] == [2, 2, 2]

    run(scenario)


def test_async_ones_too_and_only_for_another_user_config() -> None:
    async def scenario() -> None:
        async with replica_of(Async, {"user_config": {"a": 1}}) as desk:
            assert (await desk.reconfigure("c1", user_config={"a": 2})).config == "c1"
            assert await desk.call().value() == {"a": 2}
            failed = await desk.reconfigure("c2", user_config="cancel")
            assert failed.config == UNSURE_CONFIG and "CancelledError" in failed.config_error
        async with replica_of(Model.fresh(), {"user_config": [1]}) as desk:
            assert (await desk.reconfigure("c1", user_config=[1], max_threads=4)).config == "c1"
            assert Model.given == [[1]]
            assert (await desk.reconfigure("c2", max_threads=4)).config == "c2"
            assert Model.given == [[1], None]  # taken away: the class hears of it

    run(scenario)


def test_a_smaller_limit_drops_nothing_and_begins_nothing_beyond_it() -> None:
    async def scenario() -> None:
        async with replica_of(Model.fresh(), {"max_ongoing_requests": 4}) as desk:
            calls = [desk.call() for _ in range(8)]
            await until(lambda: Model.running == 4)
            assert (await desk.reconfigure("c1", max_ongoing_requests=2)).config == "c1"
            assert Model.running == 4
            Model.gate.set()
            for one in calls[:4]:
                await one.value()
            Model.most = 0
            assert [await one.value() for one in calls] == [None] * 8
            assert Model.most <= 2
            Model.gate.clear()
            await desk.reconfigure("c2", max_ongoing_requests=5)
            more = [desk.call() for _ in range(7)]
            await until(lambda: Model.running == 5)
            Model.gate.set()
            assert [await one.value() for one in more] == [None] * 7

    run(scenario)


def test_more_threads_in_place() -> None:
    async def scenario() -> None:
        async with replica_of(Model.fresh(), {"max_ongoing_requests": 3}) as desk:
            before = sum(thread.name.startswith("skate-handler") for thread in threading.enumerate())
            calls = [desk.call("block") for _ in range(3)]
            await until(lambda: all(one.started for one in calls))
            await desk.reconfigure("c1", max_threads=3, max_ongoing_requests=3)
            now = sum(thread.name.startswith("skate-handler") for thread in threading.enumerate())
            assert now >= before + 2
            Model.gate.set()
            for one in calls:
                await one.value()

    run(scenario)


def test_one_at_a_time_and_the_last_one_wins() -> None:
    async def scenario() -> None:
        async with replica_of(Model.fresh()) as desk:
            Model.slow.clear()
            first = asyncio.create_task(desk.reconfigure("c1", user_config=1))
            await until(lambda: any(thread.name == "skate-reconfigure" for thread in threading.enumerate()))
            second = asyncio.create_task(desk.reconfigure("c2", user_config=2))
            await asyncio.sleep(0.01)
            third = asyncio.create_task(desk.reconfigure("c3", user_config=3))
            assert (await second).config == "c0"  # overtaken: it will never be
            assert sum(thread.name == "skate-reconfigure" for thread in threading.enumerate()) == 1
            Model.slow.set()
            assert (await first).config == "c1" and (await third).config == "c3"
            assert Model.given == [1, 3]
            assert [one.config for one in desk.ear.replica if one.phase == "ready"] == ["c0", "c1", "c3"]

    run(scenario)


def test_a_failure_that_was_overtaken_is_nobodys() -> None:
    async def scenario() -> None:
        async with replica_of(Model.fresh()) as desk:
            Model.slow.clear()
            first = asyncio.create_task(desk.reconfigure("c1", user_config="bad"))
            await until(lambda: any(thread.name == "skate-reconfigure" for thread in threading.enumerate()))
            second = asyncio.create_task(desk.reconfigure("c2", user_config="good"))
            await asyncio.sleep(0.01)
            Model.slow.set()
            assert (await second).config == "c2" and (await first).config == UNSURE_CONFIG
            assert Model.given == ["bad", "good"]
            assert not any(report.config_error for report in desk.ear.replica)

    run(scenario)


@pytest.mark.parametrize(("config", "says"), [("bad", "ValueError: no such weights"), ("exit", "SystemExit: 3")])
def test_what_fails_leaves_everything_as_it_was_and_says_why(config: str, says: str) -> None:
    async def scenario() -> None:
        async with replica_of(Model.fresh(), {"user_config": "good", "max_ongoing_requests": 3}) as desk:
            Model.gate.set()
            report = await desk.reconfigure("c1", user_config=config, max_ongoing_requests=9)
            assert report.config == UNSURE_CONFIG and report.phase == "ready"
            assert says in report.config_error and "reconfigure" in report.config_error
            assert "dataplane" not in report.config_error  # the traceback is the user's
            assert await desk.call().value() == "good"
            Model.gate.clear()
            calls = [desk.call() for _ in range(5)]
            await until(lambda: Model.running == 3)
            Model.gate.set()
            assert [await one.value() for one in calls] == ["good"] * 5 and Model.most == 3
            back = await desk.reconfigure("c0", user_config="good", max_ongoing_requests=3)
            assert (back.config, back.config_error) == ("c0", "")
            assert Model.given == ["good", config, "good"]  # it may have held half of the other

    run(scenario)


def test_a_class_without_reconfigure_says_so_and_serves_on() -> None:
    async def scenario() -> None:
        async with replica_of(Plain) as desk:
            report = await desk.reconfigure("c1", user_config=1)
            assert report.config == UNSURE_CONFIG and "no method reconfigure(self, user_config)" in report.config_error
            assert await desk.call().value() == "plain"
            assert (await desk.reconfigure("c2", max_ongoing_requests=7)).config == "c2"

    run(scenario)


def test_other_control_calls_and_unreadable_ones_are_refused() -> None:
    async def scenario() -> None:
        async with replica_of(Model.fresh(), {"max_ongoing_requests": 1}) as desk:
            with pytest.raises(NotFoundError, match="no control call 'dance'"):
                await desk.controller.ask("dance")
            with pytest.raises(WireError, match="unreadable"):
                await desk.controller.ask("reconfigure", b"\xc1")
            held = desk.call()
            await until(lambda: held.started)
            desk.life.stopping.set()
            await until(lambda: "draining" in desk.ear.phases)
            with pytest.raises(NotRunningError, match="is ending"):
                await desk.reconfigure("c1")
            Model.gate.set()
            assert await held.value() is None

    run(scenario)


def test_the_end_does_not_wait_for_a_change_that_hangs() -> None:
    async def scenario() -> None:
        async with replica_of(Model.fresh()) as desk:
            Model.slow.clear()
            change = asyncio.create_task(desk.reconfigure("c1", user_config=1))
            await until(lambda: any(thread.name == "skate-reconfigure" for thread in threading.enumerate()))
            await desk.end()
            assert (await change).config == "c0"
            Model.slow.set()

    run(scenario)


def test_sameness_is_that_of_plain_data() -> None:
    assert _same({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]})
    assert _same({"a": 1, "b": 2}, {"b": 2, "a": 1})
    for one, other in [(1, 1.0), (1, True), ([1], [1, 2]), ({"a": 1}, {"b": 1}), (None, {}), ("a", "b"), (0, False)]:
        assert not _same(one, other)
