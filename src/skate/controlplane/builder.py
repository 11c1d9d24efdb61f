"""The builder: a process that imports one application as its file wants it, tells the controller, and ends.

Law: the controller imports no user code, so this process does; it serves nothing and its answer is one ``BuildResult``.
User code runs in a thread, so that it may block, use an event loop of its own, and be left behind when the process is
asked to stop. Whatever ends the process before its answer (a crash, ``os._exit``) the engine sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading

import msgspec

from skate.authoring.overrides import build_app
from skate.authoring.sources import renew
from skate.authoring.traces import told
from skate.core.config import BuildRequest, BuildResult
from skate.core.errors import SkateError
from skate.dataplane.transport.peers import connect
from skate.engine.base import Life

TELL_S = 30.0  # for the controller to be there and take the answer; a new one has forgotten who asked
TELL_AGAIN_S = 0.1

logger = logging.getLogger("skate.builder")


def built(request: BuildRequest, inline: bool = False) -> BuildResult:
    """The application, or what is wrong with it; never raises. ``inline``: the process belongs to others, too."""
    try:
        if not inline:
            renew()
        spec = build_app(request.app, request.sys_path, request.cwd, request.logging_config, settle=not inline)
        return BuildResult(request.id, spec)
    except BaseException as error:  # SystemExit, too
        return BuildResult(request.id, error=told(error))


async def run(config: bytes, life: Life) -> None:
    """Entry of a builder; ``config`` is a BuildRequest."""
    request = msgspec.msgpack.decode(config, type=BuildRequest)
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[BuildResult] = loop.create_future()

    def take(result: BuildResult) -> None:
        if not answer.done():
            answer.set_result(result)

    def work() -> None:
        result = built(request, life.inline)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(take, result)

    threading.Thread(target=work, name=f"build {request.app.name}", daemon=True).start()
    stopping = loop.create_task(life.stopping.wait())
    try:
        await asyncio.wait((answer, stopping), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            await _tell(request.controller, answer.result(), life)
    finally:
        stopping.cancel()
        answer.cancel()


async def _tell(controller: str, result: BuildResult, life: Life) -> None:
    """Tells the controller, also one that is just being started again."""
    body = msgspec.msgpack.encode(result)
    until = life.clock.now() + TELL_S
    while not life.stopping.is_set():
        try:
            peer = await connect(controller, f"builder {result.id}")
            try:
                await peer.ask("built", body)
                return
            finally:
                peer.close()
        except SkateError as error:
            if life.clock.now() > until:
                logger.warning("the controller did not take the result of %s: %s", result.id, error)
                return
        await life.clock.sleep(TELL_AGAIN_S)
