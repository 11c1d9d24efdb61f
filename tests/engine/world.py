"""The state of the world, for the tests of the engines: files, processes, and waiting for them with a limit."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skate.core.specs import ProcessSpec
from skate.engine.process import Launched, launch
from skate.engine.runtime_dir import STANDBY, read_pid

ENTRIES = "tests.engine.entries"
ROOT = str(Path(__file__).resolve().parents[2])
LIMIT_S = 10.0

_numbers = itertools.count()


def until(true: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> None:
    """Looks until it is true."""
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        time.sleep(0.002)


async def until_async(true: Callable[[], Awaitable[Any]], what: str, limit_s: float = LIMIT_S) -> None:
    """The same for coroutine functions."""
    end = time.monotonic() + limit_s
    while not await true():
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        await asyncio.sleep(0.002)


class World:
    """A short-lived folder with marks that entries write."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.runtime_dir = os.path.join(folder, "skate", "default")

    def config(self, **more: Any) -> bytes:
        """A config with a mark of its own."""
        return json.dumps({"mark": os.path.join(self.folder, f"mark{next(_numbers)}"), **more}).encode()

    def mark_of(self, config: bytes) -> str:
        return str(json.loads(config)["mark"])

    def spec(self, entry: str, id: str = "x1", config: bytes | None = None, role: Any = "replica") -> ProcessSpec:
        return ProcessSpec(id, role, f"skate: {role} {id}", f"{ENTRIES}:{entry}", config or self.config())

    def controller(self, entry: str = "obey", config: bytes | None = None) -> ProcessSpec:
        return ProcessSpec(
            "controller", "controller", "skate: controller", f"{ENTRIES}:{entry}", config or self.config()
        )

    @contextmanager
    def launched(self, controller: ProcessSpec, **options: Any) -> Iterator[Launched]:
        options.setdefault("sys_path", [ROOT])
        options.setdefault("modules", [ENTRIES])
        options.setdefault("standby_after_s", 0.0)
        instance = launch(self.runtime_dir, controller, **options)
        try:
            yield instance
        finally:
            instance.close(5.0)


def marked(spec: ProcessSpec, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """What the entry told when it ran."""
    path = Path(json.loads(spec.config)["mark"])
    until(path.exists, f"{spec.title} runs", limit_s)
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return told


def forget_mark(spec: ProcessSpec) -> None:
    Path(json.loads(spec.config)["mark"]).unlink()


def lives(pid: int) -> bool:
    """Does it run? A zombie has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


def supervisors(runtime_dir: str) -> list[int]:
    """The present supervisor and its standby, once there are both."""
    found: list[int] = []

    def both() -> bool:
        found[:] = [pid for pid in (read_pid(runtime_dir), read_pid(runtime_dir, STANDBY)) if pid and lives(pid)]
        return len(set(found)) == 2 and title(found[1]) == "skate: standby"

    until(both, "a supervisor and a standby")
    return found


def kill_at_once(*pids: int) -> None:
    """None of them has time to see another one die. The last one goes first: a dying parent wakes stopped children."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in reversed(pids):
        os.kill(pid, signal.SIGKILL)


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def session_of(pid: int) -> list[int]:
    """All living processes of the session that ``pid`` leads or led."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and lives(int(name)):
            try:
                if os.getsid(int(name)) == pid:
                    found.append(int(name))
            except ProcessLookupError:
                pass
    return found


@contextmanager
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="sk-", dir="/tmp") as folder:
        yield World(folder)
