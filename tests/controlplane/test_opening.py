"""A state that cannot be read for a moment is no reason for a controller to die."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from skate.controlplane import controller as controllers
from skate.controlplane.controller import Controller
from skate.controlplane.store import MemoryStore, Saved
from skate.core.clock import ManualClock
from skate.core.specs import ControllerConfig
from skate.engine.base import Life
from tests.controlplane.fakes import FakeEngine

CONFIG = ControllerConfig("/none", "memory:never", None)


class Locked(MemoryStore):
    """A store that cannot be read as long as somebody else has it."""

    fails = 3
    closed = 0

    def load(self) -> Saved:
        if Locked.fails:
            Locked.fails -= 1
            raise sqlite3.OperationalError("database is locked")
        return super().load()

    def close(self) -> None:
        Locked.closed += 1


def opened(meanwhile: Callable[[Life, ManualClock], None]) -> Controller | None:
    """The controller that comes of it, while this happens again and again."""

    async def scenario() -> Controller | None:
        clock = ManualClock()
        life = Life(clock, inline=True)
        opening = asyncio.create_task(controllers._opened(CONFIG, FakeEngine(), life))
        for _ in range(1000):
            await asyncio.sleep(0)
            meanwhile(life, clock)
            if opening.done():
                return await opening
        raise AssertionError("it never ended")

    return asyncio.run(scenario())


def test_it_is_tried_again_and_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(controllers, "MemoryStore", Locked)
    controller = opened(lambda life, clock: clock.advance(0.1))
    assert controller is not None and (Locked.fails, Locked.closed) == (0, 3)
    with closing(controller):
        assert caplog.text.count("the state in /none cannot be read: database is locked") == 1
    assert Locked.closed == 4


def test_who_was_told_to_end_waits_for_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(controllers, "_made", fail)
    assert opened(lambda life, clock: life.stopping.set()) is None
