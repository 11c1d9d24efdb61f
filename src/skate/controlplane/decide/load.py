"""How many calls a deployment has in hand, now and over the last seconds. Law: a call is counted once, in the router
that has it; a router that is gone has none.

Routers push their counts when they change (``LedgerReport``), so the load of a deployment is a step function of time: a
point holds until the next. Its window is a bounded value; points that lie close together become one that keeps the
mean, the least and the most. ``Loads`` adds up the pushes; what nobody scales by costs three numbers and no window.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import msgspec
from msgspec.structs import replace

from skate.core.specs import LedgerReport

POINTS_MAX = 256  # in one window; then close ones are put together
GRAINS = 64  # a window is kept in at least so many parts
SETTLE_S = 2.0  # within it every living router has found a new controller: it tries at least every 0.5 s

Aggregation = Literal["mean", "max", "min"]


class LoadPoint(msgspec.Struct, frozen=True, array_like=True):
    """The load from ``at`` until the next point. ``least`` and ``most``: of ``total`` meanwhile."""

    at: float
    total: float  # calls that are open
    queued: float  # those of them that wait in a router
    came: float  # calls that ever came, counted from some moment on
    least: float
    most: float


class Load(msgspec.Struct, frozen=True):
    """The load of one deployment over its window, oldest first. Before ``complete_at`` routers may be missing: it is at
    least this much."""

    points: tuple[LoadPoint, ...] = ()
    complete_at: float = float("-inf")

    @property
    def total(self) -> float:
        """Calls that are open now."""
        return self.points[-1].total if self.points else 0.0

    def seen(self, at: float, total: float, queued: float, came: float, keep_s: float) -> Load:
        """The load after one more push; ``keep_s`` of the past is kept."""
        before = self.points
        if before and at <= before[-1].at:  # the same moment: the later word counts
            at, before = before[-1].at, before[:-1]
        point = LoadPoint(at, total, queued, came, total, total)
        points = (*before, point)
        first = 0
        while first + 1 < len(points) and points[first + 1].at <= at - keep_s:
            first += 1
        points = points[first:]
        return replace(self, points=points if len(points) <= POINTS_MAX else coarser(points, keep_s / GRAINS))


def coarser(points: tuple[LoadPoint, ...], grain_s: float) -> tuple[LoadPoint, ...]:
    """The same window with neighbours put together that lie within ``grain_s``; the last one stays as it is."""
    kept: list[LoadPoint] = []
    for point, following in pairwise(points):
        before = kept[-1] if kept else None
        if before is None or following.at - before.at > grain_s:
            kept.append(point)
            continue
        first_s, second_s = point.at - before.at, following.at - point.at
        whole_s = first_s + second_s
        kept[-1] = LoadPoint(
            before.at,
            (before.total * first_s + point.total * second_s) / whole_s,
            (before.queued * first_s + point.queued * second_s) / whole_s,
            point.came,
            min(before.least, point.least),
            max(before.most, point.most),
        )
    return (*kept, points[-1])


class Demand(msgspec.Struct, frozen=True):
    """A window as numbers."""

    total: float = 0.0
    queued: float = 0.0
    requests_per_s: float = 0.0

    @property
    def ongoing(self) -> float:
        """Calls in the hands of replicas."""
        return max(0.0, self.total - self.queued)


RATE_SPAN_S = 1.0  # a shorter window says nothing about a rate


class Window:
    """A load that is asked for its numbers at several moments: it is added up once."""

    __slots__ = ("_area", "_queued", "_starts", "points")

    def __init__(self, load: Load) -> None:
        self.points = points = load.points
        self._starts = [point.at for point in points]
        self._area = [0.0]  # of total, up to each point
        self._queued = [0.0]
        for point, following in pairwise(points):
            span_s = following.at - point.at
            self._area.append(self._area[-1] + point.total * span_s)
            self._queued.append(self._queued[-1] + point.queued * span_s)

    def demand(self, look_back_s: float, how: Aggregation, now: float) -> Demand:
        """The window that ends ``now``: time-weighted means, or the most or least for ``total``; calls per second."""
        if not self.points:
            return Demand()
        last = self.points[-1]
        start = max(self._starts[0], now - look_back_s)
        if start >= now or now < last.at:  # there is no past yet, or the clock was set back by a reboot
            return Demand(last.total, min(last.queued, last.total))
        index = bisect_right(self._starts, start) - 1
        first = self.points[index]
        span_s, ago_s, cut_s = now - start, now - last.at, start - first.at
        total = self._area[-1] + last.total * ago_s - self._area[index] - first.total * cut_s
        queued = self._queued[-1] + last.queued * ago_s - self._queued[index] - first.queued * cut_s
        rate = max(0.0, last.came - first.came) / max(span_s, RATE_SPAN_S)
        if how == "mean":
            reduced = total / span_s
        else:
            inside = self.points[index:] if ago_s > 0 else self.points[index:-1]
            reduced = max(one.most for one in inside) if how == "max" else min(one.least for one in inside)
        return Demand(reduced, max(0.0, min(queued / span_s, reduced)), rate)

    def turns(self, look_back_s: float, now: float, most: int) -> list[float]:
        """The next moments at which a point leaves the window; between two of them every number of ``demand`` moves in
        one direction, and after the last one nothing moves while no call comes or goes."""
        after_s = 1e-6  # so that the point has surely left, whatever the rounding
        first = bisect_right(self._starts, now - look_back_s - after_s)
        return [at + look_back_s + after_s for at in self._starts[first : first + most]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Window) and self.points == other.points

    def __hash__(self) -> int:
        return hash(self.points)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the most that was open at any time in it."""
        return min(one.least for one in self.points), max(one.most for one in self.points)


