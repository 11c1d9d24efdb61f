"""The kinds of calls that are made all the time. Law: each has an id of its own and a deadline, is never made again by
the client, and becomes one record, whatever becomes of it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from chaos.judge import CUT, DEADLINE_S, DIED, GONE, LATE, OK, UNREACHABLE, Record
from skate import serve
from skate.core.errors import (
    CallTimeoutError,
    DeploymentUnavailableError,
    NotFoundError,
    ReplicaDiedError,
    RequestCancelledError,
)
from soak.client import Cut, Line

HUNG_S = 30.0  # for a call that does not end; a fault long before
TEXT_MAX = 400
STREAM_N = 20
MESSAGES = 10


class Wrong(Exception):
    """An answer that is not what it should be."""


class Failed(Exception):
    """An answer that says how the call failed."""

    def __init__(self, word: str, text: str) -> None:
        super().__init__(text)
        self.word = word


class Way(Line):
    """A connection that knows which proxy is at its other end, from its first answer on."""

    def __init__(self, port: int, proxies: Callable[[], list[int]]) -> None:
        super().__init__(port)
        self._proxies = proxies
        self._asked: Any = None
        self.proxy = 0
        self.began = False  # the answer to the last request has begun

    async def send(self, *arguments: Any, **more: Any) -> None:
        self.began = False
        if self._reader is not None and self._reader.at_eof():
            self.leave()  # the proxy has closed it while it was idle: every client looks before it uses one again
        if self._writer is None or self._writer.is_closing():
            self.proxy = 0
        await super().send(*arguments, **more)

    async def head(self) -> int:
        status = await super().head()
        self.began = True
        if self._asked is not self._writer and self._writer is not None:
            self._asked = self._writer
            here = self._writer.get_extra_info("sockname")[1]
            self.proxy = await asyncio.to_thread(owner_of, self.port, here, self._proxies())
        return status


def owner_of(port: int, peer_port: int, pids: list[int]) -> int:
    """Which of these processes holds the loopback connection from ``peer_port`` to ``port``; 0 if none."""
    inode = ""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1][-4:], 16) == port and int(fields[2][-4:], 16) == peer_port:
            inode = fields[9]
    for pid in pids:
        try:
            if inode and any(link.readlink().name == f"socket:[{inode}]" for link in Path(f"/proc/{pid}/fd").iterdir()):
                return pid
        except OSError:
            continue  # it, or one of its descriptors, is gone
    return 0


@dataclass
class World:
    """What the clients know."""

    port: int
    chance: random.Random
    proxies: Callable[[], list[int]]
    handles: dict[str, Any] = field(default_factory=dict)
    numbers: Any = field(default_factory=itertools.count)
    records: list[Record] = field(default_factory=list)
    made: int = 0

    def next_id(self) -> str:
        return f"c{next(self.numbers)}"


Act = Callable[[World, Way, str], Awaitable[Any]]  # gives the answer of who executed it, or None


@dataclass(frozen=True)
class Kind:
    """One kind of call; ``workers`` make it in turns with ``pause_s`` between."""

    name: str
    act: Act
    app: str
    workers: int = 1
    pause_s: float = 0.05
    again: int = 0


KINDS: dict[str, Kind] = {}


def kind(app: str, **more: Any) -> Callable[[Act], Act]:
    def enter(act: Act) -> Act:
        name = act.__name__.replace("_", " ")
        KINDS[name] = Kind(name, act, app, **more)
        return act

    return enter


def check(seen: object, wanted: object) -> None:
    if seen != wanted:
        raise Wrong(f"{str(seen)[:TEXT_MAX]!r} instead of {str(wanted)[:100]!r}")


# -- HTTP -----------------------------------------------------------------------------------------

LIMIT = (f"X-Request-Timeout-Seconds: {DEADLINE_S:g}",)


async def asked(way: Way, path: str, id: str) -> Any:
    """A GET whose answer is JSON, signed."""
    status, text = await way.ask("GET", f"{path}?id={id}", headers=LIMIT)
    refuse(status, text)
    answer = json.loads(text)
    if answer[0] in (GONE, DIED):
        raise Failed(*answer)
    return answer


def refuse(status: int, text: str) -> None:
    """Raises what an answer means that is no 200."""
    if status == 200:
        return
    if status == 404 or (status == 503 and ("deleted" in text or "no deployment" in text)):
        raise Failed(GONE, text)
    if status == 408:
        raise Failed(LATE, text)
    if status == 500 and "died" in text:
        raise Failed(DIED, text)
    raise Wrong(f"status {status}: {text}")


async def page(world: World, way: Way, id: str, app: str) -> Any:
    answer = await asked(way, f"/{app}/do", id)
    check(answer[0], id)
    return answer


@kind("plain", workers=4, pause_s=0.02)
async def http_plain(world: World, way: Way, id: str) -> Any:
    return await page(world, way, id, "plain")


@kind("single", workers=3, pause_s=0.03)
async def http_to_the_only_replica(world: World, way: Way, id: str) -> Any:
    return await page(world, way, id, "single")


@kind("again", workers=2, again=3)
async def http_that_may_be_executed_again(world: World, way: Way, id: str) -> Any:
    return await page(world, way, id, "again")


@kind("fleeting", workers=2)
async def http_to_what_is_deleted(world: World, way: Way, id: str) -> Any:
    return await page(world, way, id, "fleeting")


@kind("elastic", workers=5, pause_s=4.0)
async def http_to_what_scales_by_itself(world: World, way: Way, id: str) -> Any:
    return await page(world, way, id, "elastic")


@kind("elastic", pause_s=4.0)
async def handle_to_what_scales_by_itself(world: World, way: Way, id: str) -> Any:
    return await called(world, "elastic", id)


@kind("door", workers=2)
async def http_to_another_application(world: World, way: Way, id: str) -> Any:
    return await page(world, way, id, "door")


@kind("shop", workers=3)
async def http_composed(world: World, way: Way, id: str) -> Any:
    answer = await asked(way, "/shop/do", id)
    check([one[0] for one in answer], [id, f"{id}.l", f"{id}.r"])
    return answer[0]


@kind("plain", workers=2, pause_s=0.1)
async def http_stream(world: World, way: Way, id: str) -> Any:
    await way.send("GET", f"/plain/stream?id={id}&n={STREAM_N}", headers=LIMIT)
    status = await way.head()
    text = await way.text()
    refuse(status, text)
    check(text.split(), [str(number) for number in range(STREAM_N)])


# -- WebSockets -----------------------------------------------------------------------------------


@kind("shop", workers=2, pause_s=0.1)
async def websocket(world: World, way: Way, id: str) -> Any:
    way.began = False
    url = f"ws://127.0.0.1:{world.port}/shop/echo?id={id}"
    try:
        async with connect(url, proxy=None, compression=None, open_timeout=DEADLINE_S) as socket:
            way.began = True
            for number in range(MESSAGES):
                await socket.send(f"{number}")
                check(await socket.recv(), f"{number}")
                await asyncio.sleep(0.01)
    except InvalidStatus as error:
        text = (error.response.body or b"").decode(errors="replace")
        if "being stopped" in text:
            raise Failed(CUT, text) from error
        refuse(error.response.status_code, text)


# -- handles --------------------------------------------------------------------------------------


async def called(world: World, app: str, id: str, method: str = "do", **options: Any) -> Any:
    handle = world.handles[app].options(timeout_s=DEADLINE_S, **options)
    answer = await getattr(handle, method).remote(id)
    check(answer[0], id)
    return answer


@kind("plain", workers=4, pause_s=0.02)
async def handle_call(world: World, way: Way, id: str) -> Any:
    return await called(world, "plain", id)


@kind("single", workers=3, pause_s=0.03)
async def handle_to_a_thread_of_the_only_replica(world: World, way: Way, id: str) -> Any:
    return await called(world, "single", id, "work")


@kind("plain", workers=2, again=2)
async def handle_that_may_be_executed_again(world: World, way: Way, id: str) -> Any:
    return await called(world, "plain", id, retry=2)


@kind("fleeting", workers=2)
async def handle_to_what_is_deleted(world: World, way: Way, id: str) -> Any:
    return await called(world, "fleeting", id)


@kind("plain", workers=2, pause_s=0.1)
async def handle_stream(world: World, way: Way, id: str) -> Any:
    way.began = False
    stream = world.handles["plain"].options(timeout_s=DEADLINE_S, stream=True).items.remote(id, STREAM_N)
    check([item async for item in stream], list(range(STREAM_N)))


# -- what becomes of them -------------------------------------------------------------------------


def connected(port: int, seed: int, proxies: Callable[[], list[int]]) -> World:
    """A world whose handles lead to the applications that run."""
    world = World(port, random.Random(seed), proxies)
    for app in {kind.app for kind in KINDS.values()}:
        world.handles[app] = serve.get_app_handle(app)
    return world


async def make(world: World, kind: Kind, way: Way) -> Record:
    """One call, to its end."""
    id = world.next_id()
    world.made += 1
    way.began = False
    began = monotonic()
    word, text, version = OK, "", 0
    try:
        async with asyncio.timeout(HUNG_S):
            answer = await kind.act(world, way, id)
        version = answer[2] if answer is not None else 0
    except Exception as error:
        word, text = named(error)
    record = Record(id, kind.name, kind.app, began, monotonic(), word, text, way.proxy, kind.again, way.began, version)
    if word != OK:
        way.leave()
    world.records.append(record)
    return record


def named(error: BaseException) -> tuple[str, str]:
    """The word for what a call raised, and its text."""
    text = f"{type(error).__name__}: {error}"[:TEXT_MAX]
    match error:
        case Failed():
            return error.word, text
        case ReplicaDiedError():
            return DIED, text
        case NotFoundError() | DeploymentUnavailableError():
            return GONE, text
        case CallTimeoutError():
            return LATE, text
        case RequestCancelledError():
            return "cancelled", text
        case TimeoutError():
            return "hung", text
        case ConnectionRefusedError():
            return UNREACHABLE, text
        case Cut() | ConnectionError() | ConnectionClosed() | InvalidMessage() | EOFError():
            return CUT, text
    return type(error).__name__, text
