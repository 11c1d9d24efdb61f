"""Skate beside its peers: ``python -m benchmarks.compare``, or ``make bench-peers``; see README.md.

Law: everything is bounded, runs on the loopback and ends with this process, however that ends. A figure that is short
is no failure, and neither is a peer that cannot be installed or started: the table says so.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import msgspec

from benchmarks import load, machine, report
from benchmarks.processes import have_proc
from benchmarks.suite import environments, tables
from benchmarks.suite.goals import GOALS, judge
from benchmarks.suite.measure import Crew, measure_group, measure_starts, say
from benchmarks.suite.results import Results
from benchmarks.suite.systems import ALL, SKATE, System
from benchmarks.suite.works import GROUPS, START, Group

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
ROUNDS, QUICK_ROUNDS = 3, 1
PLOTS_MAX_S = 120.0


def key(system: System) -> str:
    """How a peer is named on the command line: ``ray-serve-haproxy``."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in system.name.lower()).split())


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description="Skate beside its peers.")
    parser.add_argument("--rounds", type=int, choices=range(1, 21), metavar="1..20", help=f"default {ROUNDS}")
    parser.add_argument("--only", action="append", choices=[group.name for group in GROUPS], help="just this group")
    parser.add_argument(
        "--peers", action="append", choices=[key(one) for one in ALL if one != SKATE], help="just this peer"
    )
    parser.add_argument("--quick", action="store_true", help="one round, without what takes longest")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of table, file and plots (default: results here)"
    )
    parser.add_argument("--publish", action="store_true", help="put the goals into docs/performance.md, too")
    return parser.parse_args(given)


def chosen(told: argparse.Namespace) -> tuple[list[Group], list[System]]:
    """The groups and the systems of the run. A quick one leaves long works out."""
    groups = [group for group in GROUPS if group.name in (told.only or [g.name for g in GROUPS])]
    if told.quick:
        groups = [msgspec.structs.replace(g, works=tuple(work for work in g.works if not work.long)) for g in groups]
    systems = [one for one in ALL if one == SKATE or told.peers is None or key(one) in told.peers]
    if told.quick:
        systems = [msgspec.structs.replace(one, apps=one.quick_apps or one.apps) for one in systems]
    return groups, systems


def main(given: list[str] | None = None) -> int:
    """Measures, prints, writes. The exit code: 0, 2 where it cannot run at all, 130 after Ctrl-C."""
    told = arguments(given)
    if not have_proc() or shutil.which(load.WRK) is None:
        print("this needs Linux, and wrk on PATH (the package wrk of Debian and Ubuntu)", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _terminated)
    with tempfile.TemporaryDirectory(prefix="skb-", ignore_cleanup_errors=True) as folder:
        try:
            _run(told, Path(folder))
        except KeyboardInterrupt:
            print("\ninterrupted; nothing was written", file=sys.stderr)
            return 130
    return 0


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def _run(told: argparse.Namespace, folder: Path) -> None:
    groups, systems = chosen(told)
    results = Results()
    systems = _set_up(systems, groups, results)
    rounds = told.rounds or (QUICK_ROUNDS if told.quick else ROUNDS)
    run: dict[str, Any] = {**machine.describe(), "load": load.described(load.WRK), "rounds": rounds}
    run["peers"] = {one.name: environments.version(one) for one in systems if one.venv}
    began = monotonic()
    measure(groups, systems, rounds, folder, results)
    run["seconds"] = round(monotonic() - began, 1)
    run["busy_after"] = machine.busy()
    text = tables.page(run, results, [one.name for one in systems])
    print(text)
    write(told.out, run, results, text)
    if told.publish:
        report.write(DOCUMENT, tables.published(DOCUMENT.read_text(), tables.extract(run, results)).encode())
    print(f"{sum(judge(goal, results).verdict == 'pass' for goal in GOALS)} of {len(GOALS)} goals are reached")
    print("\n".join(tables.short(results)))


def _set_up(systems: Sequence[System], groups: Sequence[Group], results: Results) -> list[System]:
    """The environments; who has none is missing from all its groups."""
    failed = {name: environments.set_up(name) for name in dict.fromkeys(one.venv for one in systems if one.venv)}
    environments.set_up(environments.PLOTS)
    for one in systems:
        if failed.get(one.venv):
            for group in groups:
                results.fail(one.name, group.name, "", f"it could not be installed: {failed[one.venv]}")
    return [one for one in systems if not failed.get(one.venv)]


def measure(groups: Sequence[Group], systems: Sequence[System], rounds: int, folder: Path, results: Results) -> None:
    """All groups, one after the other."""
    crew = Crew(folder, results)
    try:
        for group in groups:
            if group.name == START.name:
                measure_starts(group, folder, systems, rounds, results)
            else:
                measure_group(group, crew, systems, rounds, results)
    finally:
        say("ending all systems ...")
        crew.close()


def write(out: Path, run: dict[str, Any], results: Results, text: str) -> None:
    """The table, the file with every round, the plots (those where their environment could be made)."""
    goals = [
        {
            **msgspec.to_builtins(one.goal),
            "seen": one.seen,
            "skate": one.own,
            "beside": one.other,
            "verdict": one.verdict,
        }
        for one in (judge(goal, results) for goal in GOALS)
    ]
    data = msgspec.json.encode({**run, "goals": goals, **results.plain()})
    report.write(out / "peers.json", msgspec.json.format(data, indent=1) + b"\n")
    report.write(out / "peers.md", text.encode())
    plots = environments.ENVIRONMENTS / environments.PLOTS / "bin" / "python"
    if not plots.exists():
        print("no plots: their environment could not be made", file=sys.stderr)
        return
    command = [str(plots), str(Path(__file__).parent / "plots.py"), str(out / "peers.json"), str(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PLOTS_MAX_S)
    except subprocess.TimeoutExpired:
        print(f"no plots: they took longer than {PLOTS_MAX_S:g} s", file=sys.stderr)
        return
    if done.returncode:
        print(f"no plots: {done.stderr.strip()[-1000:]}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
