"""Supervisors are killed in every order, and the instance lives on, or ends and leaves nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import pytest

from skate.core.clock import SystemClock
from skate.engine import standby
from skate.engine.base import EngineError, ForgetProcess, ProcessSeen, StartProcess, StopProcess
from skate.engine.child import Birth
from skate.engine.exits import ExitBoard
from skate.engine.family import Family
from skate.engine.process import Launched, ProcessEngine
from skate.engine.runtime_dir import PID, STANDBY, read_pid, running_pid, write_pid
from skate.engine.supervisor import WORKED_S
from tests.engine.test_process import controlling, descriptors, finish, owned
from tests.engine.world import (
    LIMIT_S,
    World,
    forget_mark,
    kill_at_once,
    lives,
    marked,
    session_of,
    supervisors,
    title,
    until,
    until_async,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not standby.possible(), reason="this system has no pidfds, so there is no standby"),
]


def kill_primary(world: World) -> int:
    """Kills the supervisor; the process id of the one that goes on, once it has a standby of its own."""
    primary, heir = supervisors(world.runtime_dir)
    os.kill(primary, signal.SIGKILL)
    until(lambda: read_pid(world.runtime_dir) == heir, "the standby has taken over")
    assert supervisors(world.runtime_dir)[0] == heir
    return heir


def nothing_left(world: World, instance: Launched) -> None:
    until(lambda: session_of(instance.pid) == [], "all have ended", 5.0)
    until(lambda: not os.path.exists(world.runtime_dir), "the directory is removed", 3.0)


@asynccontextmanager
async def engine_of(instance: Launched) -> AsyncIterator[ProcessEngine]:
    engine = ProcessEngine(instance.engine_address, SystemClock())
    yield engine
    await engine.close()


async def seen(engine: ProcessEngine, id: str) -> ProcessSeen:
    return next(one for one in await engine.observe() if one.id == id)


async def ended(engine: ProcessEngine, id: str) -> ProcessSeen:
    async def is_over() -> bool:
        return not (await seen(engine, id)).alive

    await until_async(is_over, f"{id} has ended")
    return await seen(engine, id)


def test_the_standby_takes_over_and_everything_lives_on(world: World) -> None:
    controller, started = controlling(world, x1="obey", x2="start_others")
    with world.launched(controller) as instance:
        pids = [marked(spec)["pid"] for spec in (controller, *started.values())]
        first, second = supervisors(world.runtime_dir)
        assert first == instance.pid and title(second) == "skate: standby"
        assert kill_primary(world) == second and title(second) == "skate: supervisor"
        assert all(lives(pid) for pid in pids)
        assert instance.alive() and instance.exit_code is None
        assert running_pid(world.runtime_dir) == second
        instance.close()
        assert instance.exit_code == 0 and session_of(instance.pid) == []
        assert not os.path.exists(os.path.dirname(world.runtime_dir))


def test_nobody_knocks_in_vain_while_the_standby_takes_over(world: World) -> None:
    """A router that hears nobody takes the instance for ended."""
    with world.launched(world.controller()):
        primary, heir = supervisors(world.runtime_dir)
        os.kill(primary, signal.SIGKILL)
        answers: list[int | None] = []
        until(lambda: answers.append(running_pid(world.runtime_dir)) or answers[-1] == heir, "the standby is known")
        assert set(answers) <= {primary, heir}


def test_a_disk_that_takes_nothing_is_no_reason_to_die(world: World) -> None:
    with world.launched(world.controller()) as instance:
        primary, heir = supervisors(world.runtime_dir)
        notes = [os.path.join(world.runtime_dir, name) for name in (PID, STANDBY)]
        for note in notes:
            os.unlink(note)
            os.mkdir(note)  # nobody can write into it, nor root
        os.kill(primary, signal.SIGKILL)
        until(lambda: title(heir) == "skate: supervisor", "the standby has taken over")

        async def scenario() -> None:
            async with engine_of(instance) as engine:
                await engine.observe()

        asyncio.run(scenario())
        assert instance.alive()
        for note in notes:
            os.rmdir(note)
        write_pid(world.runtime_dir, PID, heir)


def test_a_killed_standby_is_replaced_and_the_next_one_knows_all(world: World) -> None:
    controller, started = controlling(world, x1="obey")
    with world.launched(controller) as instance:
        replica = marked(started["x1"])["pid"]
        primary, first = supervisors(world.runtime_dir)
        os.kill(first, signal.SIGKILL)
        until(lambda: supervisors(world.runtime_dir)[1] != first, "another standby")
        assert supervisors(world.runtime_dir)[0] == primary
        kill_primary(world)

        async def scenario() -> None:
            async with engine_of(instance) as engine:
                assert (await seen(engine, "x1")).pid == replica

        asyncio.run(scenario())


def test_a_standby_heeds_no_signal_but_the_death_of_the_supervisor(world: World) -> None:
    with world.launched(world.controller()) as instance:
        _, heir = supervisors(world.runtime_dir)
        os.kill(heir, signal.SIGTERM)
        os.kill(heir, signal.SIGINT)
        assert kill_primary(world) == heir and instance.alive()


@pytest.mark.parametrize("at_once", [False, True])
def test_a_controller_that_dies_with_the_supervisor_comes_back(world: World, at_once: bool) -> None:
    controller, started = controlling(world, x1="obey")
    with world.launched(controller):
        first, replica = marked(controller)["pid"], marked(started["x1"])["pid"]
        forget_mark(controller)
        if at_once:
            kill_at_once(first, supervisors(world.runtime_dir)[0])
        else:
            kill_primary(world)
            os.kill(first, signal.SIGKILL)
        second = marked(controller)
        assert second["pid"] != first and second["known"] == ["x1"] and lives(replica)


def test_a_controller_that_returns_under_another_supervisor_ends_the_instance(world: World) -> None:
    controller, started = controlling(world, x1="obey")
    with world.launched(controller) as instance:
        marked(started["x1"])
        kill_primary(world)
        os.kill(marked(controller)["pid"], signal.SIGTERM)  # its entry returns, with exit code 0
        until(lambda: not instance.alive(), "the instance has ended")
        assert instance.exit_code == 0
        nothing_left(world, instance)


def test_exit_codes_of_adopted_processes(world: World) -> None:
    """What a process says itself is known; by which signal it was killed only its parent could tell."""

    async def scenario(instance: Launched) -> None:
        async with engine_of(instance) as engine:
            told: asyncio.Queue[ProcessSeen | None] = asyncio.Queue()
            for id in ("x1", "x2", "x3"):
                spec = world.spec("obey", id)
                await engine.perform(StartProcess(spec))
                marked(spec)
            engine.on_change(told.put_nowait)
            os.kill((await seen(engine, "x3")).pid, signal.SIGKILL)
            assert await told.get() == (three := await ended(engine, "x3")) and three.exit_code == -9
            kill_primary(world)
            assert await asyncio.wait_for(told.get(), LIMIT_S) is None  # the line was lost
            assert [one.id for one in await engine.observe() if one.alive] == ["x1", "x2"]
            assert await seen(engine, "x3") == three
            await engine.perform(StopProcess("x1", LIMIT_S))
            one = await asyncio.wait_for(told.get(), LIMIT_S)
            assert one is not None and (one.id, one.alive, one.exit_code) == ("x1", False, 0)
            os.kill((await seen(engine, "x2")).pid, signal.SIGKILL)
            two = await asyncio.wait_for(told.get(), LIMIT_S)
            assert two is not None and (two.id, two.alive, two.exit_code) == ("x2", False, None)
            with pytest.raises(EngineError, match="known already"):
                await engine.perform(StartProcess(world.spec("obey", "x2")))
            for id in ("x1", "x2", "x3"):
                await engine.perform(ForgetProcess(id))
            assert await engine.observe() == []

    with world.launched(world.controller()) as instance:
        supervisors(world.runtime_dir)
        asyncio.run(scenario(instance))


def test_what_died_with_the_supervisor_is_seen_dead(world: World) -> None:
    controller, started = controlling(world, x1="obey", x2="start_others")
    with world.launched(controller) as instance:
        replica, two = marked(started["x1"])["pid"], marked(started["x2"])
        kill_at_once(replica, two["pid"], supervisors(world.runtime_dir)[0])

        async def scenario() -> None:
            async with engine_of(instance) as engine:
                assert not (await ended(engine, "x1")).alive and not (await ended(engine, "x2")).alive

        asyncio.run(scenario())
        until(lambda: not any(lives(pid) for pid in two["others"]), "its programs have ended", 3.0)


def test_a_stop_that_is_under_way_goes_on(world: World) -> None:
    """The grace that one supervisor gave ends under the next, and what it asked is asked again."""

    async def scenario(instance: Launched) -> None:
        async with engine_of(instance) as engine:
            ignoring, obeying = world.spec("ignore", "x1"), world.spec("obey", "x2")
            for spec in (ignoring, obeying):
                await engine.perform(StartProcess(spec))
                marked(spec)
            primary, _ = supervisors(world.runtime_dir)
            await engine.perform(StopProcess("x1", 0.3))
            os.kill(marked(obeying)["pid"], signal.SIGSTOP)
            await engine.perform(StopProcess("x2", LIMIT_S))
            os.kill(primary, signal.SIGKILL)
            os.kill(marked(obeying)["pid"], signal.SIGCONT)
            assert (await ended(engine, "x1")).exit_code is None
            assert (await ended(engine, "x2")).exit_code == 0

    with world.launched(world.controller()) as instance:
        supervisors(world.runtime_dir)
        asyncio.run(scenario(instance))


def test_who_is_halted_while_the_supervisor_dies_lives_on(world: World) -> None:
    """The kernel sends SIGHUP to a halted process group that has lost its parent."""
    controller, started = controlling(world, x1="obey")

    async def scenario(instance: Launched) -> None:
        async with engine_of(instance) as engine:
            pid = marked(started["x1"])["pid"]
            os.kill(pid, signal.SIGSTOP)
            kill_primary(world)
            os.kill(pid, signal.SIGCONT)
            await engine.perform(StopProcess("x1", LIMIT_S))
            assert (await ended(engine, "x1")).exit_code == 0

    with world.launched(controller) as instance:
        asyncio.run(scenario(instance))


@pytest.mark.parametrize("kills", [6])
def test_what_is_started_while_supervisors_die_is_started_once(world: World, kills: int) -> None:
    """The answer may be lost, the process not, and none runs that nobody knows."""

    async def scenario(instance: Launched) -> None:
        async with engine_of(instance) as engine:
            ids: list[str] = []

            async def start_many() -> None:
                while len(ids) < 1000 and not killing.done():
                    id = f"x{len(ids)}"
                    one = await engine.perform(StartProcess(world.spec("obey", id, world.config())))
                    assert one is not None and one.id == id
                    ids.append(id)
                    if len(ids) > 10:
                        await engine.perform(StopProcess(ids[-10], 0.0))

            async def kill_some() -> None:
                for number in range(kills):
                    primary, _ = await asyncio.to_thread(supervisors, world.runtime_dir)
                    await until_async(partial(has, ids, len(ids) + number), "it starts something")
                    os.kill(primary, signal.SIGKILL)

            killing = asyncio.create_task(kill_some())
            await start_many()
            await killing
            found = await engine.observe()
            assert [one.id for one in found] == ids
            alive = {one.pid for one in found if one.alive}
            others = {*supervisors(world.runtime_dir), marked(controller)["pid"]}

            async def as_said() -> bool:
                alive = {one.pid for one in await engine.observe() if one.alive}
                return set(session_of(instance.pid)) - others == alive

            await until_async(as_said, "what lives is what is known to live")
            assert len(alive) >= 10

    controller = world.controller()
    with world.launched(controller, restarts_max=100) as instance:
        supervisors(world.runtime_dir)
        asyncio.run(scenario(instance))
        instance.close()
        nothing_left(world, instance)


async def has(ids: list[str], count: int) -> bool:
    return len(ids) > count


def test_take_over_after_take_over_costs_no_descriptor(world: World) -> None:
    controller, started = controlling(world, x1="obey")
    with world.launched(controller) as instance:
        marked(started["x1"])
        kill_primary(world)
        counts = []
        for _ in range(3):
            heir = kill_primary(world)
            counts.append((len(descriptors(heir)), len(descriptors(supervisors(world.runtime_dir)[1]))))
        assert len(set(counts)) == 1, counts
        instance.close()
        nothing_left(world, instance)


def test_what_has_worked_is_never_given_up(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    controller, started = controlling(world, x1="obey")
    with world.launched(controller, restarts_max=0) as instance:
        replica, first = marked(started["x1"])["pid"], marked(controller)
        until(lambda: time.monotonic() > first["at"] + WORKED_S, "it has worked")
        kill_primary(world)
        for _ in range(2):
            dead = marked(controller)["pid"]
            forget_mark(controller)
            os.kill(dead, signal.SIGKILL)
            assert marked(controller)["pid"] != dead
        assert instance.alive() and lives(replica)
        instance.close()
        nothing_left(world, instance)
    printed = capfd.readouterr().err
    assert "the supervisor died 1 times within 30 s; this one rests" in printed
    assert "the controller was killed (1 times within 30 s); it is started again at once" in printed
    assert "(2 times within 30 s); it is started again 0.1 s from now" in printed


def test_the_owner_is_killed_after_a_take_over(world: World) -> None:
    controller, started = controlling(world, x1="obey", x2="ignore", x3="block", x4="start_others")
    script, supervisor, forked = owned(world, controller, "owned")
    for spec in started.values():
        marked(spec)
    kill_primary(world)
    script.kill()
    os.kill(forked, signal.SIGKILL)
    until(lambda: session_of(supervisor) == [], "all have ended", 5.0)
    until(lambda: not os.path.exists(world.runtime_dir), "the directory is removed", 3.0)
    finish(script)


@pytest.mark.parametrize("detached", [False, True])
def test_an_instance_whose_supervisor_hangs_is_ended_all_the_same(
    world: World, detached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skate.engine.process.SECOND_ASKING_S", 0.5)
    controller, started = controlling(world, x1="ignore")
    with world.launched(controller, detached=detached) as instance:
        marked(started["x1"])
        pids = supervisors(world.runtime_dir)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        instance.close(0.05)
        nothing_left(world, instance)


def test_a_supervisor_is_killed_while_it_ends(world: World) -> None:
    controller, started = controlling(world, x1="ignore")
    with world.launched(controller, grace_s=0.5) as instance:
        marked(started["x1"])
        primary, _ = supervisors(world.runtime_dir)
        os.kill(primary, signal.SIGTERM)
        until(lambda: not lives(marked(controller)["pid"]), "the end has begun")
        os.kill(primary, signal.SIGKILL)
        until(lambda: not instance.alive(), "the instance has ended")
        assert instance.exit_code == 0
        nothing_left(world, instance)


@contextmanager
def adopting(session: bool, **known: Any) -> Iterator[tuple[subprocess.Popen[bytes], Family]]:
    """A process that a dead supervisor told of, and the family that adopts it."""
    process = subprocess.Popen(["sleep", "1000"], process_group=None if session else 0, start_new_session=session)
    family = Family(Birth("", (), "", False, ExitBoard(4), lambda: None), SystemClock(), lambda note: None)
    family.hear(standby.Known("x1", "replica", "x1", process.pid, 0, **known))
    try:
        yield process, family
    finally:
        family.close_pidfds()
        process.kill()
        process.wait()


def test_what_was_to_be_stopped_is_asked_again(world: World) -> None:
    """The primary tells of a stop before it asks; it may have died in between."""
    with adopting(session=False, stopping=True) as (process, family):
        assert len(family.adopt()) == 1
        assert process.wait(LIMIT_S) == -signal.SIGTERM


def test_a_stranger_with_the_id_of_a_dead_process_is_left_alone(world: World) -> None:
    with adopting(session=True, stopping=True, kill_at=0.0) as (process, family):
        assert family.adopt() == []
        family.kill_overdue()
        family.stop("x1", 0.0)
        assert [(one.alive, one.exit_code) for one in family.seen()] == [(False, None)]
        assert process.poll() is None


def test_without_pidfds_there_is_no_standby(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "possible", lambda: False)
    made = standby.Standby(SystemClock(), 0.0)
    assert made.again_at is None and not made.due()
    made.tell(standby.Forgotten("x1"))
    made.end()
