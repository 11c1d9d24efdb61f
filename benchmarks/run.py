"""The benchmark: ``python -m benchmarks.run``, about a minute. README.md says what each line means.

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

RESULTS = Path(__file__).parent / "results" / "latest.json"
GROUPS = ("start", "http", "handles", "replicas")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Skate's figures beside their peers.")
    parser.add_argument("--rounds", type=_number(1, 50), default=5, help="of HTTP, peer and Skate in turn (default 5)")
    parser.add_argument("--seconds", type=_number(1, 30), default=1, help="of each HTTP load (default 1)")
    parser.add_argument("--load", choices=("auto", "wrk", "own"), default="auto", help="HTTP load generator")
    parser.add_argument("--only", choices=GROUPS, action="append", help="just these figures (may be repeated)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file (default: results/latest.json here)")
    return parser.parse_args(given)


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"a number from {least} to {most}, not {text}")
        return value

    return number


def main(given: list[str] | None = None) -> int:
    """Measures, prints, writes. The exit code: 0, 1 when something could not be measured, 130 after Ctrl-C."""
    told = arguments(given)
    signal.signal(signal.SIGTERM, _terminated)
    folder = tempfile.mkdtemp(prefix="skb-")  # short, because Unix socket paths are
    os.environ["SKATE_RUNTIME_DIR"] = folder  # before anything of Skate is imported
    os.environ.pop("SKATE_INSTANCE", None)
    try:
        return _run(told, folder)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def _run(told: argparse.Namespace, folder: str) -> int:
    from benchmarks import load, machine, report

    run: dict[str, Any] = machine.describe()
    which = load.generator(told.load)
    run["load"] = load.described(which)
    began = monotonic()
    sections = _sections(told, folder, which)
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
        f"{run['seconds']} s in all; medians of interleaved rounds; only ratios of one run compare\n"
    )


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def _sections(told: argparse.Namespace, folder: str, which: str) -> list[Any]:
    from benchmarks.measures import handles, http, start
    from benchmarks.report import Section
    from skate import serve

    wanted = told.only or GROUPS
    sections: list[Section] = []

    def group(name: str, measure: Callable[[], tuple[Section, ...]]) -> None:
        if name not in wanted:
            return
        print(f"measuring: {name} ...", file=sys.stderr, flush=True)
        try:
            sections.extend(measure())
        except Exception as error:
            traceback.print_exc()
            sections.append(Section(name, failure=f"{type(error).__name__}: {error}"))

    group("start", lambda: start.measure_start(3, 5.0))
    if set(wanted) - {"start"}:
        serve.start(http_options={"port": 0})
        try:
            group("http", lambda: (http.measure(told.rounds, told.seconds, which),))
            group("handles", lambda: (handles.measure(3, 0.5, folder),))
            group("replicas", lambda: (start.measure_replicas(5, 3),))
        finally:
            serve.shutdown()
    return sections


if __name__ == "__main__":
    sys.exit(main())
