"""Bare uvicorn: ``python -m benchmarks.peers.asgi PORT APP`` with ``BENCHMARK_ASGI`` starlette (default) or fastapi.

One process, uvloop, httptools, no access log: what a handler costs when nothing stands in front of it. No deployment,
no replicas: the models of four replicas are not its work. The children of the FastAPI work are plain coroutines here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from benchmarks.peers.program import CHUNK, CHUNKS, HELLO, HOST, PIECE, PIECES, end_with_stdin, told


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(HELLO)


async def echo_json(request: Request) -> JSONResponse:
    return JSONResponse(await request.json())


async def length(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def stream(request: Request) -> StreamingResponse:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(CHUNKS):
            yield CHUNK

    return StreamingResponse(chunks(), media_type="text/plain")


async def big(request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(PIECES):
            yield bytes(PIECE)

    return StreamingResponse(pieces(), media_type="application/octet-stream")


async def websocket(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        pass


async def plus(number: int, add: int) -> int:
    return number + add


def starlette() -> Starlette:
    routes: list[Any] = [
        Route("/hello", hello),
        Route("/json", echo_json, methods=["POST"]),
        Route("/length", length, methods=["POST"]),
        Route("/stream", stream),
        Route("/big", big),
        WebSocketRoute("/ws/echo", websocket),
    ]
    return Starlette(routes=routes)


def fastapi() -> FastAPI:
    api = FastAPI()

    @api.get("/hello", response_class=PlainTextResponse)
    async def _hello() -> str:
        return HELLO

    @api.post("/json")
    async def _json(value: dict[str, Any]) -> dict[str, Any]:
        return value

    api.post("/length")(length)
    api.get("/stream")(stream)
    api.websocket("/ws/echo")(websocket)

    @api.get("/fastapi/{number}")
    async def _both(number: int) -> dict[str, int]:
        first, second = await asyncio.gather(plus(number, 1), plus(number, 2))
        return {"sum": first + second}

    return api


if __name__ == "__main__":
    port, _ = told()
    end_with_stdin()
    app = {"starlette": starlette, "fastapi": fastapi}[os.environ.get("BENCHMARK_ASGI", "starlette")]()
    uvicorn.run(
        app,
        host=HOST,
        port=port,
        loop="uvloop",
        http="httptools",
        ws="websockets",
        access_log=False,
        log_level="warning",
    )
