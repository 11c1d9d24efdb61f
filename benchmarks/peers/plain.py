"""Plain handlers on Ray Serve and Skate. The same source for both, and no import that a plain handler does not need.

Each function below the handlers is one application of the work: bound deployments by their route prefix.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from benchmarks.peers.program import CHUNK, CHUNKS, HELLO, PIECE, PIECES, REPLICAS, SLEEP_S

Apps = dict[str | None, Any]  # bound applications by route prefix; None: one without HTTP
Deployment = Callable[..., Any]  # (cls, **options): a deployment with the options of the run


class Hello:
    async def __call__(self, request: Request) -> str:
        return HELLO


class Json:
    async def __call__(self, request: Request) -> JSONResponse:
        return JSONResponse(await request.json())


class Length:
    async def __call__(self, request: Request) -> str:
        return str(len(await request.body()))


class Sleep:
    def __call__(self, request: Request) -> str:
        time.sleep(SLEEP_S)
        return HELLO


class AsyncSleep:
    async def __call__(self, request: Request) -> str:
        await asyncio.sleep(SLEEP_S)
        return HELLO


class Stream:
    async def __call__(self, request: Request) -> StreamingResponse:
        return StreamingResponse(self.chunks(), media_type="text/plain")

    async def chunks(self) -> AsyncIterator[bytes]:
        for _ in range(CHUNKS):
            yield CHUNK


class Order:
    """Says when it began."""

    def __call__(self, request: Request) -> str:
        began = time.monotonic()
        time.sleep(SLEEP_S)
        return repr(began)


class Uneven:
    """One of the replicas that share a folder is slow: the first to be there."""

    def __init__(self, folder: str, slow: bool | None) -> None:
        if slow is None:
            try:
                os.close(os.open(Path(folder) / "slow", os.O_CREAT | os.O_EXCL))
                slow = True
            except FileExistsError:
                slow = False
        self.sleep_s = SLEEP_S * 10 if slow else SLEEP_S

    async def __call__(self, request: Request) -> str:
        await asyncio.sleep(self.sleep_s)
        return HELLO


class Big:
    """A long body, made piece by piece."""

    async def __call__(self, request: Request) -> StreamingResponse:
        return StreamingResponse(self.pieces(), media_type="application/octet-stream")

    async def pieces(self) -> AsyncIterator[bytes]:
        for _ in range(PIECES):
            yield bytes(PIECE)


# -- what is deployed together --------------------------------------------------------------------


def hello(serve: Any, deployment: Deployment) -> Apps:
    return {"/hello": deployment(Hello).bind()}


def scale(serve: Any, deployment: Deployment) -> Apps:
    """The same, of which more and more replicas are asked for."""
    return hello(serve, deployment)


def http(serve: Any, deployment: Deployment) -> Apps:
    return {
        "/hello": deployment(Hello).bind(),
        "/default": deployment(Hello, max_ongoing_requests=None).bind(),
        "/json": deployment(Json).bind(),
        "/length": deployment(Length).bind(),
    }


def models(serve: Any, deployment: Deployment) -> Apps:
    return {
        "/sleep": deployment(Sleep, num_replicas=REPLICAS, max_ongoing_requests=1).bind(),
        "/async_sleep": deployment(AsyncSleep, num_replicas=REPLICAS).bind(),
    }


def fairness(serve: Any, deployment: Deployment) -> Apps:
    """``/order``: one at a time. ``/uneven``: four, one of them slow. ``/turn0`` to ``/turn3``: the same, four queues.

    ``/full``: a queue of 40 in front of four.
    """
    folder = tempfile.mkdtemp(prefix="skb-uneven-")
    two = {"max_ongoing_requests": 2}
    found = {"/order": deployment(Order, num_replicas=REPLICAS, max_ongoing_requests=1).bind()}
    found["/uneven"] = deployment(Uneven, num_replicas=REPLICAS, **two).bind(folder, None)
    for number in range(REPLICAS):
        found[f"/turn{number}"] = deployment(Uneven, **two).bind(folder, number == 0)
    if (by_turns := deployment(Uneven, by_turns=True, num_replicas=REPLICAS, **two)) is not None:
        found["/robin"] = by_turns.bind(tempfile.mkdtemp(prefix="skb-uneven-"), None)
    full = {"max_ongoing_requests": 1, "max_queued_requests": 40, "backpressure_config": {"retry_after_s": 1}}
    found["/full"] = deployment(AsyncSleep, num_replicas=REPLICAS, **full).bind()
    return found


def big(serve: Any, deployment: Deployment) -> Apps:
    return {"/big": deployment(Big).bind()}
