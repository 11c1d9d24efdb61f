"""FastAPI on Ray Serve and Skate: WebSocket echo, and an ingress that asks two children. The same source for both.

The ingress classes are made where ``serve`` is known, because it decorates them; so they travel by value, and their
annotations are no strings: those would be looked up in a module that does not travel with them.
"""

import asyncio
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from benchmarks.peers.plain import Apps, Deployment, Stream


class Child:
    def __init__(self, add: int) -> None:
        self.add = add

    async def plus(self, number: int) -> int:
        return number + self.add


def streams(serve: Any, deployment: Deployment) -> Apps:
    api = FastAPI()

    @serve.ingress(api)
    class Echoes:
        @api.websocket("/echo")
        async def echo(self, socket: WebSocket) -> None:
            await socket.accept()
            try:
                while True:
                    await socket.send_text(await socket.receive_text())
            except WebSocketDisconnect:
                pass

    return {"/stream": deployment(Stream).bind(), "/ws": deployment(Echoes).bind()}


def fastapi(serve: Any, deployment: Deployment) -> Apps:
    api = FastAPI()

    @serve.ingress(api)
    class Ingress:
        def __init__(self, first: Any, second: Any) -> None:
            self.first, self.second = first, second

        @api.get("/{number}")
        async def both(self, number: int) -> dict[str, int]:
            first, second = await asyncio.gather(self.first.plus.remote(number), self.second.plus.remote(number))
            return {"sum": first + second}

    child = deployment(Child)
    first, second = child.options(name="First").bind(1), child.options(name="Second").bind(2)
    return {"/fastapi": deployment(Ingress).bind(first, second)}
