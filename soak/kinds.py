"""All kinds of calls that clients of the soak make. Law: each returns the word for how it ended, or raises.

A kind names the words that may come of it. ``mortal`` ones may also be hit by the death of a replica, and must be told
so: by an error that names a replica that was killed, or, in the middle of a stream, by a cut within its last seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from skate import serve
from skate.core.errors import BackPressureError, CallTimeoutError, RequestCancelledError
from soak.client import Cut, Line


class WrongError(Exception):
    """An answer that is not what it should be."""


@dataclass
class World:
    """What clients know: the port, and handles to the applications."""

    port: int
    chance: random.Random
    handles: dict[str, Any] = field(default_factory=dict)
    numbers: Any = field(default_factory=itertools.count)
    arrays: list[Any] = field(default_factory=list)

    def n(self) -> int:
        return int(next(self.numbers)) % 100_000


Act = Callable[[World, Line], Awaitable[str]]


@dataclass(frozen=True)
class Kind:
    """One kind of call: ``act`` makes one, ``workers`` do so in turns with ``pause_s`` between."""

    name: str
    act: Act
    words: frozenset[str]
    workers: int = 1
    pause_s: float = 0.1
    mortal: bool = False


KINDS: dict[str, Kind] = {}


def kind(*words: str, **more: Any) -> Callable[[Act], Act]:
    def enter(act: Act) -> Act:
        name = act.__name__.replace("_", " ")
        KINDS[name] = Kind(name, act, frozenset(words or ("ok",)), **more)
        return act

    return enter


def check(seen: object, wanted: object) -> str:
    if seen != wanted:
        raise WrongError(f"{str(seen)[:300]!r} instead of {str(wanted)[:100]!r}")
    return "ok"


# -- HTTP -----------------------------------------------------------------------------------------


@kind(workers=3, pause_s=0.02)
async def http_hello(world: World, line: Line) -> str:
    return check(await line.ask("GET", "/plain/hello"), (200, "hello"))


@kind(workers=2, pause_s=0.05)
async def http_json(world: World, line: Line) -> str:
    n = world.n()
    status, text = await line.ask("POST", "/plain/json", json.dumps({"n": n}).encode())
    return check((status, json.loads(text)), (200, {"n": n, "twice": 2 * n}))


@kind(pause_s=0.2)
async def http_body(world: World, line: Line) -> str:
    data = world.chance.randbytes(world.chance.randrange(300_000))
    return check(await line.ask("POST", "/plain/body", data), (200, str(zlib.crc32(data))))


@kind(pause_s=0.3)
async def http_upload_in_pieces(world: World, line: Line) -> str:
    data = world.chance.randbytes(400_000)
    await line.send("POST", "/plain/pieces", whole=False)
    for start in range(0, len(data), 30_000):
        await line.chunk(data[start : start + 30_000])
    await line.chunk(b"")
    return check((await line.head(), await line.text()), (200, str(zlib.crc32(data))))


@kind(workers=2, pause_s=0.1)
async def http_stream(world: World, line: Line) -> str:
    await line.send("GET", "/plain/stream?n=50&size=1000")
    check(await line.head(), 200)
    return check(numbers_in(await line.text(), 1000), list(range(50)))


@kind(pause_s=0.5)
async def http_slow_reader(world: World, line: Line) -> str:
    await line.send("GET", "/plain/stream?n=48&size=65536")
    check(await line.head(), 200)
    text = b""
    async for piece in line.pieces():
        text += piece
        await asyncio.sleep(0.005)
    return check(numbers_in(text.decode(), 65536), list(range(48)))


def numbers_in(text: str, size: int) -> list[int]:
    return [int(text[start : start + size].partition(" ")[0]) for start in range(0, len(text), size)]


@kind("timed out", pause_s=0.2)
async def http_deadline(world: World, line: Line) -> str:
    status, text = await line.ask("GET", "/plain/nap?s=2", headers=["X-Request-Timeout-Seconds: 0.05"])
    check((status, "timed out" in text), (408, True))
    return "timed out"


@kind("user error", pause_s=0.2)
async def http_error(world: World, line: Line) -> str:
    status, text = await line.ask("GET", "/plain/unknown")
    check((status, "KeyError" in text), (500, True))
    return "user error"


@kind("left", pause_s=0.2)
async def http_client_leaves(world: World, line: Line) -> str:
    await line.send("GET", world.chance.choice(["/plain/nap?s=5", "/shop/slow"]))
    await asyncio.sleep(world.chance.random() * 0.05)
    line.leave()
    return "left"


@kind("left", pause_s=0.3)
async def http_client_leaves_a_stream(world: World, line: Line) -> str:
    await line.send("GET", "/plain/stream?n=100000&size=5000")
    check(await line.head(), 200)
    async for _ in line.pieces():
        if world.chance.random() < 0.1:
            break
    line.leave()
    return "left"


@kind("left", pause_s=0.3)
async def http_client_leaves_an_upload(world: World, line: Line) -> str:
    await line.send("POST", world.chance.choice(["/plain/pieces", "/plain/body"]), whole=False)
    for _ in range(world.chance.randrange(4)):
        await line.chunk(b"x" * 40_000)
    line.leave()
    return "left"


@kind("ok", "refused", workers=6, pause_s=0.1)
async def http_to_the_narrow(world: World, line: Line) -> str:
    status, text = await line.ask("GET", "/narrow/")
    if status == 503:
        return "refused" if "max_queued_requests" in text else check(text, "a refusal")
    return check((status, text), (200, "through"))


@kind(workers=2, pause_s=0.05)
async def http_fastapi_with_two_children(world: World, line: Line) -> str:
    n = world.n()
    status, text = await line.ask("GET", f"/shop/item/{n}")
    return check((status, json.loads(text)), (200, {"price": 3 * n, "stock": n % 7}))


@kind(pause_s=0.2)
async def http_stream_of_a_child(world: World, line: Line) -> str:
    await line.send("GET", "/shop/feed?n=40")
    check(await line.head(), 200)
    return check((await line.text()).split(), [str(i) for i in range(40)])


# -- WebSockets -----------------------------------------------------------------------------------


async def talk(world: World, path: str, messages: int) -> str:
    async with connect(f"ws://127.0.0.1:{world.port}{path}", proxy=None, compression=None) as socket:
        for i in range(messages):
            await socket.send(f"{i}")
            check(await socket.recv(), f"{i}")
            await asyncio.sleep(0.005)
    return "ok"


@kind(workers=2, pause_s=0.2)
async def websocket(world: World, line: Line) -> str:
    return await talk(world, "/shop/echo", 10)


@kind("left", pause_s=0.3)
async def websocket_client_vanishes(world: World, line: Line) -> str:
    socket = await connect(f"ws://127.0.0.1:{world.port}/shop/echo", proxy=None, compression=None)
    try:
        await socket.send("one")
        check(await socket.recv(), "one")
    finally:
        socket.transport.abort()
        await socket.wait_closed()
    return "left"


# -- handles --------------------------------------------------------------------------------------


@kind(workers=3, pause_s=0.02)
async def handle_call(world: World, line: Line) -> str:
    n = world.n()
    return check(await world.handles["plain"].add.remote(n, 1), n + 1)


@kind(workers=2, pause_s=0.1)
async def handle_from_a_thread(world: World, line: Line) -> str:
    n = world.n()
    return check(await asyncio.to_thread(lambda: world.handles["plain"].blocking.remote(n).result(timeout_s=20)), n + 1)


@kind(pause_s=0.05)
async def handle_answer_as_argument(world: World, line: Line) -> str:
    n, handle = world.n(), world.handles["plain"]
    return check(await handle.add.remote(handle.add.remote(n, 1), b=handle.blocking.remote(n)), 2 * n + 2)


@kind(workers=2, pause_s=0.1)
async def handle_stream(world: World, line: Line) -> str:
    method = world.chance.choice(["items", "blocking_items"])
    stream = getattr(world.handles["plain"].options(stream=True), method).remote(100)
    return check([item async for item in stream], list(range(100)))


@kind("left", pause_s=0.2)
async def handle_stream_given_up(world: World, line: Line) -> str:
    stream = world.handles["plain"].options(stream=True).endless.remote()
    async for _ in stream:
        if world.chance.random() < 0.2:
            break
    if world.chance.random() < 0.5:
        stream.cancel()  # else it is cancelled when nobody can read it any more
    return "left"


@kind(pause_s=0.3)
async def handle_big_arrays(world: World, line: Line) -> str:
    if not world.arrays:
        world.arrays += [numpy.arange(n, dtype=numpy.float64) for n in (1_000, 100_000, 500_000)]  # up to 4 MB
    array = world.chance.choice(world.arrays)
    back = await world.handles["plain"].scaled.remote(array, 2.0)
    return check((back.shape, bool((back == array * 2).all())), (array.shape, True))


@kind("timed out", pause_s=0.2)
async def handle_deadline(world: World, line: Line) -> str:
    try:
        await world.handles["plain"].options(timeout_s=0.05).nap.remote(2.0)
    except CallTimeoutError:
        return "timed out"
    raise WrongError("a call of 2 s came back under a limit of 0.05 s")


@kind("cancelled", pause_s=0.2)
async def handle_cancel(world: World, line: Line) -> str:
    response = world.handles["plain"].nap.remote(4.0)
    await asyncio.sleep(world.chance.random() * 0.02)
    response.cancel()
    try:
        await response
    except RequestCancelledError:
        return "cancelled"
    raise WrongError("a call that was cancelled came back")


@kind("ok", "cancelled", pause_s=0.1)
async def handle_cancel_at_the_end(world: World, line: Line) -> str:
    response = world.handles["plain"].add.remote(1, 2)
    await asyncio.sleep(world.chance.random() * 0.002)
    response.cancel()
    try:
        return check(await response, 3)
    except RequestCancelledError:
        return "cancelled"


@kind("user error", pause_s=0.2)
async def handle_error(world: World, line: Line) -> str:
    try:
        await world.handles["plain"].fail.remote("of the user")
    except ValueError as error:
        check(error.args, ("of the user",))
        return "user error"
    raise WrongError("a method that raises came back")


@kind("ok", "refused", workers=4, pause_s=0.1)
async def handle_to_the_narrow(world: World, line: Line) -> str:
    try:
        return check(await world.handles["narrow"].remote(None), "through")
    except BackPressureError:
        return "refused"


# -- where replicas are killed --------------------------------------------------------------------


@kind(workers=2, pause_s=0.05, mortal=True)
async def mortal_http(world: World, line: Line) -> str:
    n = world.n()
    status, text = await line.ask("GET", f"/mortal/sum/{n}")
    if status == 500:
        raise WrongError(text)
    return check((status, json.loads(text)), (200, {"sum": 2 * n}))


@kind(workers=2, pause_s=0.05, mortal=True)
async def mortal_http_nap(world: World, line: Line) -> str:
    status, text = await line.ask("GET", "/mortal/nap?s=0.05")
    if status == 500:
        raise WrongError(text)
    return check((status, text), (200, '"rested"'))


@kind(pause_s=0.1, mortal=True)
async def mortal_http_stream(world: World, line: Line) -> str:
    await line.send("GET", "/mortal/stream?n=30&size=1000&pause=0.005")
    if await line.head() != 200:
        raise WrongError(await line.text())
    return check(numbers_in(await line.text(), 1000), list(range(30)))


@kind(pause_s=0.2, mortal=True)
async def mortal_websocket(world: World, line: Line) -> str:
    try:
        return await talk(world, "/mortal/echo", 20)
    except ConnectionClosed as error:
        raise Cut(str(error)) from None


@kind(workers=2, pause_s=0.02, mortal=True)
async def mortal_handle(world: World, line: Line) -> str:
    n = world.n()
    if world.chance.random() < 0.2:
        return check(await world.handles["leaf"].nap.remote(0.03), "rested")
    return check(await world.handles["leaf"].add.remote(n, n), 2 * n)


@kind(workers=2, pause_s=0.1, mortal=True)
async def mortal_handle_stream_passed_on(world: World, line: Line) -> str:
    stream = world.handles["mortal"].options(stream=True).passed_on.remote(50)
    return check([item async for item in stream], list(range(50)))


@kind(workers=2, pause_s=0.03, mortal=True)
async def single_http(world: World, line: Line) -> str:
    status, text = await line.ask("GET", "/single/")
    if status == 500:
        raise WrongError(text)
    return check((status, text), (200, "one"))


@kind(workers=4, pause_s=0.03, mortal=True)
async def single_handle(world: World, line: Line) -> str:
    responses = [world.handles["single"].remote(None) for _ in range(3)]
    return check([await response for response in responses], ["one"] * 3)


@kind("ok", "timed out", workers=2, pause_s=0.05, mortal=True)
async def single_handle_deadline(world: World, line: Line) -> str:
    try:
        return check(await world.handles["single"].options(timeout_s=0.02).remote(None), "one")
    except CallTimeoutError:
        return "timed out"


@kind("ok", "cancelled", pause_s=0.05, mortal=True)
async def single_handle_cancel(world: World, line: Line) -> str:
    responses = [world.handles["single"].remote(None) for _ in range(4)]
    await asyncio.sleep(world.chance.random() * 0.02)
    for response in responses:
        response.cancel()
    try:
        return check([await response for response in responses], ["one"] * 4)
    except RequestCancelledError:
        return "cancelled"


def connected(port: int, seed: int) -> World:
    """A world whose handles lead to the applications that run."""
    world = World(port, random.Random(seed))
    for name in ("plain", "shop", "narrow", "single", "mortal"):
        world.handles[name] = serve.get_app_handle(name)
    world.handles["leaf"] = serve.get_deployment_handle("Leaf", "mortal")
    return world
