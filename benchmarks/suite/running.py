"""A system under test that runs: started below a keeper, told what to deploy, paused, measured, ended.

Law: every wait has a limit, and whatever happens here or to this process, the keeper ends all that was started
(benchmarks/keeper.py).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import msgspec

from benchmarks import processes
from benchmarks.keeper import ASKED_S, KILL_S, TERM_S
from benchmarks.processes import Cost, ProcessError
from benchmarks.suite.systems import ENVIRONMENTS, ROOT, Request, System

POLL_S = 0.002
ASK_MAX_S = 60.0
FOREIGN = ("RAY_", "SKATE_", "BENTOML_", "PYTHON")  # settings of ours that would change theirs, caches of byte code too
LOG_TAIL = 1500  # characters of its stderr in an error


class Running:
    """One system under test. ``started_s``: from the start of its process to the first 200."""

    def __init__(self, system: System, keeper: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.system = system
        self.port = port
        self.folder = log.parent
        self.started_s = 0.0
        self.warm: set[str] = set()  # addresses that had their first requests
        self._keeper = keeper
        self._log = log
        self._said = b""
        self._paused: list[int] = []

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://{processes.HOST}:{self.port}"

    # -- what it is told --

    def ask(self, do: str, limit_s: float = ASK_MAX_S, **what: Any) -> Any:
        """One line there, one line back. Raises ProcessError, also for an error there."""
        assert self._keeper.stdin is not None
        try:
            self._keeper.stdin.write(msgspec.json.encode({"do": do, **what}) + b"\n")
            self._keeper.stdin.flush()
        except OSError as error:
            raise ProcessError(f"{self.system.name} is gone: {error}{self.tail()}") from None
        said = msgspec.json.decode(self._line(monotonic() + limit_s))
        if "error" in said:
            raise ProcessError(f"{self.system.name}: {do} failed: {said['error']}")
        return said["value"]

    def _line(self, until: float) -> bytes:
        assert self._keeper.stdout is not None
        out = self._keeper.stdout.fileno()
        while b"\n" not in self._said:
            if not select.select([out], [], [], max(0.0, until - monotonic()))[0]:
                raise ProcessError(f"{self.system.name} did not answer in time{self.tail()}")
            if not (data := os.read(out, 1 << 16)):
                raise ProcessError(f"{self.system.name} ended{self.tail()}")
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line

    def tail(self) -> str:
        """The end of what it wrote to stderr."""
        with contextlib.suppress(OSError):
            text = self._log.read_text(errors="replace").strip()[-LOG_TAIL:]
            return f"; its last words:\n{text}" if text else ""
        return ""

    def wait_ready(self, request: Request, limit_s: float) -> float:
        """Asks until the answer is 200; the monotonic time of that moment. Raises ProcessError."""
        until = monotonic() + limit_s
        while monotonic() < until:
            if processes.status_of(self.port, request.method, request.path, request.kind, request.body) == 200:
                return monotonic()
            if self._keeper.poll() is not None:
                raise ProcessError(f"{self.system.name} ended before it served{self.tail()}")
            sleep(POLL_S)
        raise ProcessError(f"{self.system.name} did not answer {request.path} within {limit_s:g} s{self.tail()}")

    # -- its processes --

    def pids(self) -> list[int]:
        """All its processes, without the keeper."""
        return processes.family(self._keeper.pid)[1:]

    def cpu(self) -> dict[int, float]:
        """CPU seconds so far, by pid."""
        return {pid: processes.cpu_s([pid]) for pid in self.pids()}

    def costs(self) -> list[Cost]:
        """Memory and threads of each process."""
        found = []
        for pid in self.pids():
            with contextlib.suppress(OSError, KeyError):
                found.append(processes.cost(pid))
        return found

    def pause(self) -> None:
        """Stops all its processes where they stand."""
        self._paused = self.pids()
        for pid in self._paused:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets them go on."""
        for pid in self._paused:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        self._paused = []


def python(system: System) -> str:
    """The interpreter of its environment."""
    return str(ENVIRONMENTS / system.venv / "bin" / "python") if system.venv else sys.executable


@contextlib.contextmanager
def running(system: System, app: str, ready: Request | None, folder: Path) -> Iterator[Running]:
    """A system that serves ``app``; it has answered ``ready`` once, or the line ``ping`` where that is None."""
    port = processes.free_port()
    log = Path(tempfile.mkstemp(dir=folder, prefix=system.module, suffix=".log")[1])
    keeper, lifeline = _start(system, app, port, log, folder)
    try:
        began = monotonic()
        one = Running(system, keeper, port, log)
        if ready is None:
            one.ask("ping", system.start_max_s)
            one.started_s = monotonic() - began
        else:
            one.started_s = one.wait_ready(ready, system.start_max_s) - began
            if system.deploys:
                one.ask("ping", system.start_max_s)  # all of it, not only what was asked for
        yield one
    finally:
        _end(keeper, lifeline)


def _start(system: System, app: str, port: int, log: Path, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    read, write = os.pipe()
    command = [sys.executable, "-S", "-m", "benchmarks.keeper", str(read)]
    command += [python(system), "-m", f"benchmarks.peers.{system.module}", str(port), app]
    outside = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    home = tempfile.mkdtemp(dir=folder, prefix="s")
    own = {
        "PYTHONPATH": str(ROOT),
        "SKATE_RUNTIME_DIR": home,
        "BENTOML_HOME": home,
        "TMPDIR": home,
        "DO_NOT_TRACK": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "PATH": f"{Path(python(system)).parent}{os.pathsep}{outside.get('PATH', os.defpath)}",
    }
    given = {name: value.replace("{home}", home) for name, value in system.environment.items()}
    with log.open("wb") as errors:
        keeper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, pass_fds=(read,), cwd=ROOT,
            env={**outside, **own, **given}, start_new_session=True,
        )  # fmt: skip
    os.close(read)
    return keeper, write


def _end(keeper: subprocess.Popen[bytes], lifeline: int) -> None:
    assert keeper.stdin is not None and keeper.stdout is not None
    with contextlib.suppress(OSError):
        keeper.stdin.close()
    os.close(lifeline)
    try:
        keeper.wait(ASKED_S + TERM_S + KILL_S + 10)
    finally:
        keeper.stdout.close()
