"""The chaos: ``python -m chaos.run``, three minutes unless told otherwise. ``judge`` says what it asserts and why.

Law: bounded in time, count and load; everything on the loopback, in a folder of its own, and ended with this process
however that ends. A seed decides what is done and when; what becomes of it is the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chaos import course, report
from chaos.apps import LOG
from chaos.course import Course, Result
from chaos.place import Place
from skate import serve
from soak.watch import leftovers, shared_memory

SECONDS_MIN, SECONDS_MAX = 2, 3600
FOLDER = Path("build")
PROXIES = 2
LINK_MORE_S = 60.0  # to start and to end


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m chaos.run", description="Traffic while everything goes wrong.")
    seconds, seed = (os.environ.get(name) for name in ("CHAOS_SECONDS", "CHAOS_SEED"))
    parser.add_argument("--seconds", type=float, default=float(seconds or 180), help="of deeds (180, or CHAOS_SECONDS)")
    parser.add_argument("--seed", type=int, default=int(seed or 1), help="of all chance (1, or CHAOS_SEED)")
    parser.add_argument("--link", type=float, help="seconds of the cut link after that (a tenth as long, at least 5)")
    parser.add_argument("--only", action="append", help="just the deeds whose name holds this (may be repeated)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of chaos.json and chaos.log (default: build)")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """Does it, prints, writes. The exit code: 0, 1 with faults, 130 after Ctrl-C."""
    told = arguments(given)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    told.out.mkdir(parents=True, exist_ok=True)
    try:
        with _stderr_in(told.out / "chaos.log"):
            link_s = max(5.0, told.seconds / 10) if told.link is None else told.link
            result = chaos(told.seconds, seed=told.seed, only=told.only or [], link_s=link_s, say=_say)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130
    print(report.text(result))
    (told.out / "chaos.json").write_bytes(report.as_json(result))
    print(f"\nevery deed stands in {told.out / 'chaos.json'}, what the processes logged in {told.out / 'chaos.log'}")
    if result.faults:
        print(f"again: {replay(told.seed, told.seconds, told.only or [])}")
    return 1 if result.faults else 0


def replay(seed: int, seconds: float, only: list[str]) -> str:
    """The command that does the same deeds again."""
    words = "".join(f" --only {word!r}" for word in only)
    return f"python -m chaos.run --seed {seed} --seconds {seconds:g}{words}"


def cut_link(seconds: float, seed: int) -> dict[str, Any]:
    """What the subtest of the link saw; in a process of its own, for its namespace is that process's."""
    command = [sys.executable, "-m", "chaos.link", json.dumps({"seconds": seconds, "seed": seed})]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds + LINK_MORE_S)
        seen: dict[str, Any] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        return {"faults": [f"{type(error).__name__}: {error}"]}
    return seen


def _say(text: str) -> None:
    print(text, flush=True)


@contextlib.contextmanager
def _stderr_in(path: Path) -> Iterator[None]:
    """What this process and its children write to stderr goes to a file: errors are part of a chaos."""
    kept = os.dup(2)
    with path.open("wb") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def chaos(
    seconds: float,
    *,
    seed: int = 1,
    only: list[str] | None = None,
    link_s: float = 0.0,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """Runs it on an instance of its own; the Result. Call it before the process has threads."""
    if not SECONDS_MIN <= seconds <= SECONDS_MAX:
        raise ValueError(f"a chaos takes from {SECONDS_MIN} to {SECONDS_MAX} seconds, not {seconds}")
    result = Result(seed, seconds)
    place = Place()
    if place.why_no_disk:
        result.remarks.append(f"the disk is not filled: {place.why_no_disk}")
    os.environ["SKATE_RUNTIME_DIR"] = str(place.folder)
    os.environ.pop("SKATE_INSTANCE", None)
    shared_before = shared_memory()
    with tempfile.TemporaryDirectory(prefix="skc-log-") as log:
        os.environ[LOG] = str(Path(log) / "executed")
        try:
            serve.start(
                http_options={"port": 0}, admin_options={"port": 0}, proxies=PROXIES, preload=("fastapi", "chaos.apps")
            )
            session = course.session_of(serve.status())
            try:
                todo = course.todo(seed, seconds, place, only or [])
                asyncio.run(Course(result, place, Path(os.environ[LOG]), session, todo, say).run())
            finally:
                serve.shutdown()
            result.faults += [f"left behind: {one}" for one in leftovers(place.folder, session, shared_before)]
        finally:
            place.close()
            os.environ.pop(LOG)
    if link_s > 0:
        say(f"a link is cut for {link_s:g} s ...")
        result.link = cut_link(link_s, seed)
        result.faults += [f"the cut link: {one}" for one in result.link["faults"]]
    return result


if __name__ == "__main__":
    sys.exit(main())
