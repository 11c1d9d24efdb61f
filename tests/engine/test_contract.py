"""One contract, every engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from skate.core.clock import ManualClock, SystemClock
from skate.core.specs import ProcessSpec
from skate.engine.base import Engine, EngineError, ForgetProcess, ProcessSeen, StartProcess, StopProcess
from skate.engine.inline import InlineEngine
from skate.engine.process import ProcessEngine
from tests.engine.world import ENTRIES, LIMIT_S, World, until_async

Scenario = Callable[[Engine], Awaitable[None]]
Play = Callable[[Scenario], None]


@asynccontextmanager
async def inline_engine(world: World) -> AsyncIterator[Engine]:
    engine = InlineEngine(SystemClock())
    yield engine
    await engine.close()


@asynccontextmanager
async def process_engine(world: World) -> AsyncIterator[Engine]:
    with world.launched(world.controller()) as instance:
        engine = ProcessEngine(instance.engine_address, SystemClock())
        await until_async(lambda: listens(engine), "the supervisor listens")
        yield engine
        await engine.close()


async def listens(engine: Engine) -> bool:
    try:
        await engine.observe()
    except EngineError:
        return False
    return True


@pytest.fixture(params=[inline_engine, process_engine], ids=["inline", "process"])
def play(request: pytest.FixtureRequest, world: World) -> Play:
    """Plays a scenario on the engine."""

    def played(scenario: Scenario) -> None:
        async def run() -> None:
            async with request.param(world) as engine:
                await scenario(engine)

        asyncio.run(asyncio.wait_for(run(), 3 * LIMIT_S))

    return played


async def seen(engine: Engine, id: str = "x1") -> ProcessSeen | None:
    return next((one for one in await engine.observe() if one.id == id), None)


async def ended(engine: Engine, id: str = "x1") -> ProcessSeen:
    """How it is seen once it has ended."""

    async def is_over() -> bool:
        one = await seen(engine, id)
        return one is not None and not one.alive

    await until_async(is_over, f"{id} has ended")
    one = await seen(engine, id)
    assert one is not None
    return one


async def runs(world: World, config: bytes) -> None:
    """Waits for the mark that the entry writes."""
    path = world.mark_of(config)

    async def is_there() -> bool:
        return os.path.exists(path)

    await until_async(is_there, "the entry runs")


def test_nothing_was_started(play: Play) -> None:
    async def scenario(engine: Engine) -> None:
        assert await engine.observe() == []

    play(scenario)


def test_what_was_started_is_seen_and_stops_when_asked(play: Play, world: World) -> None:
    async def scenario(engine: Engine) -> None:
        config = world.config()
        await engine.perform(StartProcess(world.spec("obey", config=config)))
        one = await seen(engine)
        assert one is not None and one.alive and one.role == "replica" and one.exit_code is None and one.pid > 0
        await runs(world, config)
        await engine.perform(StopProcess("x1", LIMIT_S))
        assert (await ended(engine)).exit_code == 0

    play(scenario)


def test_a_stop_right_after_the_start_is_heard(play: Play, world: World) -> None:
    async def scenario(engine: Engine) -> None:
        await engine.perform(StartProcess(world.spec("obey")))
        await engine.perform(StopProcess("x1", LIMIT_S))
        assert (await ended(engine)).exit_code == 0

    play(scenario)


def test_what_ignores_the_stop_is_killed_after_its_grace(play: Play, world: World) -> None:
    async def scenario(engine: Engine) -> None:
        config = world.config()
        await engine.perform(StartProcess(world.spec("ignore", config=config)))
        await runs(world, config)
        await engine.perform(StopProcess("x1", LIMIT_S * 100))
        one = await seen(engine)
        assert one is not None and one.alive
        await engine.perform(StopProcess("x1", 0.05))  # the earlier end counts
        await engine.perform(StopProcess("x1", LIMIT_S * 100))
        assert (await ended(engine)).exit_code == -9

    play(scenario)


@pytest.mark.parametrize(("entry", "code"), [("done", 0), ("crash", 1), ("leave", 7), ("missing", 1)])
def test_exit_codes(play: Play, world: World, entry: str, code: int) -> None:
    async def scenario(engine: Engine) -> None:
        await engine.perform(StartProcess(world.spec(entry)))
        assert (await ended(engine)).exit_code == code

    play(scenario)


def test_a_crash_is_printed_with_its_title_and_traceback(
    play: Play, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario(engine: Engine) -> None:
        await engine.perform(StartProcess(world.spec("crash")))
        await ended(engine)

    play(scenario)
    printed = capfd.readouterr().err
    assert "[skate: replica x1] ended with an error:" in printed
    assert "in crash" in printed and "ValueError: the model file is broken" in printed


def test_the_end_of_a_process_is_told(play: Play, world: World) -> None:
    async def scenario(engine: Engine) -> None:
        told: asyncio.Queue[ProcessSeen | None] = asyncio.Queue()
        engine.on_change(told.put_nowait)
        await engine.observe()
        assert await engine.perform(StopProcess("nobody", 0.0)) is None
        started = await engine.perform(StartProcess(world.spec("leave")))
        assert started == ProcessSeen("x1", "replica", started.pid if started else 0, True) and started.pid > 0
        await engine.perform(StartProcess(world.spec("obey", "x2")))
        assert await asyncio.wait_for(told.get(), LIMIT_S) == ProcessSeen("x1", "replica", started.pid, False, 7)
        assert await engine.perform(StopProcess("x2", LIMIT_S)) is None
        two = await asyncio.wait_for(told.get(), LIMIT_S)
        assert two is not None and (two.id, two.alive, two.exit_code) == ("x2", False, 0)
        assert await engine.perform(ForgetProcess("x1")) is None
        assert await engine.observe() == [two] and told.empty()

    play(scenario)


def test_starts_and_ends_tell_as_much_as_a_look(play: Play, world: World) -> None:
    """Whoever keeps what it is told need not ask again."""

    async def scenario(engine: Engine) -> None:
        known = {one.id: one for one in await engine.observe()}

        def ended(one: ProcessSeen | None) -> None:
            assert one is not None
            known[one.id] = one

        engine.on_change(ended)
        for number, entry in enumerate(["done", "obey", "leave", "missing", "obey"] * 2):
            started = await engine.perform(StartProcess(world.spec(entry, f"x{number}")))
            assert started is not None
            known.setdefault(started.id, started)  # its end may have been told before the answer was read

        async def over() -> bool:
            return sum(not one.alive for one in known.values()) == 6

        await until_async(over, "six have ended")
        assert sorted(await engine.observe(), key=lambda one: one.id) == sorted(known.values(), key=lambda one: one.id)

    play(scenario)


def test_the_dead_are_kept_until_forgotten(play: Play, world: World) -> None:
    async def scenario(engine: Engine) -> None:
        await engine.perform(StartProcess(world.spec("done")))
        await ended(engine)
        with pytest.raises(EngineError, match="known already"):
            await engine.perform(StartProcess(world.spec("obey")))
        await engine.perform(StopProcess("x1", 0.0))  # dead already: nothing to do
        await engine.perform(ForgetProcess("x1"))
        assert await engine.observe() == []
        await engine.perform(StartProcess(world.spec("obey")))
        one = await seen(engine)
        assert one is not None and one.alive

    play(scenario)


def test_the_living_are_not_forgotten(play: Play, world: World) -> None:
    async def scenario(engine: Engine) -> None:
        await engine.perform(StartProcess(world.spec("obey")))
        with pytest.raises(EngineError, match="'x1' is alive"):
            await engine.perform(ForgetProcess("x1"))

    play(scenario)


def test_the_unknown_is_no_error(play: Play) -> None:
    async def scenario(engine: Engine) -> None:
        await engine.perform(StopProcess("nobody", 1.0))
        await engine.perform(ForgetProcess("nobody"))

    play(scenario)


def test_many_at_once(play: Play, world: World) -> None:
    async def scenario(engine: Engine) -> None:
        ids = [f"x{number}" for number in range(20)]
        await asyncio.gather(*(engine.perform(StartProcess(world.spec("obey", id))) for id in ids))
        assert sorted(one.id for one in await engine.observe() if one.alive) == sorted(ids)
        await asyncio.gather(*(engine.perform(StopProcess(id, LIMIT_S)) for id in ids))
        assert {(await ended(engine, id)).exit_code for id in ids} == {0}
        for id in ids:
            await engine.perform(ForgetProcess(id))
        assert await engine.observe() == []

    play(scenario)


def test_two_observers_see_the_same(world: World) -> None:
    async def run() -> None:
        async with process_engine(world) as engine:
            other = ProcessEngine(f"unix:{world.runtime_dir}/engine.sock", SystemClock())
            changed = asyncio.Event()
            other.on_change(lambda told: changed.set())
            await other.observe()
            await engine.perform(StartProcess(world.spec("done")))
            await asyncio.wait_for(changed.wait(), LIMIT_S)
            assert await other.observe() == await engine.observe()
            await other.close()

    asyncio.run(run())


def test_an_entry_that_swallows_its_cancellation_is_cancelled_again() -> None:
    """Inline nothing can be killed; this is what is done instead."""

    async def run() -> None:
        clock = ManualClock()
        engine = InlineEngine(clock)
        await engine.perform(StartProcess(ProcessSpec("x1", "replica", "x1", f"{ENTRIES}:stubborn", b"")))
        await asyncio.sleep(0)
        await engine.perform(StopProcess("x1", 0.0))

        async def is_over() -> bool:
            clock.advance(1.0)
            one = await seen(engine)
            return one is not None and not one.alive

        await until_async(is_over, "x1 has ended")
        assert (await ended(engine)).exit_code == -9

    asyncio.run(run())
