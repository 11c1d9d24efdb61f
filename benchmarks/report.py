"""What was measured, as values, as a table and as a JSON file. Law: a figure is judged against its target by one rule
here, and every round stands in the file, so that a median can be doubted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from benchmarks.stats import median

Unit = Literal["µs", "ms", "s", "/s", "%", "MB", ""]  # "": a count
Verdict = Literal["pass", "short", ""]


class Target(msgspec.Struct, frozen=True):
    """What a figure should reach. ``of``: Skate's own value, or its ratio to the peer's."""

    limit: float
    sense: Literal[">=", "<=", "<"]
    of: Literal["value", "ratio"] = "value"

    def met_by(self, value: float) -> bool:
        """Whether a measured value reaches it."""
        if self.sense == ">=":
            return value >= self.limit
        return value <= self.limit if self.sense == "<=" else value < self.limit


class Figure(msgspec.Struct, frozen=True):
    """One line of the table. The rounds of the peer belong to those of Skate, one by one."""

    name: str
    unit: Unit
    rounds: tuple[float, ...]
    peer_rounds: tuple[float, ...] = ()
    target: Target | None = None  # None: for information

    @property
    def value(self) -> float:
        """The median of Skate's rounds."""
        return median(self.rounds)

    @property
    def peer_value(self) -> float | None:
        """The median of the peer's rounds."""
        return median(self.peer_rounds) if self.peer_rounds else None

    @property
    def ratio(self) -> float | None:
        """The median of the ratios of each round: what slows the machine for a while slows both sides of a round."""
        if not self.peer_rounds:
            return None
        return median([own / other for own, other in zip(self.rounds, self.peer_rounds, strict=True)])

    @property
    def verdict(self) -> Verdict:
        """Against the target; empty without one."""
        if self.target is None:
            return ""
        judged = self.ratio if self.target.of == "ratio" else self.value
        return "pass" if judged is not None and self.target.met_by(judged) else "short"


class Section(msgspec.Struct, frozen=True):
    """Figures that were measured together, and remarks that belong to them. ``peer``: what the column beside shows."""

    name: str
    figures: tuple[Figure, ...] = ()
    peer: str = ""
    remarks: tuple[str, ...] = ()
    details: dict[str, Any] = {}
    failure: str = ""  # why there are no figures


# -- the table ------------------------------------------------------------------------------------


def shown(value: float, unit: Unit) -> str:
    """A value with its unit, with three digits that mean something."""
    if not unit:
        return f"{value:,g}"
    number = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return number + (unit if unit in ("/s", "%") else f" {unit}")


def shown_target(target: Target | None, unit: Unit) -> str:
    """A target as it stands in the table."""
    if target is None:
        return ""
    limit = f"{target.limit:g}x" if target.of == "ratio" else shown(target.limit, unit)
    return f"{target.sense} {limit}"


HEADINGS = ("", "Skate", "beside", "ratio", "target", "", "rounds from", "to")


def row(figure: Figure) -> tuple[str, ...]:
    """The cells of one line."""
    peer, ratio = figure.peer_value, figure.ratio
    return (
        figure.name,
        shown(figure.value, figure.unit),
        "" if peer is None else shown(peer, figure.unit),
        "" if ratio is None else f"{ratio:.2f}x",
        shown_target(figure.target, figure.unit),
        figure.verdict,
        *(("", "") if len(figure.rounds) < 2 else (shown(ends(figure.rounds), figure.unit) for ends in (min, max))),
    )


def table(sections: Sequence[Section]) -> str:
    """All sections, columns below each other, remarks below their section."""
    rows = {section.name: [row(figure) for figure in section.figures] for section in sections}
    every = [HEADINGS, *(cells for group in rows.values() for cells in group)]
    widths = [max(len(cells[column]) for cells in every) for column in range(len(HEADINGS))]
    lines = [_line(HEADINGS, widths)]
    for section in sections:
        lines += ["", section.name + (f"; beside: {section.peer}" if section.peer else "")]
        lines += [_line(cells, widths) for cells in rows[section.name]]
        if section.failure:
            lines.append(f"  not measured: {section.failure}")
        lines += [f"  {remark}" for remark in section.remarks]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [cell.ljust(width) if column in (0, 5) else cell.rjust(width)
               for column, (cell, width) in enumerate(zip(cells, widths, strict=True))]  # fmt: skip
    return ("  " + "  ".join(aligned)).rstrip()


# -- the file -------------------------------------------------------------------------------------


def as_json(run: dict[str, Any], sections: Sequence[Section]) -> bytes:
    """Everything: the run (machine, versions, date) and each figure with its rounds."""
    groups = [
        {
            "name": section.name,
            "peer": section.peer,
            "failure": section.failure,
            "remarks": section.remarks,
            "figures": [_plain(figure) for figure in section.figures],
            "details": section.details,
        }
        for section in sections
    ]
    return msgspec.json.format(msgspec.json.encode({**run, "sections": groups}), indent=2) + b"\n"


def _plain(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "unit": figure.unit,
        "value": figure.value,
        "peer_value": figure.peer_value,
        "ratio": figure.ratio,
        "target": figure.target,
        "verdict": figure.verdict,
        "rounds": figure.rounds,
        "peer_rounds": figure.peer_rounds,
    }


def write(path: Path, data: bytes) -> None:
    """Puts the file in its place as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_bytes(data)
    beside.replace(path)
