"""Real processes: who ends with whom, and that nothing is left."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from skate.core.clock import SystemClock
from skate.core.specs import ProcessSpec
from skate.engine.base import AlreadyRunningError, EngineError
from skate.engine.process import ProcessEngine, launch
from skate.engine.runtime_dir import running_pid
from tests.engine.world import (
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

pytestmark = pytest.mark.e2e

OWNER = str(Path(__file__).with_name("owner.py"))


def controlling(world: World, **entries: str) -> tuple[ProcessSpec, dict[str, ProcessSpec]]:
    """A controller that starts these entries, and the specs of what it starts."""
    started = {id: world.spec(entry, id) for id, entry in entries.items()}
    config = world.config(start=entries, configs={id: spec.config.decode() for id, spec in started.items()})
    return world.controller("control", config), started


def owned(world: World, controller: ProcessSpec, how: str) -> tuple[subprocess.Popen[str], int, int]:
    """A script that has launched an instance; the supervisor's process id and that of the script's own fork."""
    spec = base64.b64encode(msgspec.msgpack.encode(controller)).decode()
    script = subprocess.Popen(
        [sys.executable, OWNER, world.runtime_dir, spec, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert script.stdout is not None
    supervisor, forked = script.stdout.readline().split()
    return script, int(supervisor), int(forked)


def descriptors(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def write_ends(pid: int) -> list[str]:
    """The pipes that a process can write to, but for stdout and stderr."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{name}")
        flags = Path(f"/proc/{pid}/fdinfo/{name}").read_text(encoding="utf-8").split("flags:")[1].split()[0]
        if target.startswith("pipe:") and int(name) > 2 and int(flags, 8) & os.O_ACCMODE == os.O_WRONLY:
            found.append(target)
    return found


def finish(script: subprocess.Popen[str]) -> None:
    assert script.stdin is not None and script.stdout is not None
    script.stdin.close()
    script.stdout.close()
    script.wait(10.0)


def test_names_and_lives_of_an_instance(world: World) -> None:
    controller, started = controlling(world, x1="obey")
    with world.launched(controller) as instance:
        replica = marked(started["x1"])
        assert replica["inline"] is False
        assert replica["engine_address"] == f"unix:{world.runtime_dir}/engine.sock"
        assert title(instance.pid) == "skate: supervisor"
        assert title(marked(controller)["pid"]) == "skate: controller"
        assert title(replica["pid"]) == "skate: replica x1"
        assert running_pid(world.runtime_dir) == instance.pid and instance.alive()
        assert os.stat(world.runtime_dir).st_mode & 0o777 == 0o700
        for name in ("engine.sock", "lock", "pid"):
            assert os.stat(os.path.join(world.runtime_dir, name)).st_mode & 0o777 == 0o600
        with pytest.raises(AlreadyRunningError, match=str(instance.pid)):
            launch(world.runtime_dir, controller)
        instance.close()
        instance.close()
        assert instance.exit_code == 0 and session_of(instance.pid) == []
        assert running_pid(world.runtime_dir) is None
    assert not os.path.exists(os.path.dirname(world.runtime_dir))


def test_a_killed_owner_leaves_nothing(world: World) -> None:
    controller, started = controlling(world, x1="obey", x2="ignore", x3="block", x4="start_others")
    script, supervisor, forked = owned(world, controller, "owned")
    others = [marked(spec) for spec in started.values()]
    pids = [supervisor, *(one["pid"] for one in others), *others[3]["others"]]
    assert all(lives(pid) for pid in pids)
    script.kill()
    until(lambda: not any(lives(pid) for pid in pids), "all have ended", 3.0)
    until(lambda: not os.path.exists(world.runtime_dir), "the directory is removed", 3.0)
    assert lives(forked)  # it was no part of the instance, and did not hold it
    os.kill(forked, signal.SIGKILL)
    finish(script)


def test_an_owner_that_just_ends_leaves_nothing(world: World) -> None:
    controller, started = controlling(world, x1="obey")
    script, supervisor, forked = owned(world, controller, "owned")
    marked(started["x1"])
    os.kill(forked, signal.SIGKILL)
    finish(script)
    until(lambda: session_of(supervisor) == [], "all have ended", 3.0)
    until(lambda: not os.path.exists(world.runtime_dir), "the directory is removed", 3.0)


