"""Questions outlive the controller that heard them, and wishes are asked once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from skate.controlplane import instance as instances
from skate.controlplane.instance import Instance
from skate.core.clock import ManualClock
from skate.core.errors import NotFoundError, NotRunningError, RequestCancelledError, SkateError

LOST = RequestCancelledError("the connection to controller was lost during 'status'")


class Line(Instance):
    """An instance whose controllers answer so, one after the other."""

    def __init__(self, *answers: str | SkateError) -> None:
        super().__init__("memory:none", None, "none")
        self._clock = ManualClock()  # type: ignore[assignment]
        self.answers = list(answers)
        self.asked = 0

    async def client(self) -> Any:
        return self

    async def said(self) -> str:
        self.asked += 1
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, SkateError):
            raise answer
        return answer

    def of(self, ask: Callable[..., Awaitable[str]]) -> str:
        """What comes of asking, while time passes."""

        async def scenario() -> str:
            answer = asyncio.ensure_future(ask(lambda line: line.said()))
            while not answer.done():
                await asyncio.sleep(0)
                self._clock.advance(1.0)  # type: ignore[attr-defined]
            return await answer

        return asyncio.run(scenario())


@pytest.fixture(autouse=True)
def running(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the instance of these tests runs."""
    runs = [True]
    monkeypatch.setattr(instances, "_gone", lambda instance: not runs[0])
    return runs


def test_a_question_is_asked_again_and_other_errors_are_answers() -> None:
    line = Line(LOST, NotRunningError("the controller is ending"), "yes")
    assert line.of(line.read) == "yes" and line.asked == 3
    line = Line(NotFoundError("no such application"))
    with pytest.raises(NotFoundError):
        line.of(line.read)
    assert line.asked == 1


def test_asking_again_ends() -> None:
    line = Line(LOST)
    with pytest.raises(NotRunningError, match="did not answer within 30 s: the connection"):
        line.of(line.read)
    assert line.asked > 10


def test_nobody_asks_an_instance_that_has_ended(running: list[bool]) -> None:
    running[0] = False
    line = Line(LOST)
    with pytest.raises(NotRunningError, match="ended before it answered"):
        line.of(line.read)
    assert line.asked == 1


def test_a_wish_is_asked_once_and_what_is_unknown_is_said() -> None:
    line = Line(LOST, "yes")
    with pytest.raises(NotRunningError, match="unknown whether it has stored what was asked"):
        line.of(line.wish)
    assert line.asked == 1
