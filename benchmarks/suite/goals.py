"""What Skate should reach beside its peers, and whether it did. Law: pure; one rule judges all of them."""

from __future__ import annotations

from typing import Literal

import msgspec

from benchmarks.suite.results import Results
from benchmarks.suite.works import FAIRNESS, ORDER, OVERLOAD, SLOW_READERS, UNEVEN, UNEVEN_LIGHT

OWN = "Skate"
Verdict = Literal["pass", "short", "not measured"]


class Goal(msgspec.Struct, frozen=True):
    """One row. ``than``: the peer that Skate's figure is divided by; empty: the figure itself is judged."""

    text: str
    group: str
    work: str
    measure: str
    sense: Literal[">=", "<="]
    limit: float
    than: str = ""
    unit: str = ""


class Judged(msgspec.Struct, frozen=True):
    """A goal and what was seen."""

    goal: Goal
    seen: float | None
    own: float | None
    other: float | None

    @property
    def verdict(self) -> Verdict:
        """Against the limit."""
        if self.seen is None:
            return "not measured"
        met = self.seen >= self.goal.limit if self.goal.sense == ">=" else self.seen <= self.goal.limit
        return "pass" if met else "short"


def judge(goal: Goal, results: Results) -> Judged:
    """By the median of the rounds, and where a peer is beside by the median of the ratios of each round."""
    where = goal.group, goal.work, goal.measure
    own = results.value(*where, OWN)
    if not goal.than:
        return Judged(goal, own, own, None)
    return Judged(goal, results.ratio(*where, OWN, goal.than), own, results.value(*where, goal.than))


def _times(text: str, group: str, work: str, measure: str, **peers: float) -> tuple[Goal, ...]:
    names = {
        "ray": "Ray Serve",
        "haproxy": "Ray Serve, HAProxy",
        "mosec": "Mosec",
        "litserve": "LitServe",
        "bentoml": "BentoML",
        "starlette": "uvicorn + Starlette",
    }
    sense: Literal[">=", "<="] = "<=" if measure.startswith("p") else ">="
    return tuple(
        Goal(text, group, work, measure, sense, limit, names[peer], "x") for peer, limit in peers.items() if limit
    )


def _value(text: str, group: str, work: str, measure: str, sense: Literal[">=", "<="], limit: float, unit: str) -> Goal:
    return Goal(text, group, work, measure, sense, limit, "", unit)


_HELLO_64, _HELLO_1, _FAIR = "hello, 64 connections", "hello, 1 connection", FAIRNESS.name
_ORDER, _OVER = (_FAIR, ORDER), (_FAIR, OVERLOAD)

GOALS: tuple[Goal, ...] = (
    *_times(
        "HTTP hello, 64 connections", "http", _HELLO_64, "requests/s",
        ray=40, haproxy=5, mosec=1.8, litserve=15, bentoml=40, starlette=0.9,
    ),
    *_times("HTTP hello, 1 connection, p50", "http", _HELLO_1, "p50 µs", mosec=1, starlette=1.6),
    *_times("FastAPI ingress and two children, 64 connections", "fastapi", "64 connections", "requests/s", ray=15),
    *_times("handle call, p50", "handles", "call, 1 in flight", "p50 µs", ray=1 / 15),
    *_times("handle calls, 64 in flight", "handles", "calls, 64 in flight", "calls/s", ray=60),
    *_times("stream items, direct", "handles", "stream", "items/s", ray=100),
    *_times("stream items, through one", "handles", "stream through one that yields on", "items/s", ray=100),
    *_times("array of 10 MB", "handles", "array of 10 MB", "MB/s", ray=10),
    _value("array of 10 MB", "handles", "array of 10 MB", "MB/s", ">=", 3000, "MB/s"),
    *_times("array of 100 MB", "handles", "array of 100 MB", "MB/s", ray=10),
    _value("array of 100 MB", "handles", "array of 100 MB", "MB/s", ">=", 3000, "MB/s"),
    _value("one at a time, 4 replicas, 64 callers: of 400/s", *_ORDER, "of the ideal %", ">=", 97, "%"),
    _value("... first come, first served: overtaken by later ones", *_ORDER, "overtaken %", "<=", 0.5, "%"),
    _value("one of four slow, 72/s: p99 of round robin's", _FAIR, UNEVEN_LIGHT, "of round robin's p99", "<=", 0.5, "x"),
    _value("one of four slow, 150/s: p99 of round robin's", _FAIR, UNEVEN, "of round robin's p99", "<=", 0.5, "x"),
    _value("2 x overload: goodput of the capacity", *_OVER, "goodput of capacity %", ">=", 95, "%"),
    _value("... refused ones answered, p99", *_OVER, "refused p99 ms", "<=", 5, "ms"),
    _value("... with 503 and Retry-After (1: yes)", *_OVER, "refusals with 503 and Retry-After", ">=", 1, ""),
    _value("32 slow readers: worst process", "slow", SLOW_READERS, "MB above idle, worst process", "<=", 50, "MB"),
    _value("first answer after start", "start", "start", "s to the first answer", "<=", 0.8, "s"),
    _value("one more replica", "scale", "one more replica", "ms", "<=", 100, "ms"),
)  # fmt: skip
