"""What the end-to-end tests share: an instance to test, what it leaves behind, and a way to wait without sleeping."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from skate import serve

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
LIMIT_S = 10.0  # for what should take milliseconds; generous, because machines can be busy
POLL_S = 0.005


def until(condition: Callable[[], T], limit_s: float = LIMIT_S) -> T:
    """What the condition gives as soon as that is true."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end, f"still not after {limit_s} s: {found!r}"
        time.sleep(POLL_S)
    return found


def client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, trust_env=False, timeout=LIMIT_S)


@dataclass(frozen=True)
class Instance:
    """A running instance of Skate."""

    url: str
    runtime_dir: Path
    session: int

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def leftovers(self) -> list[str]:
        return leftovers(self.runtime_dir, self.session)


def here() -> Instance:
    """The instance of this process."""
    status = serve.status()
    runtime_dir = Path(os.environ["SKATE_RUNTIME_DIR"])
    return Instance(f"http://{status.proxies['0'].address}", runtime_dir, os.getsid(status.controller_pid))


# -- what is left behind ----------------------------------------------------------------------------


def leftovers(runtime_dir: Path, session: int) -> list[str]:
    """Processes of the session, sockets and files of the runtime folder, that are still there."""
    found = [f"process {pid}: {line}" for pid, line in processes_of(session)]
    with open("/proc/net/unix", encoding="utf-8") as table:
        found += [f"socket {line.split()[-1]}" for line in table if f"{runtime_dir}/" in line]
    return found + [f"file {path}" for path in runtime_dir.rglob("*")]


def processes_of(session: int) -> list[tuple[int, str]]:
    """Living processes of a session. Every process of an instance is in the session of its supervisor."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, _, of_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue  # it ended while we looked
        if int(of_session) == session and state not in "ZX":
            found.append((int(entry.name), line))
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


# -- scripts ----------------------------------------------------------------------------------------

PREAMBLE = """
import asyncio, os, sys, threading, time
import skate
from skate import serve
"""


class Script:
    """A user's program in a process of its own; its lines can be read as they come."""

    def __init__(self, folder: Path, text: str, arguments: Sequence[str] = (), preamble: str = PREAMBLE) -> None:
        path = folder / "app.py"
        path.write_text(preamble + text)
        self.errors = folder / "stderr"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-u", str(path), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=folder,
                env=environment(),
            )

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended\n{self.errors.read_text()}"
        return line.rstrip("\n")

    def say(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ends(self, code: int | None = 0, limit_s: float = 20.0) -> list[str]:
        """Waits until it ends with this exit code (None: any); the lines that it had still printed."""
        output, _ = self.process.communicate(timeout=limit_s)
        if code is not None:
            assert self.process.returncode == code, f"exit code {self.process.returncode}\n{self.errors.read_text()}"
        return list(output.splitlines())

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def environment(**more: str) -> dict[str, str]:
    paths = [str(ROOT / "src"), str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def calls() -> Any:
    """The ledger of the instance, once all that was accepted has ended."""

    def balanced() -> Any:
        seen = serve.status().calls
        assert seen.accepted == total(seen), seen
        return seen if seen.open == 0 else None

    return until(balanced)


def total(seen: Any) -> int:
    outcomes = seen.ok + seen.user_error + seen.refused + seen.timed_out + seen.cancelled + seen.lost
    return int(outcomes + seen.open)
