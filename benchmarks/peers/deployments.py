"""The applications of those that have Ray Serve's programming model: Ray Serve and Skate run this very source.

Law: nothing here knows which of the two it is; ``serve`` is handed in, and so are options that only one of them has.
The classes are plain and at module level, so that replicas import them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from benchmarks.peers import calling
from benchmarks.peers.calling import CALLS_MAX
from benchmarks.peers.program import CHUNK, CHUNKS, HELLO, REPLICAS, SLEEP_S, WIDE

CALL_MAX_S = 30.0  # beyond the time of a measurement
Apps = dict[str | None, Any]  # bound applications by route prefix; None: one without HTTP


# -- plain handlers -------------------------------------------------------------------------------


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


# -- FastAPI --------------------------------------------------------------------------------------

echoes, composed = FastAPI(), FastAPI()


class Echoes:
    @echoes.websocket("/")
    async def echo(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                await socket.send_text(await socket.receive_text())
        except WebSocketDisconnect:
            pass


class Child:
    def __init__(self, add: int) -> None:
        self.add = add

    async def plus(self, number: int) -> int:
        return number + self.add


class Ingress:
    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second

    @composed.get("/{number}")
    async def both(self, number: int) -> dict[str, int]:
        first, second = await asyncio.gather(self.first.plus.remote(number), self.second.plus.remote(number))
        return {"sum": first + second}


# -- calls between deployments --------------------------------------------------------------------


class Echo:
    async def echo(self, value: Any) -> Any:
        return value

    async def items(self, seconds: float) -> AsyncIterator[int]:
        until = time.perf_counter() + seconds
        for number in range(CALLS_MAX):
            yield number
            if not number % 64 and time.perf_counter() > until:
                return

    async def take(self, array: Any) -> int:
        return calling.touched(array)


class Middle:
    """Between the driver and the echo."""

    def __init__(self, child: Any) -> None:
        self.child = child.options(stream=True)

    async def items(self, seconds: float) -> AsyncIterator[int]:
        async for item in self.child.items.remote(seconds):
            yield item

    def passed_on(self, seconds: float) -> Any:
        return self.child.items.remote(seconds)


class Link:
    """One of a chain."""

    def __init__(self, follower: Any) -> None:
        self.follower = follower

    async def echo(self, value: Any) -> Any:
        return await self.follower.echo.remote(value)


class Driver:
    """The caller: it measures from inside of its replica, as a user's code would call."""

    def __init__(self, echo: Any, middle: Any, chain3: Any, chain10: Any) -> None:
        self.chains = {1: echo, 3: chain3, 10: chain10}
        self.echo, self.middle = echo, middle

    async def latency(self, chain: int, seconds: float) -> dict[str, float]:
        method = self.chains[chain].echo
        return await calling.latency(lambda: method.remote(1), seconds)

    async def rate(self, chain: int, in_flight: int, seconds: float) -> dict[str, float]:
        method = self.chains[chain].echo
        return await calling.rate(lambda: method.remote(1), seconds, in_flight)

    async def items(self, through: str, seconds: float) -> dict[str, float]:
        callee = self.echo if through == "nobody" else self.middle
        method = getattr(callee.options(stream=True), "passed_on" if through == "passed on" else "items")
        return await calling.items(method.remote(seconds))

    async def arrays(self, size: int, seconds: float) -> dict[str, float]:
        method, array = self.echo.take, numpy.zeros(size, numpy.uint8)
        return await calling.arrays(lambda: method.remote(array), size, seconds)


# -- what is deployed together --------------------------------------------------------------------


def apps(name: str, serve: Any, extra: dict[str, Any]) -> Apps:
    """The applications of one group of work, by name; ``extra``: options of this framework for every deployment."""

    def deployment(cls: type, **options: Any) -> Any:
        return serve.deployment(name=cls.__name__, **{"max_ongoing_requests": WIDE, **options, **extra})(cls)

    def hello() -> Apps:
        return {"/hello": deployment(Hello).bind()}

    def http() -> Apps:
        default = serve.deployment(name="Default", **extra)(Hello)  # max_ongoing_requests as it comes
        return {
            **hello(),
            "/default": default.bind(),
            "/json": deployment(Json).bind(),
            "/length": deployment(Length).bind(),
        }

    def models() -> Apps:
        one = {"num_replicas": REPLICAS, "max_ongoing_requests": 1}
        return {
            "/sleep": deployment(Sleep, **one).bind(),
            "/async_sleep": deployment(AsyncSleep, num_replicas=REPLICAS).bind(),
        }

    def streams() -> Apps:
        return {"/stream": deployment(Stream).bind(), "/ws": deployment(serve.ingress(echoes)(Echoes)).bind()}

    def fastapi() -> Apps:
        child = deployment(Child)
        ingress = deployment(serve.ingress(composed)(Ingress))
        return {"/fastapi": ingress.bind(child.options(name="First").bind(1), child.options(name="Second").bind(2))}

    def handles() -> Apps:
        echo = deployment(Echo).bind()
        link, chain = deployment(Link), {1: deployment(Echo).options(name="End").bind()}
        for number in range(2, 11):
            chain[number] = link.options(name=f"Link{number}").bind(chain[number - 1])
        middle = deployment(Middle).bind(echo)
        return {None: deployment(Driver).bind(echo, middle, chain[3], chain[10])}

    groups = (hello, http, models, streams, fastapi, handles)
    return {group.__name__: group for group in groups}[name]()


class Deploys:
    """What a program of this kind answers to its lines."""

    def __init__(self, serve: Any, extra: dict[str, Any]) -> None:
        self._serve, self._extra = serve, extra
        self._handles: dict[str, Any] = {}

    def deploy(self, app: str) -> None:
        """Returns when all of it is ready."""
        for prefix, bound in apps(app, self._serve, self._extra).items():
            name = (prefix or app).strip("/")
            self._handles[name] = self._serve.run(bound, name=name, route_prefix=prefix)

    def delete(self, app: str) -> None:
        """The counterpart."""
        for prefix in apps(app, self._serve, self._extra):
            name = (prefix or app).strip("/")
            self._serve.delete(name)
            del self._handles[name]

    def measure(self, what: str, seconds: float, **how: Any) -> dict[str, float]:
        """Lets the driver measure."""
        response = getattr(self._handles["handles"], what).remote(seconds=seconds, **how)
        return response.result(timeout_s=seconds + CALL_MAX_S)

    def answers(self) -> dict[str, Callable[..., Any]]:
        """By the word of the line."""
        return {"ping": lambda: None, "deploy": self.deploy, "delete": self.delete, "measure": self.measure}
