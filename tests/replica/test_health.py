"""The user's check_health: when it is called, what it makes of errors and silence, and that it never piles up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from skate.core.clock import ManualClock
from skate.core.options import DeploymentOptions
from skate.dataplane.replica.callable import Target
from skate.dataplane.replica.health import JITTER, HealthChecks
from tests.replica.desk import replica_of, run
from tests.replica.line import until

PERIOD_S, TIMEOUT_S = 10.0, 30.0


class Async:
    """Does at each check what is next in ``todo``; is well after that."""

    def __init__(self, todo: str = "") -> None:
        self.todo = list(todo)
        self.checks = 0
        self.cancelled = 0

    async def check_health(self) -> None:
        self.checks += 1
        what = self.todo.pop(0) if self.todo else "."
        if what == "x":
            raise ValueError("the model is cold")
        if what == "h":
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled += 1
        if what == "s":
            raise SystemExit(3)


class Sync:
    def __init__(self) -> None:
        self.gate = threading.Event()
        self.checks = 0

    def check_health(self) -> None:
        self.checks += 1
        assert self.gate.wait(10)


class Case:
    def __init__(self, instance: Any, chance: Callable[[], float]) -> None:
        self.instance = instance
        self.clock = ManualClock()
        self.told: list[tuple[int, str]] = []
        options = DeploymentOptions(health_check_period_s=PERIOD_S, health_check_timeout_s=TIMEOUT_S)
        target = Target("a", "D", instance)
        self.checks = HealthChecks("r", target, self.clock, options, self.note, chance)

    def note(self, strikes: int, error: str) -> None:
        self.told.append((strikes, error))

    @property
    def strikes(self) -> list[int]:
        return [strikes for strikes, _ in self.told]

    async def pass_(self, seconds: float) -> None:
        """Lets time go by, and everything that follows from it."""
        await settled()
        self.clock.advance(seconds)
        await settled()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def case(instance: Any, chance: Callable[[], float] = lambda: 0.5) -> AsyncIterator[Case]:
    made = Case(instance, chance)
    made.checks.start()
    try:
        yield made
    finally:
        made.checks.close()
        await settled()


def test_only_changes_are_told_and_one_good_check_forgives_all() -> None:
    async def scenario() -> None:
        async with case(Async("..xx.x..xxxx")) as one:
            for n in range(14):
                await one.pass_(PERIOD_S)
                assert one.instance.checks == n + 1
            assert one.strikes == [1, 2, 0, 1, 0, 1, 2, 3, 4, 0]
            text = one.told[0][1]
            assert (
                text.endswith("ValueError: the model is cold") and "in check_health" in text and "trace.py" not in text
            )

    run(scenario)


def test_periods_are_jittered() -> None:
    async def scenario() -> None:
        chances = iter([0.0, 1.0, 0.5])
        async with case(Async(), lambda: next(chances)) as one:
            for part in (1 - JITTER, 1 + JITTER):
                before = one.instance.checks
                await one.pass_(PERIOD_S * part - 0.01)
                assert one.instance.checks == before
                await one.pass_(0.02)
                assert one.instance.checks == before + 1

    run(scenario)


def test_an_async_check_that_hangs_is_ended_at_its_timeout_and_tried_again() -> None:
    async def scenario() -> None:
        async with case(Async("hh.")) as one:
            await one.pass_(PERIOD_S)
            await one.pass_(TIMEOUT_S)
            assert one.strikes == [1] and "did not end within 30 s" in one.told[0][1]
            assert one.instance.cancelled == 1 and one.instance.checks == 2  # at once
            await one.pass_(TIMEOUT_S)
            assert one.strikes == [1, 2, 0] and one.instance.checks == 3

    run(scenario)


def test_a_def_check_that_hangs_is_a_strike_each_timeout_and_one_thread() -> None:
    def threads() -> int:
        return sum(thread.name == "skate-check-health" for thread in threading.enumerate())

    async def scenario() -> None:
        async with case(Sync()) as one:
            await one.pass_(PERIOD_S)
            for strikes in range(1, 5):
                await one.pass_(TIMEOUT_S)
                assert one.strikes[-1] == strikes and threads() == one.instance.checks == 1
            one.instance.gate.set()
            await until(lambda: one.strikes[-1] == 0)  # the late one says nothing; another one is made at once
            assert one.instance.checks == 2
            await until(lambda: threads() == 0)

    run(scenario)


def test_what_ends_processes_is_a_strike_only() -> None:
    async def scenario() -> None:
        async with case(Async("s")) as one:
            await one.pass_(PERIOD_S)
            assert one.strikes == [1] and "SystemExit: 3" in one.told[0][1]

    run(scenario)


def test_another_period_begins_at_once() -> None:
    async def scenario() -> None:
        async with case(Async()) as one:
            await one.pass_(1)
            one.checks.take_up(DeploymentOptions(health_check_period_s=2, health_check_timeout_s=3))
            await one.pass_(2)
            assert one.instance.checks == 1
            one.instance.todo = ["h"]
            await one.pass_(2)
            await one.pass_(3)
            assert one.strikes[0] == 1 and "3 s" in one.told[0][1]

    run(scenario)


# -- in a replica -----------------------------------------------------------------------------------


class Ill:
    ended: ClassVar[list[str]] = []

    def check_health(self) -> None:
        assert threading.current_thread() is not threading.main_thread()
        raise RuntimeError("weights are missing")

    def __del__(self) -> None:
        self.ended.append("del")


class Hanging:
    async def check_health(self) -> None:
        await asyncio.Event().wait()


class Moody:
    """Ill when its file says so; its handlers hold all slots and threads."""

    ill: ClassVar[bool] = False
    gate: ClassVar[threading.Event] = threading.Event()
    threads: ClassVar[set[str]] = set()

    def check_health(self) -> None:
        self.threads.add(threading.current_thread().name)
        if self.ill:
            raise RuntimeError("moody")

    def __call__(self) -> str:
        assert self.gate.wait(10)
        return "done"


def test_a_failed_first_check_is_a_failed_start() -> None:
    async def scenario() -> None:
        Ill.ended.clear()
        async with replica_of(Ill, until_phase="failed") as desk:
            report = desk.ear.replica[-1]
            assert "in its first health check" in report.message and "weights are missing" in report.message
            await until(desk.task.done)
            assert desk.exit_code == 1
        assert desk.ear.phases == ["importing", "loading", "failed"] and Ill.ended == ["del"]
        async with replica_of(Hanging, {"health_check_timeout_s": 0.05}, until_phase="failed") as desk:
            assert "check_health() did not end within 0.05 s" in desk.ear.replica[-1].message

    run(scenario)


def test_checks_wait_for_no_request_and_a_busy_replica_is_well() -> None:
    async def scenario() -> None:
        options = {"health_check_period_s": 0.01, "health_check_timeout_s": 5, "max_ongoing_requests": 2}
        Moody.ill, Moody.gate = False, threading.Event()
        async with replica_of(Moody, options) as desk:
            held = [desk.call() for _ in range(5)]
            await until(lambda: sum(one.started for one in held) == 2)
            Moody.threads.clear()
            await until(lambda: Moody.threads)
            assert Moody.threads == {"skate-check-health"} and not desk.ear.health
            Moody.ill = True
            await until(lambda: 3 in desk.ear.strikes)
            assert desk.ear.health[0].kind == "check" and "moody" in desk.ear.health[0].error
            Moody.ill = False
            await until(lambda: desk.ear.strikes[-1] == 0)
            Moody.gate.set()
            assert [await one.value() for one in held] == ["done"] * 5

    run(scenario)


def test_without_a_check_nothing_ticks() -> None:
    async def scenario() -> None:
        async with replica_of(Quiet) as desk:
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert "health checks" not in names
            assert await desk.call().value() == "quiet"

    run(scenario)


class Quiet:
    def __call__(self) -> str:
        return "quiet"