def test_supervisor_and_standby_killed_at_once_take_all_with_them(world: World) -> None:
    controller, started = controlling(world, x1="obey", x2="ignore", x3="block", x4="start_others")
    with world.launched(controller) as instance:
        others = [marked(spec) for spec in started.values()]
        pids = [marked(controller)["pid"], *(one["pid"] for one in others), *others[3]["others"]]
        kill_at_once(*supervisors(world.runtime_dir))
        until(lambda: not any(lives(pid) for pid in pids), "all have ended", 3.0)
        assert not instance.alive() and os.path.exists(world.runtime_dir)
        assert instance.exit_code == -signal.SIGKILL
        instance.close()
        assert not os.path.exists(world.runtime_dir)


def test_the_directory_of_a_killed_instance_is_taken_over(world: World) -> None:
    first = world.controller()
    with world.launched(first):
        gone = marked(first)["pid"]
        kill_at_once(*supervisors(world.runtime_dir))
        until(lambda: not lives(gone), "the controller has ended", 3.0)
        second = world.controller()
        with world.launched(second):
            assert lives(marked(second)["pid"])


def test_a_killed_controller_is_forked_again_and_finds_the_others(world: World) -> None:
    controller, started = controlling(world, x1="obey")
    with world.launched(controller):
        replica = marked(started["x1"])["pid"]
        first = marked(controller)
        assert first["known"] == []
        forget_mark(controller)
        os.kill(first["pid"], signal.SIGKILL)
        second = marked(controller)
        assert second["pid"] != first["pid"] and second["known"] == ["x1"]
        assert lives(replica)


def test_a_controller_that_keeps_dying_is_given_up(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    with world.launched(world.controller("crash"), restarts_max=2) as instance:
        until(lambda: not instance.alive(), "the instance has ended")
        assert instance.exit_code == 1
        assert not os.path.exists(world.runtime_dir)
    printed = capfd.readouterr().err
    assert printed.count("the model file is broken") == 2 * 3  # each traceback shows the line and the error
    assert "ended with exit code 1; it died 3 times within 30 s, never worked" in printed


def test_a_controller_that_returns_ends_the_instance(world: World) -> None:
    controller, _ = controlling(world, x1="obey")
    controller = world.controller("control", json.dumps({**json.loads(controller.config), "then": "return"}).encode())
    with world.launched(controller) as instance:
        until(lambda: not instance.alive(), "the instance has ended")
        assert instance.exit_code == 0 and session_of(instance.pid) == []
        assert not os.path.exists(world.runtime_dir)


def test_a_child_holds_nothing_of_the_supervisor(world: World) -> None:
    controller, started = controlling(world, x1="obey", x2="tell_descriptors")
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    with world.launched(controller) as instance:
        told = marked(started["x2"])
        shared = [one for one in descriptors(instance.pid) if one in told["descriptors"] and not one.startswith("anon")]
        standard = [os.readlink(f"/proc/{instance.pid}/fd/{number}") for number in range(3)]
        lifelines = set(shared) - set(standard)
        assert len(lifelines) == 2 and all(one.startswith("pipe:") for one in lifelines), shared
        own = [name for name in told["descriptors"] if name.startswith(world.folder)]
        assert [name.rpartition("/")[2] for name in own] == ["x2.log"], told["descriptors"]
        assert "/dev/null" in told["descriptors"]
        assert told["blocked"] == []
        assert f"pipe:[{os.fstat(write_end).st_ino}]" not in descriptors(instance.pid) + told["descriptors"]
    os.close(read_end)
    os.close(write_end)


def test_the_write_ends_of_what_tells_a_life_are_in_the_supervisors_only(world: World) -> None:
    """Another holder would keep an instance alive after its death, or hide its end from the owner."""
    controller, started = controlling(world, x1="obey")
    with world.launched(controller):
        children = [marked(controller)["pid"], marked(started["x1"])["pid"]]
        primary, standby = (write_ends(pid) for pid in supervisors(world.runtime_dir))
        assert len(standby) == 2 and set(standby) < set(primary) and len(primary) == 3  # the third tells the standby
        assert len(set(standby) & set(descriptors(os.getpid()))) == 1  # how the owner hears of the end
        for pid in children:
            assert not set(write_ends(pid)) & set(primary)
            assert len(set(standby) & set(descriptors(pid))) == 1  # how they hear of it


def test_what_a_replica_started_ends_with_it(world: World) -> None:
    controller, started = controlling(world, x1="start_others")
    with world.launched(controller):
        replica = marked(started["x1"])
        os.kill(replica["pid"], signal.SIGKILL)
        until(lambda: not any(lives(pid) for pid in replica["others"]), "its programs have ended", 3.0)


def test_a_replica_ends_although_tasks_and_threads_of_it_go_on(world: World) -> None:
    controller, started = controlling(world, x1="leave_work")
    with world.launched(controller):
        replica = marked(started["x1"])
        until(lambda: not lives(replica["pid"]), "it has ended", 3.0)


def test_a_detached_instance_outlives_its_starter_and_ends_when_asked(world: World) -> None:
    controller, started = controlling(world, x1="obey", x2="crash")
    script, supervisor, _ = owned(world, controller, "detached")
    finish(script)
    replica = marked(started["x1"])["pid"]
    log = Path(world.runtime_dir, "logs", "x2.log")
    until(
        lambda: log.exists() and "the model file is broken" in log.read_text(encoding="utf-8"),
        "the crash is in the log",
    )
    assert log.stat().st_mode & 0o777 == 0o600
    assert lives(supervisor) and lives(replica)
    os.kill(supervisor, signal.SIGTERM)
    until(lambda: session_of(supervisor) == [], "all have ended", 5.0)
    until(lambda: not os.path.exists(world.runtime_dir), "the directory is removed", 3.0)


def test_a_detached_instance_that_fails_leaves_its_log(world: World) -> None:
    with world.launched(world.controller("crash"), detached=True, restarts_max=0) as instance:
        until(lambda: not instance.alive(), "the instance has ended")
        assert "the model file is broken" in Path(instance.logs, "controller.log").read_text(encoding="utf-8")
        assert sorted(os.listdir(world.runtime_dir)) == ["logs"]
    assert not os.path.exists(world.runtime_dir)


def test_a_preload_that_does_not_import_ends_the_instance(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    with world.launched(world.controller(), preload=["no_such_module"]) as instance:
        until(lambda: not instance.alive(), "the instance has ended")
        assert instance.exit_code == 1
    assert "the preload module 'no_such_module' does not import" in capfd.readouterr().err


def test_two_askings_end_an_instance_whose_grace_is_long(world: World) -> None:
    controller, started = controlling(world, x1="ignore")
    with world.launched(controller, grace_s=600.0) as instance:
        marked(started["x1"])
        instance.close(0.05)
        assert session_of(instance.pid) == []
        assert not os.path.exists(world.runtime_dir)


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.1, 0.15, 0.2, 0.3])
def test_an_instance_can_be_ended_at_any_moment_of_its_start(world: World, after_s: float) -> None:
    controller, _ = controlling(world, x1="obey")
    with world.launched(controller) as instance:
        with pytest.raises(subprocess.TimeoutExpired):  # not a wait for a state: the moment is what is tested
            subprocess.run(["sleep", "10"], timeout=after_s, check=False)
        instance.close()
        assert session_of(instance.pid) == []
        assert not os.path.exists(world.runtime_dir)


