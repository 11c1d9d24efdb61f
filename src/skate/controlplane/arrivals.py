"""What follows when a revision of an application is there: it is remembered as one that worked, and the deployments
of former revisions go. First no new call comes to them, then those that wait or are in hand end, then replicas stop.

Law: no call fails because a deployment was renamed or dropped, as long as it ends within the grace of that deployment.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from skate.controlplane.decide.retire import is_there
from skate.controlplane.decide.values import Goal
from skate.controlplane.state import State
from skate.controlplane.store import Row, revision_row

TOLD_S = 1.0  # until every router has taken up the new routes and told its counts since
AGAIN_S = 0.25  # to look whether the last calls have ended


class Arrivals:
    """Of all applications of one controller."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._since: dict[str, float] = {}  # when the present revision began to answer, where former ones still stand

    def look(self, names: Iterable[str], now: float) -> float | None:
        """At these applications and those that are under way; when to look again."""
        times = []
        for name in {*names, *self._since}:
            goal = self._state.goals.get(name)
            if goal is not None and not goal.deleting and not goal.worked and is_there(goal, self._state.memory):
                goal = replace(goal, worked=True, former=None)
                self._set(goal, revision_row(goal))
            if goal is None or goal.deleting or not goal.retiring:
                self._since.pop(name, None)
            elif goal.worked:
                times += self._retire(goal, now)
        return min(times, default=None)

    def _retire(self, goal: Goal, now: float) -> list[float]:
        since = self._since.setdefault(goal.spec.name, now)
        specs = [spec for app in goal.retiring for spec in app.deployments]
        grace_s = max(spec.options.graceful_shutdown_timeout_s for spec in specs)
        busy = any(self._state.loads.open(spec.key) for spec in specs)
        if now >= since + TOLD_S and (not busy or now >= since + grace_s):
            del self._since[goal.spec.name]
            self._set(replace(goal, retiring=()))
            return []
        return [max(since + TOLD_S, now + AGAIN_S)]

    def _set(self, goal: Goal, *more: Row) -> None:
        self._state.records.put(Row("goal", goal.spec.name, goal), *more)
        self._state.set_goal(goal)
