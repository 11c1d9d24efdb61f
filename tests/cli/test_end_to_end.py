"""The commands on real processes: what they print, how they end, and that nothing stays."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.running import alive, process_table
from tests.cli.world import HELLO, Place, get, place, until
from tests.engine.world import kill_at_once

pytestmark = pytest.mark.e2e


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path) as made:
        made.write("app.py", HELLO)
        yield made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_serves_until_a_signal_and_leaves_nothing(here: Place, free_port: int, number: signal.Signals) -> None:
    running = here.start("run", "app:app", "--port", str(free_port))
    running.until("Ctrl-C ends it")
    assert f"http://127.0.0.1:{free_port}/" in running.text
    assert "default/Hello#1  ready" in running.text
    assert get(free_port) == "hello"
    here.pids()
    assert running.end(number) == 0
    here.nothing_left()


def test_ctrl_c_while_a_constructor_runs_leaves_nothing(here: Place) -> None:
    here.write("slow.py", HELLO.replace("self.word = word", "import threading; threading.Event().wait(60)"))
    running = here.start("run", "slow:app", "--port", "0")
    running.until("loading")
    here.pids()
    assert running.end() == 130
    here.nothing_left()


def test_a_second_ctrl_c_does_not_wait(here: Place) -> None:
    stuck = """def __del__(self):
        print("stuck", flush=True)
        import time; time.sleep(60)

    def __call__"""
    here.write("stuck.py", HELLO.replace("def __call__", stuck))
    running = here.start("run", "stuck:app", "--port", "0")
    running.until("Ctrl-C ends it")
    here.pids()
    running.process.send_signal(signal.SIGINT)
    running.until("stuck")
    assert running.end() == 130
    here.nothing_left()


def test_start_status_shutdown(here: Place, free_port: int) -> None:
    said = here.run("start", "--port", str(free_port))
    assert f"http://127.0.0.1:{free_port}" in said
    pids = here.pids()
    assert str(next(iter(pids))) in said
    assert "running already" in here.run("start", "--port", "1")
    assert "'app.py' names a file" in here.run("deploy", "app.py", code=1)
    status = here.status()
    assert status["applications"] == {}
    assert status["proxies"]["0"]["address"] == f"127.0.0.1:{free_port}"
    assert status["calls"]["accepted"] == 0
    assert "accepted" in here.run("status")
    here.run("shutdown")
    here.nothing_left()
    assert "No instance is running" in here.run("shutdown")


def test_without_an_instance_status_is_one_line_and_exit_code_1(here: Place) -> None:
    assert here.run("status", code=1).startswith("error: no Skate instance is running")
    assert here.run("delete", "x", code=1).startswith("error: ")


def test_run_joins_an_instance_and_takes_only_its_own_application_with_it(here: Place, free_port: int) -> None:
    here.run("start", "--port", str(free_port))
    here.pids()
    first = here.start("run", "app:app", "--port", "1")
    first.until("Ctrl-C ends it")
    assert "Not used: --port" in first.text
    second = here.start("run", "app:app", "--name", "two", "--route-prefix", "/two")
    second.until("Ctrl-C ends it")
    assert (get(free_port), get(free_port, "/two")) == ("hello", "hello")
    here.pids()
    assert first.end() == 0
    assert list(here.status()["applications"]) == ["two"]
    assert "application 'nix'" in here.run("status", "--name", "nix", code=1)
    assert "Application two" in here.run("status", "--name", "two")
    here.run("delete", "two")
    assert second.wait() == 0
    assert "deleted by someone else" in second.text
    here.run("shutdown", "-y")
    here.nothing_left()


def test_a_run_never_deletes_what_ran_before_it(here: Place, free_port: int) -> None:
    """Neither with Ctrl-C nor when its own code is wrong; and the old application is not taken for the new one."""
    here.run("start", "--port", str(free_port), "--no-admin")
    here.pids()
    here.run("deploy", "app:app")
    here.write("bad.py", HELLO.replace("self.word = word", "raise RuntimeError('no model')"))
    here.write("absent.yaml", "applications: [{import_path: 'absent:app'}]")
    for wrong in ("bad:app", "absent.yaml"):
        said = here.run("run", wrong, code=1)
        assert "error: application 'default' did not start" in said and "default ran before and goes on" in said
        assert get(free_port) == "hello"
    again = here.start("run", "app:app")
    again.until("Ctrl-C ends it")
    assert again.end() == 0
    assert "to end it: skate delete default" in again.text
    assert here.status()["applications"]["default"]["status"] == "RUNNING"
    here.run("shutdown")
    here.nothing_left()


def test_the_counts_of_calls_are_shown(here: Place, free_port: int) -> None:
    running = here.start("run", "app:app", "--port", str(free_port))
    running.until("Ctrl-C ends it")
    for _ in range(3):
        get(free_port)

    def counted() -> bool:
        calls = here.status()["calls"]
        assert calls["accepted"] == sum(count for kind, count in calls.items() if kind != "accepted")
        return bool(calls["ok"] == 3)

    until(counted, "three calls are counted")
    here.pids()
    assert running.end() == 0
    here.nothing_left()


def test_a_route_prefix_in_use_is_one_line(here: Place) -> None:
    here.run("start", "--port", "0")
    here.pids()
    first = here.start("run", "app:app")
    first.until("Ctrl-C ends it")
    said = here.run("run", "app:app", "--name", "two", code=1)
    assert "error: route_prefix '/' of application 'two' is in use" in said
    assert list(here.status()["applications"]) == ["default"]
    here.run("shutdown")
    assert first.wait() == 0


def test_a_constructor_that_raises_shows_the_users_lines_only(here: Place) -> None:
    here.write("bad.py", HELLO.replace("self.word = word", "raise RuntimeError('no model')"))
    said = here.run("run", "bad:app", "--port", "0", code=1)
    error = said[said.index("error: ") :]
    assert "RuntimeError: no model" in error
    assert 'File "bad.py", line 7, in __init__' in error
    assert "worker.py" not in said
    here.nothing_left()
    assert "worker.py" in here.run("run", "bad:app", "--port", "0", "-v", code=1)


@pytest.mark.parametrize("command", [("start",), ("run", "app:app")])
def test_a_port_in_use_is_one_line(here: Place, command: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = here.run(*command, "--port", str(port), code=1)
    assert said.startswith("error: ") and said.count("\n") == 1
    assert str(port) in said
    here.nothing_left()


@pytest.mark.parametrize("command", [("start",), ("run", "app:app")])
def test_a_preloaded_module_that_raises_is_said(here: Place, command: tuple[str, ...]) -> None:
    here.write("heavy.py", "raise RuntimeError('no device')")
    said = here.run(*command, "--port", "0", "--preload", "heavy", code=1)
    assert "RuntimeError: no device" in said and "error: the instance ended while it was starting" in said
    here.nothing_left()


def test_builder_arguments_reach_the_replica(here: Place, free_port: int) -> None:
    here.write("built.py", HELLO + "def build(args): return Hello.bind(args['word'])\n")
    running = here.start("run", "built:build", "word=hi", "--port", str(free_port))
    running.until("Ctrl-C ends it")
    assert get(free_port) == "hi"
    assert running.end() == 0


def test_the_end_of_the_instance_ends_a_run(here: Place) -> None:
    running = here.start("run", "app:app", "--port", "0")
    running.until("Ctrl-C ends it")
    here.pids()
    here.run("shutdown")
    assert running.wait() == 0
    assert "ended by someone else" in running.text
    here.nothing_left()


def test_a_killed_supervisor_is_noticed_by_nobody(here: Place, free_port: int) -> None:
    running = here.start("run", "app:app", "--port", str(free_port))
    running.until("Ctrl-C ends it")
    before = here.pids()
    primary, standby = here.supervisors()
    os.kill(primary, signal.SIGKILL)
    until(lambda: here.supervisors()[0] == standby, "the standby has taken over")
    assert get(free_port) == "hello"
    assert before.keys() - here.pids().keys() == {primary}
    assert running.end() == 0
    here.nothing_left()


def test_supervisors_that_die_at_once_are_an_error(here: Place) -> None:
    running = here.start("run", "app:app", "--port", "0")
    running.until("Ctrl-C ends it")
    here.pids()
    supervisors = here.supervisors()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in supervisors:
            os.kill(pid, number)
    assert running.wait() == 1
    assert "error: the instance broke down" in running.text
    here.nothing_left()


PART = """
import os
from skate import serve
from word import WORD

