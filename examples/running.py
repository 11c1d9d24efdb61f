"""Runs `skate run` the way a user does in a terminal: start it, wait until it serves, Ctrl-C, look what is left.

The instance gets a runtime folder of its own, so that it meets no other instance, and so that whatever it
leaves behind can be seen: a process, a listener, a file. The demo and the tests of the examples use it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
HOST: Final = "127.0.0.1"
READY_MAX_S: Final = 60.0  # a busy machine with two cores needs a tenth of it
STOP_MAX_S: Final = 30.0  # the default grace of a replica is 20
POLL_S: Final = 0.05
EXIT_CODES: Final = (0, 130)  # after Ctrl-C: an orderly end, or 128 + SIGINT, as shells say it


class RunError(Exception):
    """The instance did not start, or did not end as it should. The message says which and how."""


class Seen(NamedTuple):
    """A process of this machine; ``started`` tells it from a later one with the same pid."""

    parent: int
    zombie: bool
    started: str


class Running:
    """One ``skate run``. ``url`` is where it serves, without a slash at the end."""

    def __init__(self, import_path: str, *, quiet: bool = False) -> None:
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.runtime = tempfile.mkdtemp(prefix="sk-", dir="/tmp")  # short, because Unix socket paths are
        self.process = subprocess.Popen(
            [sys.executable, "-m", "skate", "run", import_path, "--port", str(self.port)],
            cwd=ROOT,
            env=os.environ | {"SKATE_RUNTIME_DIR": self.runtime},
            stdout=subprocess.DEVNULL if quiet else None,
        )

    def wait_until_ready(self) -> None:
        """Returns when the proxy is healthy and knows a route; raises RunError when that takes too long."""
        limit = time.monotonic() + READY_MAX_S
        while time.monotonic() < limit:
            if self.process.poll() is not None:
                raise RunError(f"skate run ended with exit code {self.process.returncode} before it was ready")
            if self.get("/-/healthz") is not None and self.get("/-/routes") not in (None, b"{}"):
                return
            time.sleep(POLL_S)
        raise RunError(f"{self.url} was not ready within {READY_MAX_S:g} s (asked: /-/healthz and /-/routes)")

    def get(self, path: str) -> bytes | None:
        """The body of a 200 answer, else None."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.read() if response.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def stop(self) -> None:
        """Presses Ctrl-C, then checks the exit code and that no process, listener or file is left."""
        family = descendants(self.process.pid, process_table())
        self.process.send_signal(signal.SIGINT)
        try:
            code = self.process.wait(STOP_MAX_S)
        except subprocess.TimeoutExpired:
            raise RunError(f"skate run did not end within {STOP_MAX_S:g} s after Ctrl-C") from None
        if code not in EXIT_CODES:
            raise RunError(f"skate run ended with exit code {code} after Ctrl-C, expected one of {EXIT_CODES}")
        limit = time.monotonic() + STOP_MAX_S
        while left := self.left(family):
            if time.monotonic() > limit:
                raise RunError(f"left behind after Ctrl-C: {', '.join(left)}")
            time.sleep(POLL_S)

    def left(self, family: dict[int, Seen]) -> list[str]:
        """What still exists of the instance; ``family`` are the processes it had."""
        processes = [f"process {pid}" for pid in alive(family, process_table())]
        files = [str(path) for path in Path(self.runtime).rglob("*")]
        return processes + files + ([f"a listener on {self.url}"] if listens(self.port) else [])

    def close(self) -> None:
        """Whatever went wrong, nothing may outlive the caller: kills what still runs, removes the folder."""
        if self.process.poll() is None:
            family = descendants(self.process.pid, process_table())
            for pid in (self.process.pid, *family):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.runtime, ignore_errors=True)


@contextlib.contextmanager
def running(import_path: str, *, quiet: bool = False) -> Iterator[Running]:
    """A ready instance; after the block comes Ctrl-C, and the check that nothing is left."""
    instance = Running(import_path, quiet=quiet)
    try:
        instance.wait_until_ready()
        yield instance
        instance.stop()
    finally:
        instance.close()


# -- the machine ----------------------------------------------------------------------------------


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def process_table() -> dict[int, Seen]:
    """All processes by pid, from /proc or, where there is none (macOS), from ps."""
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(["ps", "-axo", "pid=,ppid=,stat=,lstart="], capture_output=True, text=True, check=True)
        rows = [line.split(maxsplit=3) for line in listing.stdout.splitlines()]
        return {int(pid): Seen(int(parent), state.startswith("Z"), started) for pid, parent, state, started in rows}
    table: dict[int, Seen] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            table[int(entry.name)] = Seen(int(fields[1]), fields[0] == "Z", fields[19])
    return table


def descendants(ancestor: int, table: dict[int, Seen]) -> dict[int, Seen]:
    """Children of the ancestor, their children, and so on."""
    family: dict[int, Seen] = {}
    parents = {ancestor}
    while parents:
        children = {pid: seen for pid, seen in table.items() if seen.parent in parents and pid not in family}
        family |= children
        parents = set(children)
    return family


def alive(family: dict[int, Seen], table: dict[int, Seen]) -> list[int]:
    """Those of the family that still run; a zombie has ended, its parent has not looked yet."""
    return [pid for pid, seen in family.items() if pid in table and not table[pid].zombie and table[pid][2] == seen[2]]
