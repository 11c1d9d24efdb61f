"""The builder: one answer, whatever the user's code does; and where there can be none, a dead process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from skate.controlplane.builder import built, run
from skate.core.clock import ManualClock, SystemClock
from skate.core.config import AppConfig, BuildRequest, BuildResult
from skate.core.specs import ProcessSpec
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.peers import listen
from skate.engine.base import EngineError, Life, ProcessSeen, StartProcess, StopProcess
from skate.engine.process import ProcessEngine
from tests.cli.world import HELLO
from tests.engine.world import LIMIT_S, World, until_async, world

ENTRY = "skate.controlplane.builder:run"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


class Desk:
    """What stands in for the controller: it takes results."""

    def __init__(self) -> None:
        self.results: dict[str, BuildResult] = {}
        self.news = asyncio.Event()

    def accept(self, exchange: Exchange) -> None:
        assert exchange.head.method == "built"
        result = msgspec.msgpack.decode(exchange.body, type=BuildResult)
        self.results[result.id] = result
        self.news.set()
        exchange.reply(b"")

    async def result(self, id: str) -> BuildResult:
        async with asyncio.timeout(LIMIT_S):
            while id not in self.results:
                self.news.clear()
                await self.news.wait()
        return self.results.pop(id)


@asynccontextmanager
async def desk(address: str) -> AsyncIterator[Desk]:
    made = Desk()
    listener = await listen(address, made.accept, "controller")
    try:
        yield made
    finally:
        await listener.close()


def request(folder: Path, module: str, controller: str = "", text: str = "", id: str = "b1") -> BuildRequest:
    (folder / f"{module}.py").write_text(text)
    return BuildRequest(id, controller, AppConfig("one", f"{module}:app"), sys_path=(str(folder),), cwd=str(folder))


# -- what it says ------------------------------------------------------------------------------------


def test_an_application(folder: Path) -> None:
    result = built(request(folder, "build_good", text=HELLO))
    assert result.error == "" and result.id == "b1"
    assert result.spec is not None and result.spec.name == "one" and result.spec.cwd == str(folder)


@pytest.mark.parametrize(
    ("text", "first", "more"),
    [
        (
            "def f():\n    return 1 / 0\nf()\n",
            "module 'build_bad' does not import: ZeroDivisionError: division by zero (build_bad.py:2: return 1 / 0)",
            ['  File "build_bad.py", line 3, in <module>', "    return 1 / 0", "ZeroDivisionError: division by zero"],
        ),
        ("def f(:", "module 'build_bad' does not import: SyntaxError: invalid syntax (build_bad.py:1: def f(:)", []),
        ("raise SystemExit(3)", "module 'build_bad' does not import: it ended the program with exit code 3", []),
        ("app = 3", "build_bad:app is 3 of type int, no application", []),
        ("", "module 'build_bad' has no 'app'", []),
        ("def app(a): raise SystemExit(4)", "the builder build_bad:app raised SystemExit: 4 (build_bad.py:1", []),
    ],
)
def test_what_is_wrong_in_one_line_and_the_users_lines_after_it(
    folder: Path, text: str, first: str, more: list[str]
) -> None:
    result = built(request(folder, "build_bad", text=text))
    assert result.spec is None
    line, *trace = result.error.splitlines()
    assert line.startswith(first)
    assert all(one in trace for one in more)
    assert "skate/authoring" not in result.error and "importlib" not in result.error


# -- how it says it ------------------------------------------------------------------------------------


def test_user_code_may_run_a_loop_of_its_own(folder: Path) -> None:
    text = HELLO + "import asyncio\nasyncio.run(asyncio.sleep(0))\n"

    async def scenario() -> None:
        async with desk("memory:builder-desk") as controller:
            asked = request(folder, "build_loop", "memory:builder-desk", text)
            await run(msgspec.msgpack.encode(asked), Life(SystemClock(), inline=True))
            assert (await controller.result("b1")).error == ""

    asyncio.run(scenario())


def test_a_controller_that_is_away_gets_the_answer_when_it_is_back(folder: Path) -> None:
    async def scenario() -> None:
        clock = Watched()
        asked = request(folder, "build_away", "memory:builder-away", HELLO)
        task = asyncio.create_task(run(msgspec.msgpack.encode(asked), Life(clock, inline=True)))
        async with asyncio.timeout(LIMIT_S):
            await clock.slept.wait()
        async with desk("memory:builder-away") as controller:
            while not task.done():
                clock.advance(0.1)
                await asyncio.sleep(0)
            assert (await controller.result("b1")).spec is not None
        await task

    asyncio.run(scenario())


class Watched(ManualClock):
    """Says when somebody sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.slept = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.slept.set()
        await super().sleep(seconds)


@pytest.mark.e2e
def test_in_processes_that_end_with_their_answer_or_without_one(folder: Path) -> None:
    async def scenario(here: World) -> None:
        address = f"unix:{here.folder}/desk.sock"
        texts = {
            "built_well": HELLO + "import os\nopen('stood_here', 'w').close()\n",
            "built_exit": "import os; os._exit(3)",
            "built_slow": "import threading; threading.Event().wait()",
        }
        with here.launched(here.controller()) as instance:
            engine = ProcessEngine(instance.engine_address, SystemClock())
            await until_async(lambda: listens(engine), "the supervisor listens")
            async with desk(address) as controller:
                for name, text in texts.items():
                    config = msgspec.msgpack.encode(request(folder, name, address, text, name))
                    await engine.perform(StartProcess(ProcessSpec(name, "builder", f"skate: {name}", ENTRY, config)))
                result = await controller.result("built_well")
                assert result.error == "" and result.spec is not None
                assert os.path.exists(folder / "stood_here")
                assert await ended(engine, "built_well") == 0
                assert await ended(engine, "built_exit") == 3
                await engine.perform(StopProcess("built_slow", 5.0))
                assert await ended(engine, "built_slow") == 0
                assert not controller.results
            await engine.close()

    with world() as here:
        asyncio.run(asyncio.wait_for(scenario(here), 3 * LIMIT_S))


async def listens(engine: ProcessEngine) -> bool:
    try:
        await engine.observe()
    except EngineError:
        return False
    return True


async def ended(engine: ProcessEngine, id: str) -> int | None:
    found: list[ProcessSeen] = []

    async def look() -> bool:
        found[:] = [one for one in await engine.observe() if one.id == id and not one.alive]
        return bool(found)

    await until_async(look, f"{id} has ended")
    return found[0].exit_code