@serve.deployment
class Part:
    def __call__(self):
        return f"{WORD} {os.getpid()}"
"""
WHOLE = """
import os
from skate import serve

@serve.deployment
class Whole:
    def __init__(self, part):
        self.part = part

    async def __call__(self):
        return f"{await self.part.remote()} {os.getpid()}"
"""
TOGETHER = "from part import Part\nfrom whole import Whole\n\napp = Whole.bind(Part.bind())\n"
FILE = "applications:\n- {name: default, import_path: 'together:app'}\n"


@pytest.fixture
def parts(here: Place) -> Place:
    """An application of two deployments, each in a module of its own, and a word that one of them uses."""
    for name, text in (("part.py", PART), ("whole.py", WHOLE), ("together.py", TOGETHER), ("apps.yaml", FILE)):
        here.write(name, text)
    here.write("word.py", "WORD = 'one'")
    return here


def served(port: int) -> tuple[str, str, str]:
    """The word, and the processes that said it: of the part, and of the whole."""
    word, part, whole = get(port).split()
    return word, part, whole


@pytest.mark.parametrize("target", ["together:app", "apps.yaml"])
def test_reload_replaces_only_what_changed_and_keeps_what_runs_when_it_is_wrong(
    parts: Place, free_port: int, target: str
) -> None:
    running = parts.start("run", target, "--reload", "--port", str(free_port))
    running.until("Ctrl-C ends it")
    first = served(free_port)
    parts.write("word.py", "WORD = 'two'")
    until(lambda: get(free_port).startswith("two"), "the change is served")
    second = served(free_port)
    assert (first[0], second[2]) == ("one", first[2]) and second[1] != first[1]
    parts.write("apart.py", "")
    running.until("goes on as it is")
    parts.write("word.py", "WORD = ")
    running.until("does not import: SyntaxError")
    running.until("What ran before goes on serving")
    assert served(free_port) == second
    parts.write("word.py", "WORD = 'six'")
    until(lambda: get(free_port).startswith("six"), "the repaired version is served")
    parts.pids()
    assert running.end() == 0
    parts.nothing_left()


def test_a_file_is_planned_deployed_changed_and_rolled_back(parts: Place, free_port: int) -> None:
    here, port = parts, ("--port", str(free_port))
    assert "start one with" in here.run("deploy", "apps.yaml", code=1)
    here.run("start", *port, "--no-admin")
    assert "Application default is ready" in here.run("deploy", "apps.yaml")
    first = served(free_port)
    assert here.run("plan", "apps.yaml", "--exit-code").startswith("Application default stays as it is")
    here.write("word.py", "WORD = 'two'")
    plan = here.run("plan", "apps.yaml", "--exit-code", code=2)
    assert "Part   restart  code" in plan and "Whole  leave" in plan
    here.run("deploy", "apps.yaml")
    assert served(free_port)[::2] == ("two", first[2])
    here.write("whole.py", WHOLE.replace("self.part = part", "raise ValueError('no model')"))
    said = here.run("deploy", "apps.yaml", code=1)
    assert "error: application 'default' did not start" in said and "ValueError: no model" in said
    assert served(free_port)[::2] == ("two", first[2])
    assert "is ready" in here.run("rollback", "default", "--to", "1")
    assert served(free_port)[::2] == ("one", first[2])
    history = here.run("history", "default").splitlines()
    assert ["current" in line for line in history[1:]] == [False, False, False, True] and "rollback to 1" in history[-1]
    assert "default  deployed  revision 4, rollback to 1 by skate rollback default" in here.run("events")
    assert "import_path: together:app" in here.run("config")
    here.run("scale", "default/Part", "2")
    until(lambda: "2 of 2 ready" in here.run("status", "--name", "default"), "it is scaled")
    here.pids()
    here.run("shutdown")
    here.nothing_left()


JOINS = """
import sys
from app import app
from skate import serve

