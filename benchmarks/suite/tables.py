"""The results as text. Law: pure; Markdown that also reads well on a screen. A cell is the median of its rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.suite.goals import GOALS, Judged, judge
from benchmarks.suite.results import Failure, Results
from benchmarks.suite.works import GROUPS, Group

BUSY_CORES, BUSY_MARK = 0.9, "°"
REASON_MAX = 240
HIDDEN = {"load cores"}

Rows = list[list[str]]


def shown(value: float | None) -> str:
    """Three digits that mean something."""
    if value is None:
        return "–"
    if value != value:
        return "?"
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 1
        else f"{value:.3g}"
    )


def grid(headings: Sequence[str], rows: Rows) -> str:
    """A Markdown table with its columns below each other; the first to the left, the others to the right."""
    every = [list(headings), *rows]
    widths = [max(3, *(len(row[column]) for row in every)) for column in range(len(headings))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        for row in every
    ]
    lines.insert(1, rule)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# -- goals ----------------------------------------------------------------------------------------


def goals_table(results: Results) -> str:
    """What Skate should reach: seen, target, verdict."""
    rows = [_goal_row(judge(goal, results)) for goal in GOALS]
    return grid(("what", "Skate", "beside", "", "seen", "target", ""), rows)


def _goal_row(judged: Judged) -> list[str]:
    goal = judged.goal
    unit = "" if goal.unit == "x" else f" {goal.unit}"
    sign = {">=": "≥", "<=": "≤"}[goal.sense]
    factor = "x" if goal.unit == "x" else ""
    limit = f"{sign} {goal.limit:.3g}{factor}{unit}".rstrip()
    seen = "–" if judged.seen is None else f"{shown(judged.seen)}{factor}{unit}".rstrip()
    own = f"{shown(judged.own)} {goal.measure.split()[-1] if goal.than else ''}".rstrip() if goal.than else ""
    return [goal.text, own, shown(judged.other) if goal.than else "", goal.than, seen, limit, judged.verdict]


def short(results: Results) -> list[str]:
    """The goals that were not reached, or not measured, one line each."""
    judged = (judge(goal, results) for goal in GOALS)
    return [
        f"{j.verdict}: {j.goal.text}{f' ({j.goal.than})' if j.goal.than else ''}" for j in judged if j.verdict != "pass"
    ]


# -- groups ---------------------------------------------------------------------------------------


def group_text(group: Group, results: Results, systems: Sequence[str]) -> str:
    """All tables of a group, and why cells are empty."""
    seen = results.seen.get(group.name, {})
    there = [name for name in systems if any(name in by for work in seen.values() for by in work.values())]
    parts = [f"## {group.title}"]
    if there and group.by_measure:
        parts += [
            f"**{measure}**\n\n" + grid(("", *there), _rows(group, results, there, measure))
            for measure in _measures(seen)
        ]
    elif there:
        rows = []
        for work in group.works:
            for measure in _measures({work.name: seen.get(work.name, {})}):
                name = measure if len(group.works) == 1 else f"{work.name}: {measure}"
                rows.append([name, *(shown(results.value(group.name, work.name, measure, who)) for who in there)])
        parts.append(grid(("", *there), rows))
    parts += missing([failure for failure in results.failures if failure.group == group.name])
    return "\n\n".join(parts)


def _measures(seen: dict[str, dict[str, Any]]) -> list[str]:
    found: dict[str, None] = {}
    for measures in seen.values():
        found.update(dict.fromkeys(measures))
    return [name for name in found if name not in HIDDEN]


def _rows(group: Group, results: Results, systems: Sequence[str], measure: str) -> Rows:
    rows = []
    for work in group.works:
        if measure not in results.seen.get(group.name, {}).get(work.name, {}):
            continue
        cells = []
        for who in systems:
            cores = results.value(group.name, work.name, "load cores", who) or 0.0
            cell = shown(results.value(group.name, work.name, measure, who))
            cells.append(cell + (BUSY_MARK if cores > BUSY_CORES and cell != "–" else ""))
        rows.append([work.name, *cells])
    return rows


def missing(failures: Sequence[Failure]) -> list[str]:
    """One line for each."""
    lines = [f"- {f.system}{f', {f.work}' if f.work else ''}: {reason(f.reason)}" for f in failures]
    return ["Not measured:\n\n" + "\n".join(lines)] if lines else []


def reason(text: str) -> str:
    """One line: of a long story its beginning and its end, which is where a traceback says what happened."""
    words = " ".join(text.split())
    return words if len(words) <= REASON_MAX else f"{words[: REASON_MAX // 3]} … {words[-REASON_MAX * 2 // 3 :]}"


def processes_table(results: Results) -> str:
    """Memory of every process of every system that serves hello from one replica and is asked nothing."""
    rows: Rows = []
    for system, costs in results.processes.items():
        for cost in sorted(costs, key=lambda cost: -cost.private_mb):
            title = cost.title if len(cost.title) <= TITLE_MAX else cost.title[: TITLE_MAX - 1] + "…"
            rows.append(
                [system, title.replace("|", "/"), shown(cost.private_mb), shown(cost.pss_mb), str(cost.threads)]
            )
    return "## Memory of every process\n\n" + grid(("", "process", "private MB", "PSS MB", "threads"), rows)


TITLE_MAX = 60


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def _about(run: dict[str, Any]) -> list[str]:
    box = run["machine"]
    where = f"{box['cores']} cores of {box['cpu']}, {box['memory_mb']:,} MB, {box['system']}"
    what = f"Python {run['versions']['python']}, commit {run['commit'][:12] or 'unknown'}, {run['date']}"
    return [
        f"{where}, {what}; load by {run['load']}; {run['rounds']} rounds in turn, {run['seconds']:.0f} s in all. "
        f"Others used {_percent(run['busy_before'])} of the cores before and {_percent(run['busy_after'])} after. "
        "A cell is the median of its rounds, a ratio the median of the ratios of each round. "
        "Only ratios of one run compare.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in run["peers"].items()) + ".",
    ]


BEGIN, END = "<!-- peers: begin, written by the benchmark -->", "<!-- peers: end -->"


def published(document: str, part: str) -> str:
    """A document with the part between its two marks replaced. Raises ValueError if it has no such place."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no place between {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{part.strip()}\n\n{END}{after}"


def extract(run: dict[str, Any], results: Results) -> str:
    """What the document shows: machine, versions, goals."""
    return "\n\n".join([*_about(run), goals_table(results)])


def page(run: dict[str, Any], results: Results, systems: Sequence[str]) -> str:
    """The whole file."""
    head = [
        "# Skate beside its peers",
        *_about(run),
        f"{BUSY_MARK}: the load generator used more than {BUSY_CORES} of a core, so the system could do more.",
        "## What Skate should reach",
        goals_table(results),
    ]
    groups = [group_text(group, results, systems) for group in GROUPS if group.name in results.seen or
              any(failure.group == group.name for failure in results.failures)]  # fmt: skip
    tail = [processes_table(results)] if results.processes else []
    return "\n\n".join([*head, *groups, *tail]) + "\n"
