from __future__ import annotations

import sys
from typing import Any

from skate.dataplane.replica.blocking import (
    AGAIN_S,
    ELSEWHERE,
    PLACES_MAX,
    Began,
    Blockings,
    Ended,
    LoopWatch,
    Sample,
)
from skate.dataplane.replica.stacks import NOBODY, PACKAGE, SKATE, USER, owner_of, sample_of

BOUND_S = 0.4
STEP = object()


class Story:
    """Ten looks a second at a loop that answers what it is asked unless something runs on it."""

    def __init__(self) -> None:
        self.watch = LoopWatch(BOUND_S)
        self.now = 0.0
        self.answered_at: float | None = None
        self.samples = 0
        self.events: list[Began | Ended] = []

    def look(self, step: object = None, busy: bool = True, place: str = "f (a.py:1)") -> None:
        """One look; ``step`` is what runs on the loop all the time since the last one (None: it is free)."""

        def sample() -> Sample | None:
            self.samples += 1
            return None if step == "nothing" else Sample(step, place)

        self.now = round(self.now + 0.1, 3)
        asked = self.watch.pinged_at
        if asked is not None and self.answered_at is None and step is None:
            self.answered_at = self.now
        event = self.watch.look(self.now, busy, self.answered_at, sample)
        if event is not None:
            self.events.append(event)
        if self.watch.pinged_at == self.now:
            self.answered_at = None


def test_one_step_that_fills_the_bound_is_blamed_once_and_measured() -> None:
    story = Story()
    story.look()
    for _ in range(10):
        story.look(STEP)
    story.look()
    began, ended = story.events
    assert isinstance(began, Began) and began.sample.step is STEP and round(began.seconds, 3) == BOUND_S
    assert isinstance(ended, Ended) and round(ended.seconds, 3) == 1.1
    story.look()
    assert len(story.events) == 2


def test_short_blocks_and_many_short_steps_are_nobodys_fault() -> None:
    story = Story()
    story.look()
    for _ in range(3):
        for _ in range(3):
            story.look(STEP)
        story.look()
    for _ in range(20):
        story.look(object())
    assert story.events == []


def test_a_machine_that_gave_no_time_is_nobodys_fault() -> None:
    story = Story()
    story.look()
    for _ in range(20):
        story.look("nothing")
    assert story.events == []


def test_a_loop_that_answers_is_never_looked_into_and_an_idle_one_is_not_asked() -> None:
    story = Story()
    for _ in range(20):
        story.look()
    story.look(busy=False)
    assert story.watch.pinged_at is None
    for _ in range(20):
        story.look(STEP, busy=False)
    assert story.samples == 0 and story.events == []


def began(place: str, seconds: float = 0.3) -> Began:
    return Began(Sample(STEP, place), seconds)


def ended(place: str, seconds: float = 1.0) -> Ended:
    return Ended(Sample(STEP, place), seconds)


def test_two_lines_for_an_episode_and_none_for_its_repetitions_within_a_minute() -> None:
    counts = Blockings()
    first = counts.note(began("f (a.py:1)"), 100.0)
    assert first is not None and "f (a.py:1)" in first and "0.30 s" in first and "asyncio.to_thread" in first
    assert "1.00 s" in (counts.note(ended("f (a.py:1)"), 101.0) or "")
    for n in range(5):
        assert counts.note(began("f (a.py:1)"), 102.0 + n) is None
        assert counts.note(ended("f (a.py:1)", 2.0), 103.0 + n) is None
    assert counts.note(began("g (a.py:9)"), 104.0) is not None  # another place is not held back
    again = counts.note(began("f (a.py:1)"), 100.0 + AGAIN_S)
    assert again is not None and "5 times before, 10.00 s" in again
    assert [(one.place, one.episodes, one.seconds) for one in counts.counts()] == [("f (a.py:1)", 6, 11.0)]


def test_places_are_bounded() -> None:
    counts = Blockings()
    for n in range(PLACES_MAX + 10):
        counts.note(began(f"f{n}"), 0.0)
        counts.note(ended(f"f{n}"), 1.0)
    found = counts.counts()
    assert len(found) == PLACES_MAX + 1
    assert (found[0].place, found[0].episodes, found[0].seconds) == (ELSEWHERE, 10, 10.0)


def test_the_innermost_function_of_the_user_is_named_and_the_outermost_is_the_step() -> None:
    frames: list[Any] = []

    def inner() -> Sample | None:
        frames.append(sys._getframe())
        return sample_of(sys._getframe())

    def outer() -> Sample | None:
        frames.append(sys._getframe())
        return inner()

    found = outer()
    assert found is not None and "inner (" in found.place and f"{__file__.rpartition('/')[2]}:" in found.place
    assert found.inside == "" and found.step not in frames  # the test itself stands further out
    base = frozenset({sys._getframe()})

    def above() -> Sample | None:
        frames.append(sys._getframe())
        return sample_of(sys._getframe(), base)

    found = above()
    assert found is not None and found.step is frames[-1]
    assert sample_of(sys._getframe(), base) is None


def test_whose_code_a_file_holds() -> None:
    import asyncio.base_events as standard

    import starlette.routing as package

    import skate.dataplane.replica.invoke as call
    import skate.engine.child as loop

    assert owner_of(__file__) == USER and owner_of("<stdin>") == USER
    assert owner_of(package.__file__) == PACKAGE
    assert owner_of(call.__file__) == SKATE
    assert owner_of(loop.__file__) == owner_of(standard.__file__) == owner_of("<frozen importlib._bootstrap>") == NOBODY
