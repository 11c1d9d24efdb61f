"""What the soak asserts. Law: pure; numbers in, complaints out, and each bound stands here with its reason.

Bounds on time and memory are about growth, never about speed: a slow machine is no failure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

# Growth of a process's own memory over the measured time, in kB. An allocator keeps pages back for its own reasons
# (arenas of 256 kB, the window of a stream that was just read, an array in flight); that noise stays as it is, so one
# bound on the whole growth is sharper the longer the soak: 200 bytes lost with a call are seen within two minutes.
GROWTH_KB = 2048.0
GROWTH_NOISE = 4.0  # times the standard error of the fitted growth, where samples scatter more: one in 30,000 by chance
SAMPLES_MIN = 20  # below, a slope says nothing
# Medians of the last third against the middle third. The machine's own load moves them by some ten per cent;
# whatever accumulates (a queue, a list that is walked) shows as a multiple.
SLOWER_MAX = 1.5
SLOWER_MIN_S = 0.001  # a rise below this is the scheduler's
MACHINE_MAX = 1.25  # the same for the machine's own pulse; beyond, latency is not judged
CALLS_MIN = 50  # in each third, for a median to be compared
FILES_MORE = 1  # descriptors at rest afterwards against before: a connection that was just being opened
EXAMPLES_MAX = 5  # texts kept of each way that should not be

THIRDS = ("first", "middle", "last")


class Spread:
    """Durations in buckets of 5 %, in constant memory."""

    SHORTEST_S, STEP, BUCKETS = 20e-6, math.log(1.05), 310  # 20 us to 75 s

    def __init__(self) -> None:
        self.counts = [0] * self.BUCKETS
        self.count = 0

    def add(self, seconds: float) -> None:
        place = int(math.log(max(seconds, self.SHORTEST_S) / self.SHORTEST_S) / self.STEP)
        self.counts[min(place, self.BUCKETS - 1)] += 1
        self.count += 1

    def percentile(self, percent: float) -> float:
        """Seconds, within 5 %; nan of nothing."""
        left = percent / 100 * self.count
        for place, count in enumerate(self.counts):
            left -= count
            if count and left <= 0:
                return float(self.SHORTEST_S * math.exp((place + 0.5) * self.STEP))
        return math.nan


@dataclass
class Tally:
    """What became of the calls of one kind."""

    name: str
    words: frozenset[str]
    made: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)  # of what should not be
    times: dict[str, Spread] = field(default_factory=lambda: {third: Spread() for third in THIRDS})

    def complaints(self) -> list[str]:
        found = []
        if self.made != self.seen.total():
            found.append(f"{self.name}: {self.made} calls were made and {self.seen.total()} ended")
        bad = {word: count for word, count in self.seen.items() if word not in self.words and word != DIED}
        if bad:
            found.append(f"{self.name}: {bad}; such as: {'; '.join(self.examples) or '?'}")
        if self.made and not any(word in self.words for word in self.seen):
            found.append(f"{self.name}: none of {self.made} calls ended as it should")
        return found

    def slower(self) -> str:
        """Whether the last third took longer than the middle one."""
        middle, last = self.times["middle"], self.times["last"]
        if min(middle.count, last.count) < CALLS_MIN:
            return ""
        before, after = middle.percentile(50), last.percentile(50)
        if after > SLOWER_MAX * before and after - before > SLOWER_MIN_S:
            return f"{self.name}: the median went from {before * 1e3:.2f} to {after * 1e3:.2f} ms"
        return ""


def machine_slower(pulse: dict[str, Spread]) -> float:
    """How much slower the machine's pulse was in the last third than in the middle one; 1.0 if it was not felt."""
    middle, last = pulse["middle"], pulse["last"]
    if min(middle.count, last.count) < CALLS_MIN:
        return 1.0
    return last.percentile(50) / middle.percentile(50)


DIED = "died, and was told so"


@dataclass(frozen=True)
class Growth:
    """A line through samples of memory: growth over their whole time in kB, and its standard error."""

    kb: float
    error_kb: float

    @property
    def bound_kb(self) -> float:
        return max(GROWTH_KB, GROWTH_NOISE * self.error_kb)


def growth(at_s: Sequence[float], kb: Sequence[float]) -> Growth | None:
    """Least squares; None for too few samples."""
    n = len(at_s)
    if n < SAMPLES_MIN:
        return None
    mean_t, mean = sum(at_s) / n, sum(kb) / n
    spread = sum((t - mean_t) ** 2 for t in at_s)
    if spread == 0:
        return None
    slope = sum((t - mean_t) * (value - mean) for t, value in zip(at_s, kb, strict=True)) / spread
    left = sum((value - mean - slope * (t - mean_t)) ** 2 for t, value in zip(at_s, kb, strict=True))
    seconds = max(at_s) - min(at_s)
    return Growth(slope * seconds, math.sqrt(left / (n - 2) / spread) * seconds)


def more_files(before: dict[int, int], after: dict[int, int]) -> dict[int, tuple[int, int]]:
    """Processes that hold more descriptors at rest than before."""
    return {
        pid: (before[pid], after[pid]) for pid in before.keys() & after.keys() if after[pid] > before[pid] + FILES_MORE
    }


def third_of(now_s: float, warm_s: float, end_s: float) -> str | None:
    """Which third of the measured time this is; None while warming up."""
    if now_s < warm_s:
        return None
    return THIRDS[min(2, int(3 * (now_s - warm_s) / max(end_s - warm_s, 1e-9)))]


@dataclass(frozen=True)
class Kill:
    """One replica that was killed, and when."""

    replica: str
    at_s: float


def told_of_death(text: str, kills: Iterable[Kill]) -> bool:
    """Whether an error says that a replica died, and one that was killed."""
    return "died" in text and any(kill.replica in text for kill in kills)


def cut_by_death(began_s: float, ended_s: float, kills: Iterable[Kill]) -> bool:
    """Whether a replica was killed while a call was under way whose stream was cut."""
    return any(began_s <= kill.at_s <= ended_s for kill in kills)
