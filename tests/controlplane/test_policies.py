"""Users' policies are asked on threads, and whatever they do is only an answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from skate.controlplane import policies
from skate.controlplane.decide.policy import Answer, AutoscalingContext
from skate.controlplane.policies import Place, Policies
from skate.core.clock import SystemClock
from skate.core.scaling import AutoscalingConfig, AutoscalingPolicy
from tests.controlplane import policies_of_users as users

LIMIT_S = 10.0
HERE = "tests.controlplane.policies_of_users"


class World:
    """Policies under test, and a way to wait for the next answer."""

    def __init__(self, **limits: float) -> None:
        self.news: asyncio.Queue[str] = asyncio.Queue()
        self.policies = Policies(SystemClock(), self.news.put_nowait, **limits)

    def ask(self, name: str, memory: Any = None, place: Place = Place(), key: str = "app/D", **kwargs: Any) -> None:  # noqa: B008
        path = name if ":" in name else f"{HERE}:{name}"
        policy = AutoscalingPolicy(path, kwargs)
        context = AutoscalingContext("app", "D", 2, 2, 8.0, 2.0, 6.0, 0.0, 1, 9, 0.0, AutoscalingConfig(policy=policy))
        self.policies.ask(key, context, memory, place)

    async def next(self) -> Answer:
        return self.policies.answers[await self.news.get()]

    async def asked(self, name: str, memory: Any = None, **more: Any) -> Answer:
        self.ask(name, memory, **more)
        return await self.next()


def play(scene: Callable[[World], Awaitable[None]], **limits: float) -> None:
    async def main() -> None:
        world = World(**limits)
        async with asyncio.timeout(LIMIT_S):
            await scene(world)
        world.policies.close()

    asyncio.run(main())


def test_a_function_is_asked_with_its_memory_and_its_arguments() -> None:
    async def scene(world: World) -> None:
        first = await world.asked("counting")
        assert (first.number, first.memory, first.error) == (4.0, {"calls": 1}, "")
        assert (await world.asked("counting", first.memory)).memory == {"calls": 2}
        assert (await world.asked("scaled_by", share=0.25)).number == 2.0

    play(scene)


def test_a_class_is_made_once_and_anew_after_a_deploy() -> None:
    async def scene(world: World) -> None:
        assert [(await world.asked("Remembering", start=5)).number for _ in range(3)] == [6, 7, 8]
        assert (await world.asked("Remembering", start=5, place=Place(revision=1))).number == 6
        assert (await world.asked("Remembering", start=0, place=Place(revision=1))).number == 1

    play(scene)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raising", "KeyError: 'no such metric'"),
        ("leaving", "SystemExit: 3"),
        ("number_alone", "it returned int, and not a pair"),
        ("not_a_number", "'nan' replicas, which is no finite number"),
        ("yes", "'True' replicas"),
        ("strange_memory", "its memory is not plain data"),
        ("large_memory", "65536 is the limit"),
        ("missing", "has no 'missing'"),
        ("no.such.module:policy", "does not import"),
        ("of_one", "a policy is called with (context, memory)"),
        ("waiting", "it is async"),
        ("scaled_by", "share"),
    ],
)
def test_what_goes_wrong_is_an_answer(name: str, said: str) -> None:
    async def scene(world: World) -> None:
        answer = await world.asked(name)
        assert said in answer.error and answer.policy.policy_function.rpartition(":")[2] in answer.error
        assert (await world.asked("counting", key="app/E")).error == ""

    play(scene)


def test_who_hangs_is_told_once_and_asked_again_when_it_has_returned() -> None:
    async def scene(world: World) -> None:
        users.release.clear()
        try:
            late = await world.asked("hanging")
            assert "did not answer within 0.05 s" in late.error
            still = await world.asked("hanging")
            assert "still has not returned" in still.error
        finally:
            users.release.set()
        while (answer := await world.asked("hanging")).error:
            await asyncio.sleep(0)
        assert answer.number == 3

    play(scene, answer_s=0.05, load_s=0.05)


def test_a_question_that_is_under_way_is_not_asked_twice_and_a_forgotten_one_is_not_heard() -> None:
    async def scene(world: World) -> None:
        users.release.clear()
        try:
            world.ask("hanging")
            world.ask("hanging")
            assert world.policies._threads == 1
            assert (await world.asked("counting", key="app/E")).number == 4  # others are asked meanwhile
            world.policies.forget("app/D")
        finally:
            users.release.set()
        while world.policies._threads:
            await asyncio.sleep(0)
        assert world.news.empty() and list(world.policies.answers) == ["app/E"]

    play(scene)


def test_a_file_that_changed_is_read_again_by_the_next_deploy(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        file, place = tmp_path / "own_policy_of_a_test.py", Place((str(tmp_path),))
        file.write_text("def policy(context, memory): return 1, None\n")
        assert (await world.asked("own_policy_of_a_test:policy", place=place)).number == 1
        file.write_text("def policy(context, memory): return 1 + 1, None\n")
        assert (await world.asked("own_policy_of_a_test:policy", place=place)).number == 1
        assert (await world.asked("own_policy_of_a_test:policy", place=Place((str(tmp_path),), None, 2))).number == 2

    play(scene)


def test_applications_in_two_folders_have_each_its_own_modules_of_one_name(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        places = [Place((str(tmp_path / folder),)) for folder in ("one", "two")]
        for number, place in enumerate(places):
            Path(place.sys_path[0]).mkdir()
            Path(place.sys_path[0], "helpers_of_a_test.py").write_text(f"NUMBER = {number}\n")
            text = "import helpers_of_a_test as it\ndef policy(context, memory): return it.NUMBER, None\n"
            for name in ("same_of_a_test.py", f"another{number}_of_a_test.py"):
                Path(place.sys_path[0], name).write_text(text)
        for number, place in enumerate(places):
            for name in ("same_of_a_test", f"another{number}_of_a_test"):
                answer = await world.asked(f"{name}:policy", place=place, key=f"{name}/{number}")
                assert (answer.error, answer.number) == ("", number)

    play(scene)


def test_modules_that_were_there_before_are_left_alone(tmp_path: Path) -> None:
    """Inline the process is others', too: what they imported stays the very module that it is."""
    ours = sys.modules[__name__]
    text = "def policy(context, memory):\n    return 1, None\n"
    for folders in (("one", str(Path(__file__).parents[2])), ("two",)):
        folder = tmp_path / folders[0]
        folder.mkdir()
        (folder / "policy_of_two_folders.py").write_text(text)
        policies._load(AutoscalingPolicy("policy_of_two_folders:policy"), Place((str(folder), *folders[1:])))
    assert sys.modules[__name__] is ours
