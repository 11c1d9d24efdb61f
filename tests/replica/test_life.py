"""The ends of a replica's life: a loop that is blocked is told from outside it; what is told to end ends in order."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from skate.core.errors import ReplicaStoppedError
from skate.dataplane.replica import watchdog, worker
from skate.dataplane.replica.watchdog import Watchdog
from skate.dataplane.transport.failure import rebuild
from tests.replica.desk import Desk, Ear, EarThread, replica_of, run
from tests.replica.line import until
from tests.replica.test_watchdog import sleeps

TIMEOUT_S = 0.1


class Stuck:
    """Blocks the loop until something was heard."""

    block: ClassVar[Callable[[], None]]
    threads: ClassVar[threading.Event]
    began: ClassVar[list[int]] = []

    async def __call__(self) -> str:
        type(self).block()
        return "free"

    def busy(self) -> str:
        self.began.append(1)
        assert self.threads.wait(10)
        return "busy"


def struck(ear: Ear) -> bool:
    return any(strikes >= 3 for strikes in ear.strikes)


def test_a_blocked_loop_is_told_by_its_watchdog_while_it_is_blocked() -> None:
    async def scenario() -> None:
        with EarThread() as controller:
            Stuck.block = staticmethod(lambda: controller.hears(struck))
            async with replica_of(Stuck, {"health_check_timeout_s": TIMEOUT_S}, controller) as desk:
                assert await desk.call().value() == "free"
                await until(lambda: desk.ear.strikes[-1] == 0)
                first = desk.ear.health[0]
                assert (first.id, first.kind, first.strikes) == ("a/D#1", "loop", 1)
                assert "Stuck" in first.error or "hears" in first.error
                assert "desk.py:" in first.error or "test_life.py:" in first.error
                assert all(report.kind == "loop" for report in desk.ear.health)

    run(scenario)


def test_a_loop_blocked_without_a_call_is_told_when_somebody_knocks(monkeypatch: pytest.MonkeyPatch) -> None:
    dogs: list[Watchdog] = []

    class Noted(Watchdog):
        def start(self) -> None:
            dogs.append(self)
            super().start()

    monkeypatch.setattr(worker, "Watchdog", Noted)
    monkeypatch.setattr(watchdog, "IDLE_S", 0.01)

    async def scenario() -> None:
        with EarThread() as controller:
            options = {"health_check_timeout_s": TIMEOUT_S, "loop_block_warning_s": 0.02}
            async with replica_of(Stuck, options, controller) as desk:
                await until(lambda: dogs and sleeps(dogs[0]))
                time.sleep(3 * TIMEOUT_S)  # nobody wants anything, and nothing ticks
                assert not desk.ear.health
                with socket.socket(socket.AF_UNIX) as visitor:
                    visitor.connect(f"{controller.folder.name}/r.sock")
                    controller.hears(lambda ear: ear.strikes)
                await until(lambda: desk.ear.strikes[-1] == 0)

    run(scenario)


def test_a_busy_replica_whose_loop_turns_is_well() -> None:
    async def scenario() -> None:
        with EarThread() as controller:
            Stuck.threads = threading.Event()
            options = {"health_check_timeout_s": TIMEOUT_S, "max_ongoing_requests": 2, "max_threads": 2}
            async with replica_of(Stuck, options, controller) as desk:
                calls = [desk.call("busy") for _ in range(4)]
                await until(lambda: len(Stuck.began) == 2)
                await asyncio.sleep(4 * TIMEOUT_S)
                assert not desk.ear.health
                Stuck.threads.set()
                assert [await one.value() for one in calls] == ["busy"] * 4

    run(scenario)


# -- the end ----------------------------------------------------------------------------------------


class Ending:
    """Notes its end; ``held`` holds up a call, ``slow_s`` its destructor."""

    notes: ClassVar[list[str]]
    held: ClassVar[asyncio.Event]
    slow_s: ClassVar[float]

    @classmethod
    def fresh(cls, slow_s: float = 0.0) -> type[Ending]:
        cls.notes, cls.held, cls.slow_s = [], asyncio.Event(), slow_s
        return cls

    async def __call__(self) -> str:
        await self.held.wait()
        self.notes.append("answered")
        return "answered"

    async def stream(self) -> Any:
        yield 1
        await self.held.wait()
        yield 2

    async def __del__(self) -> None:
        self.notes.append("del")
        await asyncio.sleep(self.slow_s)
        self.notes.append("deleted")


class SyncEnding(Ending):
    def __del__(self) -> None:  # type: ignore[override]
        self.notes.append("del")


async def draining(desk: Desk) -> None:
    desk.life.stopping.set()
    await until(lambda: "draining" in desk.ear.phases)


@pytest.mark.parametrize(("kind", "end"), [(Ending, ["del", "deleted"]), (SyncEnding, ["del"])])
def test_what_is_in_hand_is_finished_what_waits_goes_back_and_then_the_destructor(kind: Any, end: list[str]) -> None:
    async def scenario() -> None:
        async with replica_of(kind.fresh(), {"max_ongoing_requests": 2}) as desk:
            calls = [desk.call(), desk.call("stream", stream=True), desk.call()]
            await until(lambda: sum(one.started for one in calls) == 2)
            await draining(desk)
            await draining(desk)  # a second SIGTERM hastens nothing
            assert (await calls[2].end()).refused and not kind.notes
            late = desk.call()
            assert (await late.end()).refused
            kind.held.set()
            assert await calls[0].value() == "answered" and await calls[1].items() == [1, 2]
            await desk.end()
            assert desk.exit_code == 0 and kind.notes == ["answered", *end]

    run(scenario)


def test_what_outlasts_the_grace_is_told_so_and_the_destructor_runs_all_the_same() -> None:
    async def scenario() -> None:
        async with replica_of(Ending.fresh(), {"graceful_shutdown_timeout_s": 0.05}) as desk:
            held = desk.call()
            await until(lambda: held.started)
            await desk.end()
            error = rebuild(held.error) if held.error else None
            assert isinstance(error, ReplicaStoppedError) and "grace period of 0.05 s is over" in str(error)
            assert Ending.notes == ["del", "deleted"]

    run(scenario)


def test_the_grace_is_the_one_in_force_and_the_destructor_may_use_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "SHUTDOWN_S", 0.0)
    monkeypatch.setattr(worker, "DESTRUCTOR_S", 0.0)

    async def scenario() -> None:
        async with replica_of(Ending.fresh(0.1), {"graceful_shutdown_timeout_s": 0.0}) as desk:
            assert (await desk.reconfigure("c1", graceful_shutdown_timeout_s=30)).config == "c1"
            await desk.end()
            assert Ending.notes == ["del", "deleted"]
        async with replica_of(Ending.fresh(3600), {"graceful_shutdown_timeout_s": 0.01}) as desk:
            await desk.end()
            assert Ending.notes == ["del"]  # given up

    run(scenario)


class Application:
    """An ASGI application whose shutdown hangs, behind a class with a destructor."""

    notes: ClassVar[list[str]]

    def __del__(self) -> None:
        self.notes.append("del")


def test_a_shutdown_hook_that_hangs_does_not_keep_the_destructor_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SHUTDOWN_S", 0.05)
    Application.notes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        Application.notes.append("up")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        Application.notes.append("down")
        await asyncio.Event().wait()

    monkeypatch.setattr(worker, "build_asgi", lambda *args, **kwargs: app)

    async def scenario() -> None:
        async with replica_of(Application, {"graceful_shutdown_timeout_s": 0.0}, asgi=True) as desk:
            await desk.end()
            assert desk.exit_code == 0

    run(scenario)
    assert Application.notes == ["up", "down", "del"]


class Loading:
    gate: ClassVar[asyncio.Event]

    async def __init__(self) -> None:  # type: ignore[misc]
        await self.gate.wait()


def test_told_to_end_while_it_loads_it_is_never_ready() -> None:
    async def scenario() -> None:
        Loading.gate = asyncio.Event()
        async with replica_of(Loading, until_phase="loading") as desk:
            desk.life.stopping.set()
            Loading.gate.set()
            await desk.end()
            assert desk.ear.phases == ["importing", "loading", "draining"] and desk.exit_code == 0

    run(scenario)
