from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import pytest

from skate.core.clock import SystemClock
from skate.core.options import DeploymentOptions
from skate.core.specs import LoopBlocking
from skate.dataplane.replica import watchdog
from skate.dataplane.replica.doorbell import Doorbell
from skate.dataplane.replica.watchdog import Terms, Watchdog
from tests.replica.line import until

BOUND_S = 0.05


class Calls:
    def __init__(self) -> None:
        self.ongoing = 0


class Heard:
    """The controller: what it was told, from whichever thread."""

    def __init__(self) -> None:
        self.strikes: list[int] = []
        self.errors: list[str] = []
        self.deaf = False
        self.tries = 0

    def __call__(self, strikes: int, error: str) -> bool:
        self.tries += 1
        if self.deaf:
            return False
        self.strikes.append(strikes)
        self.errors.append(error)
        return True


@contextmanager
def watching(
    calls: Calls, terms: Terms, heard: Heard | None = None, told: list[tuple[LoopBlocking, ...]] | None = None
) -> Iterator[Watchdog]:
    tell = (lambda counts: None) if told is None else told.append
    dog = Watchdog("replica a/D#1", terms, SystemClock(), calls, tell, heard or Heard())
    dog.start()
    try:
        yield dog
    finally:
        dog.stop()
    assert not dog._thread.is_alive()


def sleeps(dog: Watchdog) -> bool:
    """It waits until bytes come."""
    return dog._emptied and dog._watch.pinged_at is None and not dog._curious


def block_until(condition: threading.Event) -> None:
    assert condition.wait(10)


def blocking_code(seconds: float) -> None:
    time.sleep(seconds)


def test_it_sleeps_when_nothing_comes_and_bytes_wake_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchdog, "IDLE_S", 0.02)
    monkeypatch.setattr(watchdog, "TELL_S", 0.01)
    monkeypatch.setattr(logging.getLogger("skate"), "propagate", True)
    told: list[tuple[LoopBlocking, ...]] = []
    calls = Calls()
    ours, theirs = socket.socketpair()

    async def main() -> None:
        with watching(calls, Terms(BOUND_S, inf), told=told) as dog:
            dog.hear(ours.fileno())
            for round in range(1, 3):
                await until(lambda: sleeps(dog))
                calls.ongoing = 1
                theirs.send(b"call")
                await asyncio.sleep(BOUND_S)  # it asks
                blocking_code(0.3)
                await until(lambda round=round: told and told[-1][0].episodes == round)  # type: ignore[misc]
                assert dog.silent_s() < 0.3
                calls.ongoing = 0
            await until(lambda: sleeps(dog))

    with ours, theirs:
        asyncio.run(main())
    assert [one.place.partition(" ")[0] for one in told[-1]] == ["blocking_code"]
    assert sum("replica a/D#1: the event loop is blocked" in line for line in caplog.messages) == 1


def test_stop_ends_one_that_looks_and_a_silent_loop_is_known() -> None:
    calls = Calls()
    calls.ongoing = 1
    seen: list[float] = []

    async def main() -> None:
        with watching(calls, Terms(BOUND_S, inf)) as dog:
            await asyncio.sleep(0)  # its thread begins
            end = time.monotonic() + 5
            while not seen and time.monotonic() < end:  # the loop does not turn meanwhile
                if dog.silent_s() > 0.01:
                    seen.append(dog.silent_s())

    asyncio.run(main())
    assert seen


def test_a_blocked_loop_is_told_while_it_is_blocked_and_again_when_it_turns() -> None:
    calls, heard = Calls(), Heard()
    calls.ongoing = 1
    three = threading.Event()

    def cry(strikes: int, error: str) -> bool:
        if strikes == 3:
            three.set()
        return heard(strikes, error)

    async def main() -> None:
        dog = Watchdog("r", Terms(inf, 0.05), SystemClock(), calls, lambda counts: None, cry)
        dog.start()
        await asyncio.sleep(0)
        block_until(three)
        await until(lambda: heard.strikes[-1] == 0)
        dog.stop()

    asyncio.run(main())
    rising = heard.strikes[:-1]
    assert rising == sorted(set(rising)) and 3 in rising
    assert all("block_until" in error and "test_watchdog.py:" in error for error in heard.errors[:-1])
    assert heard.errors[-1] == ""