serve.run(app, name="mine", route_prefix="/mine")
print("runs", flush=True)
sys.stdin.readline()
"""


def test_others_are_told_whose_application_they_replace(here: Place) -> None:
    here.run("start", "--port", "0", "--no-admin")
    here.write("script.py", JOINS)
    here.python("script.py")
    assert "deployed" in here.run("status", "--name", "mine")
    by = here.status()["applications"]["mine"]["deployed_by"]
    assert by.startswith(f"python script.py in {here.folder} (pid ")
    said = here.run("deploy", "app:app", "--name", "mine", "--route-prefix", "/mine")
    assert f"warning: application mine was deployed by {by}; it is replaced" in said
    assert "was deployed by skate deploy app:app" in here.python("script.py")
    here.pids()
    here.run("shutdown")
    here.nothing_left()


SPEAKS = """
import ctypes, logging, os, subprocess
from skate import serve

@serve.deployment
class Speaks:
    def __call__(self, request):
        print("printed")
        logging.getLogger("my").info("logged")
        ctypes.CDLL(None).printf(b"from C\\n"), ctypes.CDLL(None).fflush(None)
        subprocess.run(["echo", "from a program"])
        if request.query_params:
            os.abort()
        return "ok"

app = Speaks.bind()
"""


def test_what_processes_print_is_kept_and_can_be_followed(here: Place, free_port: int) -> None:
    here.write("speaks.py", SPEAKS)
    here.run("start", "--port", str(free_port), "--no-admin")
    here.run("deploy", "speaks:app")
    following = here.start("logs", "--follow", "--app", "default")
    assert get(free_port, headers={"X-Request-ID": "abc-1"}) == "ok"
    for words in ("printed", "from C", "from a program", ", request abc-1] logged"):
        following.until(words)
    assert get(free_port, "/?abort=1") == "500"
    following.until("Fatal Python error: Aborted")
    assert following.end() == 0
    assert len(here.run("logs", "--request-id", "abc-1", "-n", "1").splitlines()) == 1
    here.pids()
    here.run("shutdown")
    here.nothing_left()


def test_a_foreground_instance_shows_what_it_keeps(here: Place, free_port: int) -> None:
    here.write("speaks.py", SPEAKS)
    running = here.start("run", "speaks:app", "--port", str(free_port))
    running.until("Ctrl-C ends it")
    get(free_port)
    for words in ("printed", "from C", "from a program", "] logged"):
        running.until(words)
    get(free_port, "/?abort=1")
    running.until("crashed, and has written into its log:\nFatal Python error: Aborted")
    kept = here.run("logs", "--replica", "1")
    assert "printed" in kept and "Fatal Python error: Aborted" in kept
    here.pids()
    assert running.end() == 0
    here.nothing_left()


# -- what outlives an instance --------------------------------------------------------------------------

SCALED = HELLO.replace('"hello"', '"scaled"').replace("@serve.deployment", "@serve.deployment(num_replicas='auto')")


def test_what_was_deployed_comes_back_after_all_was_killed(here: Place, free_port: int) -> None:
    port = ("--port", str(free_port), "--no-admin")
    here.write("scaled.py", SCALED)
    assert "nothing is restored" in here.run("start", "--restore", *port)
    here.run("deploy", "app:app")
    here.write("app.py", HELLO.replace('"hello"', '"again"'))
    here.run("deploy", "app:app")
    here.run("deploy", "scaled:app", "--name", "scaled", "--route-prefix", "/scaled")
    history = [line.split()[0] for line in here.run("history", "default").splitlines()]
    pids = here.pids()
    kill_at_once(*pids)
    until(lambda: not alive(pids, process_table()), "all are dead")
    said = here.run("start", "--restore", *port)
    assert "Restored: 2 applications (default, scaled)" in said
    until(lambda: get(free_port) == "again" and get(free_port, "/scaled") == "scaled", "they answer again")
    assert [line.split()[0] for line in here.run("history", "default").splitlines()] == history
    events = here.run("events")
    assert "restored" in events and "deployed" in events.partition("restored")[0]
    ids = [one["id"] for one in here.status()["applications"]["default"]["deployments"]["Hello"]["replicas"]]
    assert "default/Hello#1" not in ids
    here.pids()
    here.run("shutdown")
    here.nothing_left()


def test_a_start_without_restore_sets_aside_and_the_next_one_finds_it(here: Place, free_port: int) -> None:
    port = ("--port", str(free_port), "--no-admin")
    here.run("start", *port)
    here.run("deploy", "app:app")
    here.run("shutdown")
    said = here.run("start", *port)
    assert "Set aside: 1 application (default)" in said and here.status()["applications"] == {}
    assert "nothing is restored into a running instance" in here.run("start", "--restore", *port)
    here.run("shutdown")
    assert "Restored: 1 application (default)" in here.run("start", "--restore", *port)
    until(lambda: get(free_port) == "hello", "it answers again")
    here.pids()
    here.run("shutdown")
    here.nothing_left()


def test_a_taken_port_of_rest_is_said_at_the_start(here: Place) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        said = here.run("start", "--port", "0", "--admin-port", str(other.getsockname()[1]))
    assert "Started at" in said and "warning: without REST for now" in said and "another process uses this port" in said
    here.pids()
    here.run("shutdown")
    here.nothing_left()
