"""Who blocks the loop of a replica: what follows from what a watchdog sees. Pure: times and stacks are given.

Law: a place is blamed only if the loop did not answer for the whole bound and one and the same step of user code was
seen running at two looks meanwhile; many short steps in a row, or a machine that gave us no time, are nobody's fault.
Each episode is counted; its log lines are at most two, and one place is named at most once in ``AGAIN_S``.
A strike against the replica's health is another matter: a loop that is silent for that long, whoever's fault it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from skate.core.specs import LoopBlocking

AGAIN_S = 60.0  # between two namings of one place in the log
PLACES_MAX = 32  # places counted by name; the others share ELSEWHERE
ELSEWHERE = "elsewhere"
LOOKS = 2  # within a bound: a block is seen for sure if it lasts half as long again as the bound


class Sample(NamedTuple):
    """What runs on the loop's thread: ``step`` is the same object as long as it is the same step of the loop."""

    step: object
    place: str  # "Model.__call__ (app.py:12)"
    inside: str = ""  # what that has called, if it is somewhere else


class Began(NamedTuple):
    """The loop has been silent for ``seconds``, and this is why."""

    sample: Sample
    seconds: float


class Ended(NamedTuple):
    """The loop answers again, after ``seconds``."""

    sample: Sample
    seconds: float


class LoopWatch:
    """Looks at the loop a few times within each bound. A ping that is not answered means that something runs there."""

    def __init__(self, bound_s: float) -> None:
        self.bound_s = bound_s
        self.pinged_at: float | None = None
        self._step: object = None
        self._blame: Sample | None = None

    @property
    def period_s(self) -> float:
        """Seconds between two looks."""
        return self.bound_s / LOOKS

    def look(
        self, now: float, busy: bool, answered_at: float | None, sample: Callable[[], Sample | None]
    ) -> Began | Ended | None:
        """One look. ``answered_at``: when the last ping was, None if it is not. A ping is due when ``pinged_at`` is
        ``now`` afterwards. ``sample`` is asked only when the loop has been silent for half the bound.
        """
        if self.pinged_at is not None and answered_at is None:
            return self._silent(now - self.pinged_at, sample)
        ended = None
        if self._blame is not None and self.pinged_at is not None and answered_at is not None:
            ended = Ended(self._blame, answered_at - self.pinged_at)
        self._step = self._blame = None
        self.pinged_at = now if busy else None
        return ended

    def _silent(self, seconds: float, sample: Callable[[], Sample | None]) -> Began | None:
        if self._blame is not None or seconds < self.bound_s / 2:
            return None
        found = sample()
        before, self._step = self._step, None if found is None else found.step
        if found is None or seconds < self.bound_s or found.step is not before:
            return None
        self._blame, self._step = found, None
        return Began(found, seconds)


class Silence:
    """How long the loop has been silent, in strikes. Only time that somebody watched counts: of a process that was
    stopped, or whose threads could not run, nobody knows what its loop would have done.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._looked_at: float | None = None

    def look(self, now: float, silent: bool, timeout_s: float, pause_s: float) -> int:
        """One look: strikes so far, one for each ``timeout_s``. ``pause_s``: what lies between two looks at most."""
        before, self._looked_at = self._looked_at, now
        if not silent:
            self.seconds = 0.0
        elif before is not None:
            self.seconds += min(now - before, pause_s)
        return int(self.seconds / timeout_s)


class _Tally:
    __slots__ = ("episodes", "said_at", "saying", "seconds", "unsaid", "unsaid_s")

    def __init__(self) -> None:
        self.episodes = 0
        self.seconds = 0.0
        self.said_at: float | None = None
        self.saying = False  # the episode under way has its line in the log
        self.unsaid = 0  # episodes since, of which the log knows nothing
        self.unsaid_s = 0.0


class Blockings:
    """Counts episodes by place and says what is worth a line of the log."""

    def __init__(self) -> None:
        self._places: dict[str, _Tally] = {}

    def note(self, event: Began | Ended, now: float) -> str | None:
        """Counts the event; the line to log, if one is due."""
        tally = self._tally(event.sample.place)
        return self._began(tally, event, now) if isinstance(event, Began) else self._ended(tally, event)

    def counts(self) -> tuple[LoopBlocking, ...]:
        """All places with their episodes and seconds since the start, the worst first."""
        seen = list(self._places.items())  # at once: the thread of the watchdog may add one meanwhile
        found = [LoopBlocking(place, one.episodes, one.seconds) for place, one in seen if one.episodes]
        return tuple(sorted(found, key=lambda one: -one.seconds))

    def _tally(self, place: str) -> _Tally:
        if place not in self._places and len(self._places) >= PLACES_MAX:
            place = ELSEWHERE
        return self._places.setdefault(place, _Tally())

    def _began(self, tally: _Tally, event: Began, now: float) -> str | None:
        tally.saying = tally.said_at is None or now - tally.said_at >= AGAIN_S
        if not tally.saying:
            return None
        tally.said_at = now
        before = f" It happened {tally.unsaid} times before, {tally.unsaid_s:.2f} s in all." if tally.unsaid else ""
        tally.unsaid, tally.unsaid_s = 0, 0.0
        inside = f", now inside {event.sample.inside}" if event.sample.inside else ""
        return (
            f"the event loop is blocked: {event.sample.place} has been running for {event.seconds:.2f} s{inside}. "
            "Nothing else of this replica goes on meanwhile. Write the handler with `def` (it then runs on a thread), "
            f"or put `await asyncio.to_thread(...)` around what is slow.{before}"
        )

    def _ended(self, tally: _Tally, event: Ended) -> str | None:
        tally.episodes += 1
        tally.seconds += event.seconds
        if tally.saying:
            tally.saying = False
            return f"the event loop goes on: it was blocked for {event.seconds:.2f} s by {event.sample.place}"
        tally.unsaid += 1
        tally.unsaid_s += event.seconds
        return None
