"""What was seen: every round of every work of every system, and what could not be seen and why. Law: pure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.processes import Cost
from benchmarks.stats import median
from benchmarks.suite.systems import ROOT

Rounds = tuple[float, ...]


def impersonal(text: str) -> str:
    """A text without the folders of this machine: results are published."""
    for folder in (str(ROOT), sys.base_prefix, str(Path.home())):
        text = text.replace(f"{folder}/", "")
    return text


def processes_of(costs: Sequence[Cost]) -> list[Cost]:
    """The same, each with a title that says what it is: no folders, and a program without its interpreter."""
    return [msgspec.structs.replace(cost, title=title(cost.title)) for cost in costs]


def title(command: str) -> str:
    """Of a command line; of what a process calls itself, that."""
    words = [word.rpartition("/")[2] if word.startswith("/") else word for word in command.split()]
    if words and words[0].startswith("python"):
        words = [word for word in words[1:] if not word.startswith("-")] or words
    elif words and command.startswith("/"):
        words = words[:1]
    return " ".join(words)


class Failure(msgspec.Struct, frozen=True):
    """``work`` empty: the whole group."""

    system: str
    group: str
    work: str
    reason: str


class Results:
    """Grows while the run goes on."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = {}  # group, work, measure, system
        self.failures: list[Failure] = []
        self.processes: dict[str, list[Cost]] = {}  # of a system that serves hello and is asked nothing

    def add(self, system: str, group: str, work: str, values: dict[str, float]) -> None:
        """One round."""
        measures = self.seen.setdefault(group, {}).setdefault(work, {})
        for measure, value in values.items():
            measures.setdefault(measure, {}).setdefault(system, []).append(value)

    def fail(self, system: str, group: str, work: str, reason: str) -> None:
        """Notes why something is missing, once."""
        if not self.failed(system, group, work):
            self.failures.append(Failure(system, group, work, impersonal(reason)))

    def failed(self, system: str, group: str, work: str) -> bool:
        """Whether this work, or its whole group, is missing."""
        return any(f.system == system and f.group == group and f.work in ("", work) for f in self.failures)

    def rounds(self, group: str, work: str, measure: str, system: str) -> Rounds:
        """In order; empty if there are none."""
        return tuple(self.seen.get(group, {}).get(work, {}).get(measure, {}).get(system, ()))

    def value(self, group: str, work: str, measure: str, system: str) -> float | None:
        """The median of the rounds."""
        rounds = self.rounds(group, work, measure, system)
        return median(rounds) if rounds else None

    def ratio(self, group: str, work: str, measure: str, system: str, other: str) -> float | None:
        """The median of the ratios of each round: what slows the machine for a while slows both sides of a round."""
        pairs = zip(self.rounds(group, work, measure, system), self.rounds(group, work, measure, other), strict=False)
        ratios = [own / beside for own, beside in pairs if beside]
        return median(ratios) if ratios else None

    def plain(self) -> dict[str, Any]:
        """For the file."""
        return {"seen": self.seen, "failures": self.failures, "processes": self.processes}