def test_a_replica_without_calls_is_found_blocked_by_who_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "IDLE_S", 0.02)
    heard = Heard()
    struck = threading.Event()
    ours, theirs = socket.socketpair()

    def cry(strikes: int, error: str) -> bool:
        struck.set()
        return heard(strikes, error)

    async def main() -> None:
        dog = Watchdog("r", Terms(inf, 0.05), SystemClock(), Calls(), lambda counts: None, cry)
        dog.start()
        dog.hear(ours.fileno())
        await until(lambda: sleeps(dog))
        looks = dog._silence._looked_at
        blocking_code(0.2)  # nobody wants anything: that harms nobody, and nothing ticks
        assert dog._silence._looked_at == looks and not heard.tries
        theirs.send(b"call")
        block_until(struck)
        dog.stop()

    with ours, theirs:
        asyncio.run(main())
    assert heard.strikes[0] == 1


def test_where_checks_of_health_tick_it_looks_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "IDLE_S", 0.02)
    heard = Heard()
    struck = threading.Event()

    def cry(strikes: int, error: str) -> bool:
        struck.set()
        return heard(strikes, error)

    async def main() -> None:
        terms = Terms.of(DeploymentOptions(health_check_period_s=0.1, health_check_timeout_s=0.05), True)
        dog = Watchdog("r", terms, SystemClock(), Calls(), lambda counts: None, cry)
        dog.start()
        await until(lambda: sleeps(dog))
        block_until(struck)
        dog.stop()

    asyncio.run(main())
    assert heard.strikes


def test_who_is_not_heard_tries_again_and_says_nothing_that_is_no_longer_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "CRY_AGAIN_S", 0.01)
    calls, heard = Calls(), Heard()
    calls.ongoing = 1
    heard.deaf = True

    async def main() -> None:
        with watching(calls, Terms(inf, 0.03), heard) as dog:
            await asyncio.sleep(0)
            end = time.monotonic() + 10
            while heard.tries < 3 and time.monotonic() < end:
                blocking_code(0.01)
            assert heard.tries >= 3
            await until(lambda: dog._silence.seconds == 0)
            heard.deaf = False
            looked = dog._silence._looked_at
            await until(lambda: dog._silence._looked_at != looked)
            await until(lambda: heard.strikes in ([], [0]))

    asyncio.run(main())
    assert heard.strikes == []


def test_other_terms_hold_at_once() -> None:
    calls, heard = Calls(), Heard()
    calls.ongoing = 1
    struck = threading.Event()

    def cry(strikes: int, error: str) -> bool:
        struck.set()
        return heard(strikes, error)

    async def main() -> None:
        dog = Watchdog("r", Terms(inf, 3600.0), SystemClock(), calls, lambda counts: None, cry)
        dog.start()
        await asyncio.sleep(0)
        dog.take_up(Terms(inf, 0.05))
        block_until(struck)
        dog.stop()

    asyncio.run(main())


def test_terms_of_options() -> None:
    options = DeploymentOptions(loop_block_warning_s=None, health_check_timeout_s=3, health_check_period_s=7)
    assert Terms.of(options, False) == (inf, 3, None)
    assert Terms.of(options, True) == (inf, 3, 7)
    assert Terms.of(DeploymentOptions(), False) == (0.25, 30, None)


# -- the doorbell ---------------------------------------------------------------------------------


def test_the_doorbell_forgets_what_came_before_and_keeps_what_comes_after() -> None:
    bell = Doorbell()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        bell.hear(ours.fileno())
        assert not bell.wait(0)
        theirs.send(b"1")
        bell.empty()
        assert not bell.wait(0)  # though it was not read
        theirs.send(b"2")
        assert bell.wait(5) and not bell.wait(0)
        bell.ring()
        assert bell.wait(5) and not bell.wait(0)
    bell.hear(ours.fileno())  # closed: no error
    bell.close()


def test_without_epoll_it_is_blind_and_still_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("select.epoll")
    bell = Doorbell()
    reader, writer = os.pipe()
    bell.hear(reader)
    os.write(writer, b"x")
    assert not bell.wait(0)
    bell.ring()
    assert not bell.wait(60)  # ends at once
    bell.close()
    os.close(reader)
    os.close(writer)
