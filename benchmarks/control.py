"""The benchmark of the control plane: ``python -m benchmarks.control`` (``make bench-control``), about three minutes.

Law: everything is bounded in count and time, runs on the loopback, in a runtime folder of its own, and ends with this
process, however that ends. A figure that is short is no failure; one that cannot be measured is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

RESULTS = Path(__file__).parent / "results" / "control.json"
GROUPS = ("decisions", "status", "scaling", "many", "updates", "deaths", "zero")
PROXIES = 2


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control", description="What the control plane takes.")
    parser.add_argument("--only", choices=GROUPS, action="append", help="just these figures (may be repeated)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file (default: results/control.json here)")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """Measures, prints, writes. The exit code: 0, 1 when something could not be measured, 130 after Ctrl-C."""
    told = arguments(given)
    signal.signal(signal.SIGTERM, _terminated)
    folder = tempfile.mkdtemp(prefix="skb-")  # short, because Unix socket paths are
    os.environ["SKATE_RUNTIME_DIR"] = folder  # before anything of Skate is imported
    os.environ.pop("SKATE_INSTANCE", None)
    try:
        return _run(told)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def _run(told: argparse.Namespace) -> int:
    from benchmarks import machine, report

    run: dict[str, Any] = machine.describe()
    run["command"] = " ".join(["python -m benchmarks.control", *(f"--only {name}" for name in told.only or ())])
    began = monotonic()
    sections = _sections(told.only or GROUPS)
    run["seconds"] = round(monotonic() - began, 1)
    run["busy_after"] = machine.busy()
    print(_title(run))
    print(report.table(sections))
    report.write(told.out, report.as_json(run, sections))
    print(f"\nevery round stands in {os.path.relpath(told.out)}")
    return 1 if any(section.failure for section in sections) else 0


def _title(run: dict[str, Any]) -> str:
    box = run["machine"]
    return (
        f"{box['cores']} cores of {box['cpu']}, {box['system']}, Python {run['versions']['python']}, "
        f"commit {run['commit'][:12] or 'unknown'}, {run['date']}\n"
        f"others used {_percent(run['busy_before'])} of the cores before and {_percent(run['busy_after'])} after; "
        f"{run['seconds']} s in all; medians of the rounds\n"
    )


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def _sections(wanted: tuple[str, ...] | list[str]) -> list[Any]:
    from benchmarks import control_decide, control_live
    from benchmarks.report import Section
    from skate import serve

    pure = {"decisions": control_decide.measure_decisions, "status": control_decide.measure_status}
    live = {
        "scaling": control_live.measure_scaling,
        "many": control_live.measure_many,
        "updates": control_live.measure_updates,
        "deaths": control_live.measure_deaths,
        "zero": control_live.measure_zero,
    }
    sections: list[Section] = []

    def group(name: str, measure: Callable[[], Section]) -> None:
        if name not in wanted:
            return
        print(f"measuring: {name} ...", file=sys.stderr, flush=True)
        try:
            sections.append(measure())
        except Exception as error:
            traceback.print_exc()
            sections.append(Section(name, failure=f"{type(error).__name__}: {error}"))

    for name, measure in pure.items():
        group(name, measure)
    if live.keys() & set(wanted):
        serve.start(http_options={"port": 0}, proxies=PROXIES, preload=("benchmarks.control_apps",))
        try:
            for name, measure in live.items():
                group(name, measure)
        finally:
            serve.shutdown()
    return sections


if __name__ == "__main__":
    sys.exit(main())
