"""A lane with a chooser: keys stick, nobody is lost, nobody blocks the others, whatever the chooser does."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from skate.core.specs import RequestRouterTarget
from skate.dataplane.router import Router
from skate.dataplane.routing.policies import CallView, Candidate
from skate.routers import RequestRouter
from tests.router.test_router import Noted, Replica, lane_of, play, snapshot, submit, target, until

HERE = __name__


class Strict(RequestRouter):
    """The request id begins with the id of the only replica that will do."""

    def __init__(self, patience_s: float = 1000.0) -> None:
        self.patience_s = patience_s

    def choose(self, call: CallView, candidates: Sequence[Candidate]) -> Candidate | None:
        chosen = next(one for one in candidates if one.id == call.request_id[0])
        return chosen if chosen.has_room else None


class Exits:
    """Would end the process."""

    def __init__(self) -> None:
        raise SystemExit("gone")


class Leaves:
    """Would end the process, later."""

    def choose(self, call: CallView, candidates: Any) -> Any:
        raise SystemExit(3)


class Raises:
    def choose(self, call: Any, candidates: Any) -> Any:
        raise ValueError("no idea")


class Nonsense:
    def choose(self, call: Any, candidates: Any) -> Any:
        return candidates[0]._replace(id="nobody")


class Odd:
    patience_s = 0.0

    def choose(self, call: Any, candidates: Any) -> Any:
        return 42


class Full:
    """Chooses who has no room."""

    patience_s = 0.0

    def choose(self, call: Any, candidates: Any) -> Any:
        return next((one for one in candidates if not one.has_room), candidates[0])


def chosen_by(kind: str, *replicas: Replica, limit: int = 1, **kwargs: Any) -> Any:
    path = kind if ":" in kind else f"{HERE}:{kind}"
    return snapshot(replace(target(*replicas, limit=limit), request_router=RequestRouterTarget(path, kwargs)))


async def two(limit: int = 1) -> tuple[Replica, Replica]:
    return await Replica("a", limit).start(), await Replica("b", limit).start()


async def connected(router: Router) -> None:
    """With all its replicas, and with its chooser."""
    lane = lane_of(router)
    for link in lane.links.values():
        router.connect(link)
    await until(lambda: all(link.peer for link in lane.links.values()) and not lane.loading)


def test_calls_with_one_key_go_to_one_replica() -> None:
    async def scene(router: Router) -> None:
        a, b = await two(100)
        router.apply(chosen_by("skate.routers:ConsistentHash", a, b, limit=100))
        await connected(router)
        for key in "uvwxyz":
            for number in range(5):
                call = Noted(f"{key}{number}")
                call.routing_key = key
                router.submit(call, b"")
        await until(lambda: len(a.seen) + len(b.seen) == 30)
        assert a.seen and b.seen and not {id[0] for id in a.seen} & {id[0] for id in b.seen}
        await a.die()
        await b.die()

    play(scene)


def test_a_call_that_waits_for_its_replica_does_not_hold_back_the_others() -> None:
    async def scene(router: Router) -> None:
        a, b = await two()
        router.apply(chosen_by("Strict", a, b))
        await connected(router)
        submit(router, "a1", "a2", "a3", "b1", "b2")
        await until(lambda: a.held and b.held)
        b.answer()
        await until(lambda: b.seen == ["b1", "b2"])
        assert a.seen == ["a1"] and lane_of(router).queued == 2
        a.answer()
        await until(lambda: a.seen == ["a1", "a2"])
        a.answer()
        await until(lambda: a.seen == ["a1", "a2", "a3"])  # in order among themselves
        await a.die()
        await b.die()

    play(scene)


def test_who_has_waited_long_enough_takes_what_is_free() -> None:
    async def scene(router: Router) -> None:
        a, b = await two()
        router.apply(chosen_by("Strict", a, b, patience_s=0.05))
        await connected(router)
        submit(router, "a1", "a2")
        await until(lambda: b.seen == ["a2"])
        await a.die()
        await b.die()

    play(scene)


def test_a_call_that_is_let_wait_can_be_cancelled_and_counts() -> None:
    async def scene(router: Router) -> None:
        a, b = await two()
        router.apply(chosen_by("Strict", a, b))
        await connected(router)
        first, second = submit(router, "a1", "a2")
        await until(lambda: first.started)
        assert second.queued and router.ledger.report().queued == 1
        second.cancel()
        assert lane_of(router).queued == 0
        await a.die()
        await b.die()

    play(scene)


@pytest.mark.parametrize("kind", ["Raises", "Leaves", "Nonsense", "Odd", "Full"])
def test_a_chooser_that_fails_loses_nothing_and_is_said_once(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(router: Router) -> None:
        a, b = await two(2)
        router.apply(chosen_by(kind, a, b, limit=2))
        await connected(router)
        calls = submit(router, *map(str, range(20)))
        while not all(call.outcome is not None for call in calls):
            await until(lambda: a.held or b.held or all(call.outcome is not None for call in calls))
            for replica in (a, b):
                replica.answer(len(replica.held))
        await a.die()
        await b.die()

    with caplog.at_level(logging.WARNING, "skate.router"):
        play(scene)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (kind != "Full")
    assert all(f"the request router {kind} of app/D" in line for line in said)


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("not_there:Thing", "no module named 'not_there'"),
        (f"{HERE}:Missing", "has no 'Missing'"),
        (f"{HERE}:Exits", "gone"),
        ("json:loads", "missing 1 required positional"),
        ("collections:Counter", "no attribute 'choose'"),
        ("skate.routers:RoundRobin", "unexpected keyword argument"),
    ],
)
def test_a_chooser_that_cannot_be_had_is_said_and_done_without(
    kind: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(router: Router) -> None:
        a, b = await two()
        router.apply(chosen_by(kind, a, b, **({"x": 1} if "Robin" in kind else {})))
        calls = submit(router, "1", "2")
        await until(lambda: a.held and b.held and not lane_of(router).loading)
        assert lane_of(router).policy is None
        a.answer()
        b.answer()
        for call in calls:
            await call.ended.wait()
        await a.die()
        await b.die()

    with caplog.at_level(logging.WARNING, "skate.router"):
        play(scene)
    (line,) = [record.getMessage() for record in caplog.records]
    assert cause.lower() in line.lower() and "two random choices" in line


def test_a_users_module_is_found_on_the_applications_path_and_nothing_stays_on_ours(tmp_path: Path) -> None:
    (tmp_path / "skate_test_chooser.py").write_text(
        "class Last:\n    def choose(self, call, among):\n        return max(one for one in among if one.has_room)\n"
    )
    before = list(sys.path)

    async def scene(router: Router) -> None:
        a, b = await two(5)
        wanted = RequestRouterTarget("skate_test_chooser:Last", {}, (str(tmp_path),), str(tmp_path))
        router.apply(snapshot(replace(target(a, b, limit=5), request_router=wanted)))
        await connected(router)
        submit(router, "1", "2", "3")
        await until(lambda: b.seen == ["1", "2", "3"])
        await a.die()
        await b.die()

    play(scene)
    assert sys.path == before


def test_another_snapshot_brings_another_chooser() -> None:
    async def scene(router: Router) -> None:
        a, b = await two()
        router.apply(chosen_by("Strict", a, b))
        await connected(router)
        submit(router, "a1", "a2")
        await until(lambda: lane_of(router).queued == 1)
        policy = lane_of(router).policy
        router.apply(chosen_by("Strict", a, b))  # nothing new: the same one goes on
        assert lane_of(router).policy is policy
        router.apply(snapshot(target(a, b, limit=1)))
        assert lane_of(router).policy is None
        await until(lambda: b.seen == ["a2"])
        await a.die()
        await b.die()

    play(scene)
