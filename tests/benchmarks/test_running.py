from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from benchmarks import load, processes
from benchmarks.keeper import descendants
from benchmarks.processes import ProcessError
from benchmarks.suite.running import running
from benchmarks.suite.systems import ROOT, Request, System

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not processes.have_proc(), reason="this system has no /proc"),
]
LIMIT = System("the limit", "limit", "httptools", apps=("hello",))
WAIT_S = 20.0


def _wait_gone(pids: list[int]) -> None:
    """Until none of them lives. A zombie is gone: somebody else has to reap it."""
    until = monotonic() + WAIT_S
    while alive := [pid for pid in pids if _state(pid) not in ("", "Z")]:
        assert monotonic() < until, f"{alive} are still there"
        sleep(0.01)


def _wait_state(pid: int, state: str) -> None:
    until = monotonic() + WAIT_S
    while _state(pid) != state:
        assert monotonic() < until, f"{pid} is {_state(pid)!r}"
        sleep(0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_a_system_starts_is_measured_pauses_and_ends(tmp_path: Path) -> None:
    with running(LIMIT, "hello", Request("/hello"), tmp_path) as one:
        pids = one.pids()
        assert len(pids) == 1
        assert one.started_s > 0
        assert one.cpu()[pids[0]] > 0
        assert one.costs()[0].private_mb > 0
        one.pause()
        _wait_state(pids[0], "T")
        one.resume()
        assert processes.status_of(one.port, "POST", "/json", "application/json", b"{}") == 200
        one.pause()  # the end finds it so
    _wait_gone(pids)


def test_a_system_that_does_not_start_says_its_last_words(tmp_path: Path) -> None:
    broken = System("broken", "nothing_of_that_name", "x")
    with (
        pytest.raises(ProcessError, match="nothing_of_that_name"),
        running(broken, "hello", Request("/hello"), tmp_path),
    ):
        raise AssertionError("it cannot run")


STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:  # an orphan of a session of its own, deaf to SIGTERM
        print(os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)
os.wait()
"""


def test_the_keeper_ends_what_lost_its_parent(tmp_path: Path) -> None:
    read, write = os.pipe()
    command = [sys.executable, "-m", "benchmarks.keeper", str(read), sys.executable, "-c", STUBBORN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=(read,), cwd=ROOT) as keeper:
        os.close(read)
        assert keeper.stdout is not None
        orphan = int(keeper.stdout.readline())
        assert _state(orphan)
        os.close(write)
        keeper.wait(WAIT_S)
    _wait_gone([orphan])


def test_the_keeper_ends_everything_when_the_benchmark_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from benchmarks.suite.running import running\n"
        "from benchmarks.suite.systems import Request, System\n"
        "with running(System('l', 'limit', 'x'), 'hello', Request('/hello'), pathlib.Path(sys.argv[1])) as one:\n"
        "    print(*one.pids(), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
    ) as benchmark:
        assert benchmark.stdout is not None
        pids = [int(word) for word in benchmark.stdout.readline().split()]
        below = descendants(benchmark.pid)
        assert pids
        benchmark.send_signal(signal.SIGKILL)
    _wait_gone([*pids, *below])


def test_a_load_that_was_not_answered_is_no_measure() -> None:
    text = "Latency 1.00ms 1.00ms 1.00ms 1%\n50% 0.00us\n90% 0.00us\n99% 0.00us\n 0 requests in 1.00s, 0B read\n"
    with pytest.raises(load.LoadError):
        load.read_wrk(text)