def test_noise_and_crowds_on_the_socket_disturb_nobody(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    controller, started = controlling(world, x1="obey")
    with world.launched(controller) as instance:
        marked(started["x1"])
        guests = [socket.socket(socket.AF_UNIX) for _ in range(30)]
        for guest in guests:
            guest.settimeout(5.0)
            guest.connect(os.path.join(world.runtime_dir, "engine.sock"))
            with suppress(OSError):  # one of those above the limit, closed at once
                guest.sendall(b"\xff\xff\xff\xffnoise")
                assert guest.recv(1) == b""
        for guest in guests:
            guest.close()

        async def observed() -> list[str]:
            engine = ProcessEngine(instance.engine_address, SystemClock())
            ids = [one.id for one in await engine.observe() if one.alive]
            await engine.close()
            return ids

        assert asyncio.run(observed()) == ["x1"]
    assert "a frame of 4294967295 bytes was announced" in capfd.readouterr().err


def test_a_supervisor_that_is_gone_is_an_error_and_not_a_wait(world: World) -> None:
    async def scenario() -> None:
        with world.launched(world.controller()) as instance:
            engine = ProcessEngine(instance.engine_address, SystemClock())
            changed = asyncio.Event()
            engine.on_change(lambda told: changed.set() if told is None else None)
            await until_async(lambda: observes(engine), "the supervisor listens")
            pids = supervisors(world.runtime_dir)
            os.kill(instance.pid, signal.SIGSTOP)
            asking = asyncio.create_task(engine.observe())
            await asyncio.sleep(0)
            kill_at_once(*pids)
            with pytest.raises(EngineError, match=r"connection to the supervisor|no supervisor listens"):
                await asking
            await asyncio.wait_for(changed.wait(), 5.0)
            with pytest.raises(EngineError):  # nobody listens; a dying one may take one more connection
                await engine.observe()

    asyncio.run(scenario())


async def observes(engine: ProcessEngine) -> bool:
    try:
        await engine.observe()
    except EngineError:
        return False
    return True
