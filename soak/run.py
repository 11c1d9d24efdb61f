"""The soak: ``python -m soak.run``, three minutes unless told otherwise. ``judge`` says what it asserts and why.

Law: bounded in time, count and load; everything on the loopback, in a runtime folder of its own, and ended with this
process however that ends. First every kind of call thrice (a rehearsal); then all at once: a warm-up, and three thirds,
in the first of which replicas are killed; then silence, in which nothing may be open and every slot must be free.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from skate import serve
from soak import report
from soak.course import Course
from soak.report import Result
from soak.watch import leftovers, shared_memory

SECONDS_MIN, SECONDS_MAX = 5, 3600
FOLDER = Path("build")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m soak.run", description="All kinds of calls at once, for minutes.")
    seconds = float(os.environ.get("SOAK_SECONDS", "180"))
    parser.add_argument("--seconds", type=float, default=seconds, help="in all (default 180, or SOAK_SECONDS)")
    parser.add_argument("--no-kills", action="store_true", help="no replica is killed")
    parser.add_argument("--only", action="append", help="just the kinds whose name holds this (may be repeated)")
    parser.add_argument("--seed", type=int, default=1, help="of all chance (default 1)")
    parser.add_argument("--calm", action="store_true", help="drifts of time and memory are shown, and are no failure")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of soak.json and soak.log (default: build)")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """Soaks, prints, writes. The exit code: 0, 1 with faults or drifts, 130 after Ctrl-C."""
    told = arguments(given)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    folder = tempfile.mkdtemp(prefix="sks-")  # short, because Unix socket paths are
    os.environ["SKATE_RUNTIME_DIR"] = folder
    os.environ.pop("SKATE_INSTANCE", None)
    told.out.mkdir(parents=True, exist_ok=True)
    try:
        with _stderr_in(told.out / "soak.log"):
            result = soak(told.seconds, kills=not told.no_kills, seed=told.seed, only=told.only, say=_say)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(report.text(result))
    (told.out / "soak.json").write_bytes(report.as_json(result, {"seed": told.seed}))
    print(f"\nevery sample stands in {told.out / 'soak.json'}, what the processes logged in {told.out / 'soak.log'}")
    return 1 if result.faults or (result.drifts and not told.calm) else 0


def _say(text: str) -> None:
    print(text, flush=True)


@contextlib.contextmanager
def _stderr_in(path: Path) -> Iterator[None]:
    """What this process and its children write to stderr goes to a file: errors of user code are part of a soak."""
    kept = os.dup(2)
    with path.open("wb") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def soak(
    seconds: float,
    *,
    kills: bool = True,
    seed: int = 1,
    only: list[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """Runs it on an instance of its own, in the runtime folder of the environment; the Result."""
    if not SECONDS_MIN <= seconds <= SECONDS_MAX:
        raise ValueError(f"a soak takes from {SECONDS_MIN} to {SECONDS_MAX} seconds, not {seconds}")
    shared_before = shared_memory()
    serve.start(http_options={"port": 0}, preload=("fastapi", "numpy", "soak.apps"))
    try:
        course = Course(seconds, kills, seed, only, say)
        asyncio.run(course.run())
    finally:
        serve.shutdown()
    course.result.faults += leftovers(Path(os.environ["SKATE_RUNTIME_DIR"]), course.watch.session, shared_before)
    return course.result


if __name__ == "__main__":
    sys.exit(main())
