"""The work: what is asked of every system, in groups that share one application. Law: values only, everything bounded.

A work measures one thing in one way, the same for all. Who cannot do it says why (``System.lacks``), or does not serve
the application at all.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from benchmarks.suite.systems import Body

Kind = Literal["load", "websocket", "order", "uneven", "overload", "slow readers", "told", "scale", "start"]

KB, MB = 1024, 1 << 20
CALLS_S = 0.7
IDEAL = 400  # requests a second of four replicas that take 10 ms for each


class Work(msgspec.Struct, frozen=True):
    """One line of the tables. What ``kind`` does not need stays at its default."""

    name: str
    kind: Kind = "load"
    path: str = ""
    body: Body = ""
    size: int = 0  # of the body
    connections: int = 1
    seconds: float = 1.0
    told: dict[str, Any] = {}  # for ``told`` and ``scale``: what the line says
    only: tuple[str, ...] = ()  # systems; empty: all that serve the application
    rounds_max: int = 50
    long: bool = False  # left out of a quick run


class Group(msgspec.Struct, frozen=True):
    """Works that one application serves. ``ready``: the path that answers 200 then; empty: a line answers."""

    name: str
    title: str
    app: str
    works: tuple[Work, ...]
    ready: str = ""
    by_measure: bool = True  # a table for each measure; else one table of all


SERVES = ("Skate", "Ray Serve", "Ray Serve, HAProxy")  # who has the whole programming model


def _connections(count: int) -> str:
    return f"{count} connection{'s' if count > 1 else ''}"


def _hello(count: int) -> Work:
    return Work(f"hello, {_connections(count)}", path="/hello", connections=count, long=count not in (1, 64))


def _call(name: str, what: str, only: tuple[str, ...] = (), long: bool = False, **how: Any) -> Work:
    return Work(name, "told", told={"do": "measure", "what": what, "seconds": CALLS_S, **how}, only=only, long=long)


ORDER = "one at a time, 64 callers"
UNEVEN_LIGHT, UNEVEN = (f"one of four ten times slower, {rate} requests/s" for rate in (72, 150))
OVERLOAD = "twice the capacity is offered"
ROBIN = {"rate": 150, "robin": "/robin"}  # beside Skate's own round robin, which passes over who has no room
SLOW_READERS = "32 slow readers of 100 MB"

START = Group("start", "Start", "hello", (Work("start", "start", rounds_max=3),), "/hello", False)
HTTP = Group(
    "http",
    "HTTP, one replica",
    "http",
    (
        *(_hello(count) for count in (1, 16, 64, 256)),
        Work("hello, 64 connections, default options", path="/default", connections=64, only=SERVES, long=True),
        Work("JSON echo of 1 KB, 64 connections", path="/json", body="json", size=KB, connections=64),
        Work("POST of 1 MB, 16 connections", path="/length", body="bytes", size=MB, connections=16),
        Work("POST of 10 MB, 4 connections", path="/length", body="bytes", size=10 * MB, connections=4, long=True),
    ),
    "/hello",
)
MODELS = Group(
    "models",
    "A model of 10 ms, 4 replicas",
    "models",
    (
        Work("time.sleep, 64 connections", path="/sleep", connections=64),
        Work("await asyncio.sleep, 64 connections", path="/async_sleep", connections=64),
    ),
    "/sleep",
)
STREAMS = Group(
    "streams",
    "Streams and WebSockets",
    "streams",
    (
        Work("1,000 chunks of 16 bytes, 32 clients", path="/stream", connections=32),
        Work("WebSocket echo, 1 client", "websocket", "/ws/echo", connections=1, long=True),
        Work("WebSocket echo, 64 clients", "websocket", "/ws/echo", connections=64),
    ),
    "/stream",
)
FASTAPI = Group(
    "fastapi",
    "A FastAPI ingress that asks two deployments",
    "fastapi",
    (
        Work("1 connection", path="/fastapi/5", connections=1, long=True),
        Work("64 connections", path="/fastapi/5", connections=64),
    ),
    "/fastapi/5",
)
HANDLES = Group(
    "handles",
    "Calls between deployments",
    "handles",
    (
        _call("call, 1 in flight", "latency", chain=1),
        _call("calls, 64 in flight", "rate", chain=1, in_flight=64),
        _call("calls, 512 in flight", "rate", long=True, chain=1, in_flight=512),
        _call("chain of 3, 1 in flight", "latency", long=True, chain=3),
        _call("chain of 3, 64 in flight", "rate", long=True, chain=3, in_flight=64),
        _call("chain of 10, 1 in flight", "latency", chain=10),
        _call("chain of 10, 64 in flight", "rate", long=True, chain=10, in_flight=64),
        _call("stream", "items", through="nobody"),
        _call("stream through one that yields on", "items", through="one"),
        _call("stream through one that returns it", "items", through="passed on", only=("Skate",)),
        _call("array of 1 KB", "arrays", long=True, size=KB),
        _call("array of 1 MB", "arrays", long=True, size=MB),
        _call("array of 10 MB", "arrays", size=10 * MB),
        _call("array of 100 MB", "arrays", size=100 * MB),
    ),
)
FAIRNESS = Group(
    "fairness",
    "Order, fairness and overload: 10 ms, 4 replicas",
    "fairness",
    (
        Work(ORDER, "order", "/order", connections=64, seconds=2.0, rounds_max=2),
        # the slow replica can do 20/s: a round robin gives it 18 in the first, 38 in the second
        Work(UNEVEN_LIGHT, "uneven", "/uneven", seconds=4.0, told={"rate": 72}, rounds_max=2),
        Work(UNEVEN, "uneven", "/uneven", seconds=2.0, told={"rate": 150}, rounds_max=2),
        Work(f"{UNEVEN}, its own router", "uneven", "/uneven", seconds=2.0, told=ROBIN, only=("Skate",), rounds_max=2),
        Work(OVERLOAD, "overload", "/full", seconds=2.0, rounds_max=2),
    ),
    "/full",
    False,
)
BIG = Group(
    "slow",
    "Slow readers",
    "big",
    (Work(SLOW_READERS, "slow readers", "/big", connections=32, seconds=5.0, rounds_max=2),),
    "/big",
    False,
)
SCALE = Group(
    "scale",
    "More replicas",
    "scale",
    (
        Work("one more replica", "scale", told={"counts": [2, 3, 4]}, only=SERVES, rounds_max=1),
        Work("20 replicas", "scale", told={"counts": [20]}, only=SERVES, rounds_max=1, long=True),
        Work("100 replicas", "scale", told={"counts": [100]}, only=("Skate",), rounds_max=1),
    ),
    "/hello",
    False,
)
GROUPS = (START, HTTP, MODELS, STREAMS, FASTAPI, HANDLES, FAIRNESS, BIG, SCALE)
