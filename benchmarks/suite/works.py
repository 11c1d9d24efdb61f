"""The work: what is asked of every system, in groups that share one application. Law: values only, everything bounded.

A work measures one thing in one way, the same for all; who cannot do it says why (``System.lacks``) or lacks the application.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from benchmarks.suite.systems import Body

Kind = Literal["load", "websocket", "order", "uneven", "overload", "slow readers", "told", "start", "scale"]

KB, MB = 1024, 1 << 20


class Work(msgspec.Struct, frozen=True):
    """One line of the tables. What ``kind`` does not need stays at its default."""

    name: str
    kind: Kind = "load"
    path: str = ""
    body: Body = ""
    size: int = 0  # of the body
    connections: int = 1
    seconds: float = 1.0
    told: dict[str, str | int | float] = {}  # for ``told``: the line
    only: tuple[str, ...] = ()  # systems; empty: all that serve the application
    rounds_max: int = 50


class Group(msgspec.Struct, frozen=True):
    """Works that one application serves."""

    name: str
    app: str
    works: tuple[Work, ...]
    ready: str = ""  # the path that answers 200 when the application serves; empty: a line answers


SERVES = ("Skate", "Ray Serve", "Ray Serve, HAProxy")  # who has the whole programming model


def _hello(connections: int) -> Work:
    name = f"hello, {connections} connection{'s' if connections > 1 else ''}"
    return Work(name, path="/hello", connections=connections)


GROUPS = (
    Group(
        "http",
        "http",
        (
            *(_hello(connections) for connections in (1, 16, 64, 256)),
            Work("hello, 64 connections, default options", path="/default", connections=64, only=SERVES),
            Work("JSON echo of 1 KB, 64 connections", path="/json", body="json", size=KB, connections=64),
            Work("POST of 1 MB, 16 connections", path="/length", body="bytes", size=MB, connections=16),
            Work("POST of 10 MB, 4 connections", path="/length", body="bytes", size=10 * MB, connections=4),
        ),
        ready="/hello",
    ),
)