def demand(load: Load, look_back_s: float, how: Aggregation, now: float) -> Demand:
    """The numbers of one moment."""
    return Window(load).demand(look_back_s, how, now)


class Loads:
    """The calls of all routers, by deployment, and a window for each deployment that scales with them."""

    def __init__(self, started_at: float) -> None:
        self._complete_at = started_at + SETTLE_S
        self._live: dict[int, dict[str, LedgerReport]] = {}  # what each connection said last
        self._sums: dict[str, _Sum] = {}
        self._windows: dict[str, Load] = {}  # of those that are watched
        self._keep_s: dict[str, float] = {}

    def report(self, connection: int, news: Mapping[str, LedgerReport], now: float) -> set[str]:
        """The totals of a process: on a new connection all, later those that changed. Which watched loads changed."""
        known = self._live.setdefault(connection, {})
        for key, report in news.items():
            before = known.get(key)
            # Of a router that comes back, or comes to a new controller, only what is open has surely come just now.
            base = before.accepted if before is not None else report.accepted - report.open
            self._add(key, report, 1, max(0, report.accepted - base))
            if before is not None:
                self._add(key, before, -1, 0)
            known[key] = report
        return {key for key in news if self._note(key, now)}

    def left(self, connection: int, now: float) -> set[str]:
        """The connection is gone, and with it every call that its router had. Which watched loads changed."""
        gone = self._live.pop(connection, {})
        for key, report in gone.items():
            self._add(key, report, -1, 0)
        changed = {key for key in gone if self._note(key, now)}
        for key in gone:
            if key not in self._windows and not self._sums[key].reporters:
                del self._sums[key]
        return changed

    def watch(self, key: str, keep_s: float, now: float) -> Load:
        """The load of a deployment that scales; from the first call on its last ``keep_s`` are kept."""
        self._keep_s[key] = keep_s
        load = self._windows.get(key)
        if load is None:
            total = self._sums.setdefault(key, _Sum())
            load = Load(complete_at=self._complete_at).seen(now, total.open, total.queued, total.came, keep_s)
            self._windows[key] = load
        return load

    def open(self, key: str) -> int:
        """How many calls of a deployment are open, as far as routers have said so."""
        total = self._sums.get(key)
        return total.open if total is not None else 0

    def forget(self, key: str) -> None:
        """The deployment does not scale any more, or is gone."""
        self._windows.pop(key, None)
        self._keep_s.pop(key, None)
        if key in self._sums and not self._sums[key].reporters:
            del self._sums[key]

    def watched(self) -> set[str]:
        """Whose load is kept."""
        return set(self._windows)

    def _add(self, key: str, report: LedgerReport, sign: int, came: int) -> None:
        total = self._sums.setdefault(key, _Sum())
        total.open += sign * report.open
        total.queued += sign * report.queued
        total.reporters += sign
        total.came += came

    def _note(self, key: str, now: float) -> bool:
        load = self._windows.get(key)
        if load is None:
            return False
        total, last = self._sums[key], load.points[-1]
        if (last.total, last.queued, last.came) == (total.open, total.queued, total.came):
            return False
        self._windows[key] = load.seen(now, total.open, total.queued, total.came, self._keep_s[key])
        return True


class _Sum:
    """The calls of one deployment in all routers."""

    __slots__ = ("came", "open", "queued", "reporters")

    def __init__(self) -> None:
        self.open = 0
        self.queued = 0
        self.came = 0
        self.reporters = 0
