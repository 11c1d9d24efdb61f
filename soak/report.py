"""The report of a soak: what a person reads, and the same as JSON. Law: every complaint stands at its end."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from soak.judge import THIRDS, Kill, Spread, Tally, growth
from soak.watch import Watched


@dataclass
class Result:
    """Everything that a soak saw. ``faults`` must not be anywhere; ``drifts`` say something on a calm machine only."""

    seconds: float
    warm_s: float
    tallies: list[Tally]
    kills: list[Kill] = field(default_factory=list)
    watched: list[Watched] = field(default_factory=list)
    ledger: dict[str, int] = field(default_factory=dict)
    ledger_polls: int = 0
    faults: list[str] = field(default_factory=list)
    drifts: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    pulse: dict[str, Spread] = field(default_factory=lambda: {third: Spread() for third in THIRDS})

    @property
    def calls(self) -> int:
        return sum(tally.made for tally in self.tallies)


def text(result: Result) -> str:
    """The report."""
    lines = [
        f"{result.calls} calls in {result.seconds:.0f} s ({result.calls / result.seconds:.0f}/s), "
        f"{result.warm_s:.0f} s of them to warm up; {len(result.kills)} replicas killed; "
        f"the ledger balanced at {result.ledger_polls} polls",
        "",
        f"{'kind of call':36}{'calls':>8}  {'p50 ms: middle, last third':>28}{'p99 ms':>10}  ended as",
    ]
    for tally in result.tallies:
        ends = ", ".join(f"{word} {count}" for word, count in tally.seen.most_common())
        lines.append(f"{tally.name:36}{tally.made:>8}  {_times(tally.times)}  {ends}")
    beats = sum(spread.count for spread in result.pulse.values())
    lines.append(f"{'(pulse of the machine, no Skate)':36}{beats:>8}  {_times(result.pulse)}")
    lines += [
        "",
        f"{'process':44}{'memory MB: from, to':>20}{'shared, most':>14}{'growth kB':>11}{'bound':>7}"
        f"{'files':>11}{'threads':>9}",
    ]
    lines += [_process(one, result) for one in result.watched if len(one.at_s) > 1]
    lines += ["", "ledger: " + ", ".join(f"{name} {count}" for name, count in result.ledger.items()), ""]
    lines += result.remarks
    for name, complaints in (("FAULTS", result.faults), ("DRIFTS", result.drifts)):
        lines += [f"{name}: {len(complaints) or 'none'}", *(f"  - {one}" for one in complaints)]
    return "\n".join(lines)


def _times(times: dict[str, Spread]) -> str:
    middle, last = times["middle"], times["last"]
    numbers = [spread * 1e3 for spread in (middle.percentile(50), last.percentile(50), last.percentile(99))]
    shown = ["" if math.isnan(number) else f"{number:.2f}" for number in numbers]
    return f"{shown[0]:>14}{shown[1]:>14}{shown[2]:>10}"


def _process(one: Watched, result: Result) -> str:
    steady = measured(one, result)
    found = growth(*steady) if steady is not None else None
    fit = f"{found.kb:>11.0f}{found.bound_kb:>7.0f}" if found is not None else f"{'-':>11}{'':>7}"
    shared = f"{max(one.shared_kb, default=0) / 1024:.1f}"
    sizes = f"{one.memory_kb[0] / 1024:.1f}, {one.memory_kb[-1] / 1024:.1f}"
    files = f"{min(one.files)}-{max(one.files)}"
    return f"{one.title[:43]:44}{sizes:>20}{shared:>14}{fit}{files:>11}{max(one.threads):>9}"


def measured(one: Watched, result: Result) -> tuple[list[float], list[float]] | None:
    """Samples after the warm-up of a process that was there all the time; None if it was not."""
    if not one.at_s or one.at_s[0] > result.warm_s or one.at_s[-1] < result.seconds - 5:
        return None
    pairs = [pair for pair in zip(one.at_s, one.memory_kb, strict=True) if result.warm_s <= pair[0] <= result.seconds]
    return [at for at, _ in pairs], [kb for _, kb in pairs]


def as_json(result: Result, run: dict[str, Any]) -> bytes:
    """Everything, samples included."""
    plain = {
        **run,
        "seconds": round(result.seconds, 1),
        "calls": result.calls,
        "faults": result.faults,
        "drifts": result.drifts,
        "remarks": result.remarks,
        "ledger": result.ledger,
        "kills": [{"replica": kill.replica, "at_s": round(kill.at_s, 2)} for kill in result.kills],
        "kinds": [
            {
                "name": tally.name,
                "made": tally.made,
                "ended": dict(tally.seen),
                "examples": tally.examples,
                "ms": {
                    third: {str(p): _ms(spread.percentile(p)) for p in (50, 90, 99)}
                    for third, spread in tally.times.items()
                },
            }
            for tally in result.tallies
        ],
        "processes": [
            {
                "title": one.title,
                "at_s": [round(at, 1) for at in one.at_s],
                "memory_kb": list(one.memory_kb),
                "shared_kb": list(one.shared_kb),
                "files": list(one.files),
                "threads": list(one.threads),
            }
            for one in result.watched
        ],
    }
    return json.dumps(plain).encode() + b"\n"


def _ms(seconds: float) -> float | None:
    return None if math.isnan(seconds) else round(seconds * 1e3, 3)
