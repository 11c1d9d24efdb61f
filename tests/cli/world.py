"""The program as a user runs it, in a folder and with a runtime folder of its own, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import skate
from examples.running import Seen, alive, descendants, process_table

LIMIT_S = 30.0
POLL_S = 0.02
ROOT = str(Path(skate.__file__).resolve().parent.parent)

HELLO = """
from skate import serve

@serve.deployment
class Hello:
    def __init__(self, word="hello"):
        self.word = word

    def __call__(self):
        return self.word

app = Hello.bind()
"""


def until(check: Callable[[], Any], what: str) -> Any:
    """Waits until the check gives something true, and returns that."""
    limit = time.monotonic() + LIMIT_S
    while not (found := check()):
        assert time.monotonic() < limit, f"not within {LIMIT_S:g} s: {what}"
        time.sleep(POLL_S)
    return found


class Running:
    """A command that runs; ``text`` is what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.text += line

    def until(self, words: str) -> None:
        until(lambda: words in self.text or self.process.poll() is not None, f"{words!r} in:\n{self.text}")
        if words not in self.text:
            self._reader.join(LIMIT_S)
            assert words in self.text

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Sends a signal and waits; the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        return code


class Place:
    """A folder with modules, and a runtime folder."""

    def __init__(self, folder: Path, runtime: Path) -> None:
        self.folder = folder
        self.runtime = runtime
        self.state = Path(f"{runtime}-state")  # beside it: what is left there is no litter
        self.seen: dict[int, Seen] = {}  # processes that must not outlive the test
        self.started: list[Running] = []

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def _popen(self, words: tuple[str, ...]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            env=os.environ
            | {"SKATE_RUNTIME_DIR": str(self.runtime), "SKATE_STATE_DIR": str(self.state), "PYTHONPATH": ROOT},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start(self, *words: str) -> Running:
        running = Running(self._popen(("-m", "skate", *words)))
        self.started.append(running)
        return running

    def run(self, *words: str, code: int = 0) -> str:
        """Runs a command to its end; what it printed."""
        running = self.start(*words)
        assert running.wait() == code, running.text
        return running.text

    def python(self, *words: str) -> str:
        """Runs a script to its end; what it printed."""
        running = Running(self._popen(words))
        self.started.append(running)
        assert running.wait() == 0, running.text
        return running.text

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", "--json"))
        return found

    def pids(self) -> dict[int, Seen]:
        """The processes of the instance, to be looked for later."""
        status = self.status()
        replicas = [
            replica["pid"]
            for app in status["applications"].values()
            for deployment in app["deployments"].values()
            for replica in deployment["replicas"]
        ]
        proxies = [proxy["pid"] for proxy in status["proxies"].values()]
        table = process_table()
        pids = (*self.supervisors(), status["controller_pid"], *proxies, *replicas)
        found = {pid: table[pid] for pid in pids if pid in table}
        self.seen |= found
        return found

    def supervisors(self) -> tuple[int, int]:
        """The present one, and the standby that would go on in its place."""

        def both() -> tuple[int, int] | None:
            with contextlib.suppress(OSError):
                one, two = (int((self.runtime / "default" / name).read_text()) for name in ("pid", "standby"))
                if one != two and two in process_table():
                    return one, two
            return None

        found: tuple[int, int] = until(both, "a supervisor and a standby")
        return found

    def nothing_left(self) -> None:
        until(lambda: not self.left(), f"nothing is left of {self.left()}")

    def left(self) -> list[str]:
        return [*map(str, alive(self.seen, process_table())), *(str(path) for path in self.runtime.rglob("*"))]

    def close(self) -> None:
        """Whatever went wrong in the test, nothing outlives it."""
        for running in self.started:
            if running.process.poll() is None:
                self.seen |= descendants(running.process.pid, process_table())
                running.process.kill()
                running.process.wait()
        for pid in alive(self.seen, process_table()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError, ValueError):  # a detached instance that no test looked at
            session = os.getsid(int((self.runtime / "default" / "pid").read_text()))
            for pid in process_table():
                with contextlib.suppress(OSError):
                    if os.getsid(pid) == session != os.getsid(0):
                        os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.runtime, ignore_errors=True)
        shutil.rmtree(self.state, ignore_errors=True)


def get(port: int, path: str = "/", headers: Mapping[str, str] = {}) -> str:
    """The body of an answer, or the status code of another one; empty when nobody answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.code)
    except OSError:
        return ""


@contextlib.contextmanager
def place(folder: Path) -> Iterator[Place]:
    made = Place(folder, Path(tempfile.mkdtemp(prefix="sk-", dir="/tmp")))  # short, because Unix socket paths are
    try:
        yield made
    finally:
        made.close()
