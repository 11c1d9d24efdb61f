"""The folder that outlives an instance: whose it is, and for how long."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import pytest

from skate.engine import standby, state_dir
from skate.engine.base import EngineError
from tests.engine.world import World, kill_at_once, lives, supervisors, until, world


@pytest.fixture
def here() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_dir, "WAIT_S", 0.0)


def test_it_is_private_made_with_its_parents_and_never_swept(here: World) -> None:
    path = os.path.join(here.folder, "share", "skate", "default")
    os.close(state_dir.claim(path, "/run/one"))
    for folder in (path, os.path.dirname(path)):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    with open(os.path.join(path, "state.db"), "x", encoding="ascii"):
        pass
    os.close(state_dir.claim(path, "/run/one"))
    assert sorted(os.listdir(path)) == ["lock", "state.db"]


@pytest.mark.usefixtures("at_once")
def test_of_two_instances_the_second_is_told_where_the_first_is(here: World) -> None:
    path = os.path.join(here.folder, "skate", "default")
    held = state_dir.claim(path, "/run/one/default")
    with pytest.raises(EngineError, match=r"in /run/one/default: set SKATE_INSTANCE.*SKATE_STATE_DIR"):
        state_dir.claim(path, "/run/other/default")
    os.close(held)
    os.close(state_dir.claim(path, "/run/other/default"))


def test_where_it_cannot_be_or_others_could_write_the_variable_is_named(here: World) -> None:
    file = os.path.join(here.folder, "file")
    with open(file, "x", encoding="ascii"):
        pass
    with pytest.raises(EngineError, match=r"cannot be made.*SKATE_STATE_DIR"):
        state_dir.claim(os.path.join(file, "default"), "")
    path = os.path.join(here.folder, "skate", "default")
    os.makedirs(path)
    os.chmod(path, 0o770)
    with pytest.raises(EngineError, match=r"open to others.*SKATE_STATE_DIR"):
        state_dir.claim(path, "")


@pytest.mark.e2e
@pytest.mark.skipif(not standby.possible(), reason="this system has no pidfds, so there is no standby")
def test_supervisors_hold_it_and_nobody_else(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.path.join(here.folder, "state", "default")

    def hold() -> int:
        return state_dir.claim(path, here.runtime_dir)

    controller = here.controller("block")  # it outlives them for a moment
    with here.launched(controller, hold=hold) as instance:
        pids = supervisors(here.runtime_dir)
        os.kill(pids[0], 9)
        until(lambda: supervisors(here.runtime_dir)[0] == pids[1], "the standby has taken over")
        with monkeypatch.context() as patch, pytest.raises(EngineError, match=r"in use"):
            patch.setattr(state_dir, "WAIT_S", 0.0)
            hold()
        kill_at_once(*supervisors(here.runtime_dir))
        until(lambda: not instance.alive(), "all supervisors are gone")
        os.close(hold())
    with here.launched(here.controller(), hold=hold) as instance:
        (first, _) = supervisors(here.runtime_dir)
        instance.close()
        assert not lives(first)
        os.close(hold())
