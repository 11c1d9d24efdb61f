"""What the chaos serves. Replicas find it by its import path. Law: whatever is executed is noted first, in a file that
all replicas append to, under the id of its call; so what was executed is known whatever became of the replica.

An answer is ``[id, replica, version, factor]``: who gave it, and of what version and configuration that one is.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, WebSocket
from fastapi.responses import JSONResponse
from starlette.requests import Request

from skate import serve
from skate.core.errors import DeploymentUnavailableError, NotFoundError, ReplicaDiedError

LOG = "CHAOS_LOG"  # the environment variable that names the file
WORK_S = 0.002
RETRIES = 3  # of what is marked
STARTS_MAX = 2  # failed starts until a broken version is given up
ELASTIC_WORK_S = 0.1
SCALING = {
    "min_replicas": 0,
    "max_replicas": 4,
    "target_ongoing_requests": 1,
    "look_back_period_s": 0.5,
    "upscale_delay_s": 0.0,
    "downscale_delay_s": 0.3,
}
_log: dict[int, int] = {}  # by process: a forked one opens its own

Answer = list[Any]


def note(call: str) -> None:
    """One line for an execution; whole, because it is one write to a file that is only appended to."""
    if os.environ.get(LOG):
        pid = os.getpid()
        if pid not in _log:
            _log[pid] = os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(_log[pid], f"{call}\n".encode())


@dataclass(frozen=True)
class Want:
    """How an application shall be."""

    version: int = 1
    replicas: int = 2  # 0: as many as its load asks for
    factor: int = 0
    broken: bool = False  # its constructor fails


class Common:
    """What all deployments can do."""

    def __init__(self, version: int, broken: bool = False) -> None:
        if broken:
            raise RuntimeError("broken on purpose")
        self.version, self.factor = version, 0

    def reconfigure(self, config: dict[str, int]) -> None:
        self.factor = config["factor"]

    def signed(self, id: str) -> Answer:
        return [id, serve.get_replica_context().replica_id, self.version, self.factor]

    async def who(self) -> Answer:
        """Not noted: it is asked by those who look."""
        await asyncio.sleep(WORK_S)
        return self.signed("")

    async def do(self, id: str) -> Answer:
        note(id)
        await asyncio.sleep(WORK_S)
        return self.signed(id)

    def work(self, id: str) -> Answer:
        note(id)
        time.sleep(WORK_S)
        return self.signed(id)

    async def items(self, id: str, n: int) -> AsyncIterator[int]:
        note(id)
        for number in range(n):
            yield number
            await asyncio.sleep(WORK_S)


class Page(Common):
    """The same for HTTP: ``/do``, ``/stream``, with the call's id in the query."""

    async def __call__(self, request: Request) -> Any:
        id = request.query_params["id"]
        match request.url.path.rpartition("/")[2]:
            case "stream":
                note(id)
                return self.lines(int(request.query_params["n"]))
            case _:
                return await self.do(id)

    async def lines(self, n: int) -> AsyncIterator[str]:
        for number in range(n):
            yield f"{number}\n"
            await asyncio.sleep(WORK_S)


@serve.deployment(max_ongoing_requests=32)
class Plain(Page):
    pass


@serve.deployment(max_ongoing_requests=4)
class Single(Page):
    """One replica with few slots: calls wait for it, some of them in it."""


@serve.deployment(max_ongoing_requests=32, retry=RETRIES)
class Again(Page):
    """Its calls may be executed again."""


@serve.deployment(max_ongoing_requests=32)
class Fleeting(Page):
    """It is deleted and deployed again."""


@serve.deployment(max_ongoing_requests=4)
class Elastic(Page):
    """It scales by itself, also to zero."""

    async def do(self, id: str) -> Answer:
        note(id)
        await asyncio.sleep(ELASTIC_WORK_S)
        return self.signed(id)


@serve.deployment(max_ongoing_requests=32)
class Door(Page):
    """Calls another application, which may be gone."""

    async def do(self, id: str) -> Answer:
        note(id)
        try:
            await serve.get_app_handle("fleeting").do.remote(f"{id}.c")
        except (NotFoundError, DeploymentUnavailableError) as error:
            return ["gone", f"{type(error).__name__}: {error}"]
        except ReplicaDiedError as error:
            return ["died", str(error)]
        return self.signed(id)


@serve.deployment(max_ongoing_requests=32)
class Left(Common):
    pass


@serve.deployment(max_ongoing_requests=32)
class Right(Common):
    pass


shop = FastAPI()


@serve.deployment(max_ongoing_requests=48)
@serve.ingress(shop)
class Shop(Common):
    """A FastAPI door before two children."""

    def __init__(self, version: int, left: Any, right: Any, broken: bool = False) -> None:
        super().__init__(version, broken)
        self.left, self.right = left, right

    @shop.get("/do")
    async def both(self, id: str) -> Any:
        note(id)
        left, right = self.left.do.remote(f"{id}.l"), self.right.work.remote(f"{id}.r")
        try:
            return [self.signed(id), await left, await right]
        except ReplicaDiedError as error:
            return JSONResponse(["died", str(error)], 500)

    @shop.websocket("/echo")
    async def echo(self, socket: WebSocket, id: str) -> None:
        note(id)
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(text)


FIRST = {
    "plain": Want(replicas=3),
    "shop": Want(),
    "again": Want(),
    "single": Want(replicas=1),
    "fleeting": Want(),
    "door": Want(replicas=1),
    "elastic": Want(replicas=0),
}
FLEETING, ELASTIC = "fleeting", "elastic"


def app_of(name: str, want: Want) -> Any:
    """The application, bound."""
    options = {
        **({"num_replicas": want.replicas} if want.replicas else {"autoscaling_config": SCALING}),
        "user_config": {"factor": want.factor},
        "max_constructor_retry_count": STARTS_MAX,
    }
    if name == "shop":
        children = [child.options(**options).bind(want.version) for child in (Left, Right)]
        return Shop.options(**options).bind(want.version, *children, broken=want.broken)
    page = {"plain": Plain, "again": Again, "single": Single, "fleeting": Fleeting, "door": Door, "elastic": Elastic}[
        name
    ]
    return page.options(**options).bind(want.version, broken=want.broken)


def ordered(args: dict[str, Any]) -> Any:
    """The same, for a file that names this function."""
    time.sleep(args["slow_s"])
    return app_of(args["name"], Want(**args["want"]))
