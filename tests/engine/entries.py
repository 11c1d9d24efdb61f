"""What the tests let the engines run. An entry's config is JSON; ``mark`` is a file that says that it runs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

from skate.core.specs import ProcessSpec
from skate.engine.base import Life, StartProcess
from skate.engine.process import ProcessEngine

tasks: list[asyncio.Task[None]] = []


def mark(config: bytes, **more: Any) -> dict[str, Any]:
    """Writes the mark as a whole and gives the config."""
    given: dict[str, Any] = json.loads(config or b"{}")
    if path := given.get("mark"):
        with open(path + ".part", "w", encoding="utf-8") as file:
            json.dump({"pid": os.getpid(), "at": time.monotonic(), **more}, file)
        os.rename(path + ".part", path)
    return given


async def obey(config: bytes, life: Life) -> None:
    mark(config, inline=life.inline, engine_address=life.engine_address)
    await life.stopping.wait()


async def ignore(config: bytes, life: Life) -> None:
    mark(config)
    await asyncio.Event().wait()


async def block(config: bytes, life: Life) -> None:
    mark(config)
    while True:
        time.sleep(3600)


async def crash(config: bytes, life: Life) -> None:
    mark(config)
    raise ValueError("the model file is broken")


async def leave(config: bytes, life: Life) -> None:
    """Ends with the exit code 7."""
    mark(config)
    sys.exit(7)


async def done(config: bytes, life: Life) -> None:
    mark(config)


async def leave_work(config: bytes, life: Life) -> None:
    """Returns while a task and a thread of its own go on; the task is told."""

    async def linger() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            mark(config)

    tasks.append(asyncio.create_task(linger()))
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)
    await asyncio.sleep(0)


async def tell_descriptors(config: bytes, life: Life) -> None:
    """What this process has open, and which signals it does not hear."""
    names = []
    for name in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            pass  # the descriptor of the listing itself
    mark(config, descriptors=names, blocked=sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    await life.stopping.wait()


async def start_others(config: bytes, life: Life) -> None:
    """A replica whose user code starts a program and forks."""
    program = subprocess.Popen(["sleep", "1000"])
    forked = os.fork()
    if forked == 0:
        while True:
            time.sleep(1000)
    mark(config, others=[program.pid, forked])
    await life.stopping.wait()


async def control(config: bytes, life: Life) -> None:
    """A controller: starts what its config names, unless it is there already."""
    engine = ProcessEngine(life.engine_address, life.clock)
    given = json.loads(config)
    known = {one.id for one in await engine.observe()}
    for id, entry in given.get("start", {}).items():
        if id not in known:
            own = given["configs"][id].encode()
            spec = ProcessSpec(id, "replica", f"skate: replica {id}", f"{__name__}:{entry}", own)
            await engine.perform(StartProcess(spec))
    mark(config, known=sorted(known))
    if given.get("then") == "return":
        return
    await life.stopping.wait()
    await engine.close()


async def stubborn(config: bytes, life: Life) -> None:
    """Survives its first cancellation."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()
