from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import machine, processes, run
from benchmarks.load import Load
from benchmarks.measures import handles, http, start
from benchmarks.processes import Cost, read_rollup

needs_proc = pytest.mark.skipif(not processes.have_proc(), reason="this system has no /proc")

ROLLUP = """56246684a000-7fffc4558000 ---p 00000000 00:00 0                          [rollup]
Rss:               48400 kB
Pss:               20480 kB
Private_Clean:       512 kB
Private_Dirty:     10240 kB
"""


def test_a_rollup_is_read_in_kilobytes() -> None:
    assert read_rollup(ROLLUP) == {"Rss": 48400, "Pss": 20480, "Private_Clean": 512, "Private_Dirty": 10240}


@needs_proc
def test_this_process_is_its_own_family_and_costs_something() -> None:
    assert processes.family(os.getpid())[0] == os.getpid()
    assert os.getpid() in processes.family(processes.parent(os.getpid()))
    assert processes.cpu_s([os.getpid()]) > 0
    cost = processes.cost(os.getpid())
    assert cost.private_mb > 0
    assert cost.threads >= 1


def test_a_process_that_is_gone_used_nothing() -> None:
    assert processes.cpu_s([2**22 + 1]) == 0.0


def test_nobody_answers_on_a_free_port(free_port: int) -> None:
    assert processes.http_status(free_port, timeout_s=1) is None


def test_a_child_ends_with_the_block() -> None:
    program = "from benchmarks.peers.program import end_with_stdin; end_with_stdin(); import threading; "
    with processes.child(["-c", program + "threading.Event().wait()"]) as child:
        assert child.poll() is None
    assert child.returncode == 0


# -- the lines of the table -----------------------------------------------------------------------


def _load(rate: float, p50_us: float) -> Load:
    return Load(int(rate), 1.0, p50_us, p50_us * 2, p50_us * 3, p50_us * 4)


def test_http_figures_judge_the_two_that_have_targets() -> None:
    runs = {
        "peer 1": [_load(10_000, 100)] * 3,
        "skate 1": [_load(6_000, 190)] * 3,
        "peer 64": [_load(30_000, 2000)] * 3,
        "skate 64": [_load(15_000, 4000)] * 3,
        "wide 64": [_load(21_000, 3000)] * 2,
        "sync 64": [_load(12_000, 3000)] * 2,
    }
    spent = {name: [50.0, 50.0, 50.0] for name in runs}
    lines = {figure.name: figure for figure in http.figures(runs, spent)}
    judged = {name: figure.verdict for name, figure in lines.items() if figure.target is not None}
    assert judged == {"64 connections: requests": "short", "1 connection: p50": "pass"}
    assert lines["64 connections, max_ongoing_requests=64"].ratio == pytest.approx(0.7)
    assert "1 connection: CPU a request, all processes" in lines
    assert len(http.figures(runs, {})) == len(lines) - 2


def test_handle_figures_judge_the_three_that_have_targets() -> None:
    seen = {
        "floor": [50.0],
        "p50": [100.0],
        "p99": [400.0],
        "wide": [29_000.0],
        "default": [20_000.0],
        "stream": [200_000.0],
        "sync stream": [80_000.0],
        "script": [200.0],
    }
    judged = [figure.verdict for figure in handles.figures(seen) if figure.target is not None]
    assert judged == ["pass", "short", "pass"]


def test_processes_are_named_without_ids_and_folders() -> None:
    assert start.title(Cost(7, "python light.py 8000", 1, 1, 1), script_pid=7) == "the script"
    assert start.title(Cost(8, "skate: replica default/Light#x1", 1, 1, 1), script_pid=7) == "replica default/Light"


# -- the run --------------------------------------------------------------------------------------


def test_the_command_line_has_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    told = run.arguments(["--rounds", "2", "--only", "http", "--only", "start"])
    assert (told.rounds, told.seconds, told.load, told.only) == (2, 1, "auto", ["http", "start"])
    for wrong in (["--rounds", "0"], ["--seconds", "1000"], ["--load", "ab"], ["--only", "gpu"]):
        with pytest.raises(SystemExit):
            run.arguments(wrong)
    assert "from 1 to 50" in capsys.readouterr().err


def test_a_run_says_on_what_it_was_made() -> None:
    about = machine.describe()
    assert about["machine"]["cores"] >= 1
    assert about["versions"]["python"].startswith("3.")
    assert str(Path.home()) not in repr(about)
