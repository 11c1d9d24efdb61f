"""The runtime directory: private, exclusive, swept."""

from __future__ import annotations

import multiprocessing
import os
import socket
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack

import pytest

from skate.engine.base import AlreadyRunningError, EngineError
from skate.engine.runtime_dir import ENGINE_SOCKET, claim, remove, remove_stale, running_pid, write_pid
from tests.engine.world import World


def test_a_claimed_directory_is_private_and_goes_with_its_parent(world: World) -> None:
    claimed = claim(world.runtime_dir)
    assert os.stat(claimed.path).st_mode & 0o777 == 0o700
    assert os.stat(os.path.dirname(claimed.path)).st_mode & 0o777 == 0o700
    remove(claimed)
    assert not os.path.exists(os.path.dirname(claimed.path))


def test_a_second_claim_is_refused_and_names_the_holder(world: World) -> None:
    claimed = claim(world.runtime_dir)
    write_pid(claimed.path)
    with pytest.raises(AlreadyRunningError, match=f"supervisor {os.getpid()}.*SKATE_INSTANCE"):
        claim(world.runtime_dir)
    remove_stale(world.runtime_dir)
    assert os.path.exists(world.runtime_dir)
    assert running_pid(world.runtime_dir) is None  # nobody listens
    remove(claimed)


def test_a_supervisor_that_has_no_time_is_no_dead_one(world: World) -> None:
    """When a controller dies, every process of the instance asks at once whether the supervisor lives."""
    mine = claim(world.runtime_dir)
    write_pid(world.runtime_dir)
    with socket.socket(socket.AF_UNIX) as busy, ExitStack() as waiting:
        busy.bind(os.path.join(world.runtime_dir, ENGINE_SOCKET))
        busy.listen(1)
        with pytest.raises(BlockingIOError):
            while True:  # nobody is let in: at some point the kernel takes no more
                one = waiting.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                one.connect(os.path.join(world.runtime_dir, ENGINE_SOCKET))
        assert running_pid(world.runtime_dir) == os.getpid()
    assert running_pid(world.runtime_dir) is None
    remove(mine)


def test_litter_is_swept_but_nothing_behind_a_link(world: World) -> None:
    os.mkdir(os.path.join(world.folder, "precious"))
    claimed = claim(world.runtime_dir)
    os.makedirs(os.path.join(claimed.path, "logs", "old"))
    os.symlink(os.path.join(world.folder, "precious"), os.path.join(claimed.path, "link"))
    os.close(claimed.lock_fd)  # as the kernel does for a killed process
    again = claim(world.runtime_dir)
    assert os.listdir(again.path) == ["lock"]
    assert os.path.exists(os.path.join(world.folder, "precious"))
    remove(again)
    remove_stale(world.runtime_dir)  # nothing there is fine


def test_a_directory_open_to_others_is_refused(world: World) -> None:
    os.makedirs(world.runtime_dir)
    os.chmod(world.runtime_dir, 0o750)
    with pytest.raises(EngineError, match=r"open to others \(mode 750\)"):
        claim(world.runtime_dir)


def test_a_parent_that_others_can_change_is_refused(world: World) -> None:
    os.makedirs(os.path.dirname(world.runtime_dir))
    os.chmod(os.path.dirname(world.runtime_dir), 0o777)
    with pytest.raises(EngineError, match="can be changed by others"):
        claim(world.runtime_dir)
    os.chmod(os.path.dirname(world.runtime_dir), 0o1777)
    remove(claim(world.runtime_dir))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_someone_else_is_refused(world: World) -> None:
    os.makedirs(world.runtime_dir, 0o700)
    os.chown(world.runtime_dir, 12345, -1)
    with pytest.raises(EngineError, match="belongs to user 12345"):
        claim(world.runtime_dir)
    os.chown(world.runtime_dir, os.getuid(), -1)
    os.chown(os.path.dirname(world.runtime_dir), 12345, -1)
    with pytest.raises(EngineError, match="owner 12345"):
        claim(world.runtime_dir)


def test_what_is_no_directory_is_refused(world: World) -> None:
    os.makedirs(os.path.dirname(world.runtime_dir), 0o700)
    os.symlink(world.folder, world.runtime_dir)
    with pytest.raises(EngineError, match="is not a directory"):
        claim(world.runtime_dir)


def test_a_path_too_long_for_sockets_is_refused(world: World) -> None:
    with pytest.raises(EngineError, match="SKATE_RUNTIME_DIR"):
        claim(os.path.join(world.folder, "x" * 100))


def compete(path: str, rounds: int) -> int:
    """Claims and removes; while it holds the directory nobody else may."""
    won = 0
    for _ in range(rounds):
        try:
            claimed = claim(path)
        except AlreadyRunningError:
            continue
        with open(os.path.join(path, "mine"), "x", encoding="ascii"):
            won += 1
        remove(claimed)
    return won


def test_of_many_claimants_one_holds_it(world: World) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        counts = list(pool.map(compete, [world.runtime_dir] * 4, [200] * 4))
    assert sum(counts) > 0
    assert not os.path.exists(world.runtime_dir)
