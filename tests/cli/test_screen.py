"""What is shown while an application starts, from statuses and times that the test makes up."""

from __future__ import annotations

import io
import os
import signal
import threading

import click
import pytest
from msgspec.structs import replace
from rich.console import Console

from skate.cli.inbox import Inbox
from skate.cli.live import LiveTable
from skate.cli.screen import Lines
from skate.cli.words import brief, duration, ready_line, summary, url
from skate.core.specs import (
    ApplicationStatus,
    DeploymentStatus,
    ProxyStatus,
    ReplicaPhase,
    ReplicaStatus,
    ServeStatus,
)
from tests.cli.fakes import with_app

TRACE = 'Traceback (most recent call last):\n  File "app.py", line 3, in __init__\n    fail()\nE: x'


def status(*phases: tuple[ReplicaPhase, float], message: str = "") -> ServeStatus:
    replicas = tuple(
        ReplicaStatus(f"default/A#{number}", phase, 1, seconds) for number, (phase, seconds) in enumerate(phases)
    )
    app = ApplicationStatus(
        "default", "DEPLOYING", "", "/", 0.0, {"A": DeploymentStatus("A", "UPDATING", message, 2, replicas)}
    )
    return ServeStatus(proxies={"0": ProxyStatus("0", "HEALTHY", 2, "127.0.0.1:80")}, applications={"default": app})


def lines_of(*seen: tuple[float, ServeStatus]) -> list[str]:
    screen = Lines()
    screen.begin(["default"], 0.0)
    return [click.unstyle(line) for now, one in seen for line in screen.news(one, now)]


def test_a_line_for_each_change() -> None:
    assert lines_of(
        (10.0, status(("loading", 0.5))),
        (11.0, status(("loading", 1.5), ("starting", 0.0))),
        (13.0, status(("ready", 0.5), ("starting", 2.0))),
        (14.0, status(("ready", 1.5))),
    ) == [
        "default/A#0  loading",
        "default/A#1  starting",
        "default/A#0  ready after 3.0 s, 1 of 2",
        "default/A#1  ended",
    ]


def test_a_failure_is_said_once_and_short() -> None:
    said = "A replica failed to start; 2 more may fail. The error:\nTraceback\n  x\nValueError: no model\n"
    assert lines_of((0.0, status(message=said)), (1.0, status(message=said))) == [
        "A: A replica failed to start; 2 more may fail: ValueError: no model"
    ]


@pytest.mark.parametrize(
    ("message", "short"),
    [
        ("", ""),
        ("one.", "one"),
        ("It is so. The last error:\n", "It is so"),
        ("a.\nb", "a: b"),
        (TRACE, "E: x"),
        (f"in a: {TRACE}", "in a: E: x"),
    ],
)
def test_brief(message: str, short: str) -> None:
    assert brief(message) == short


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (10, "10 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_where_an_application_is() -> None:
    seen = status()
    app = seen.applications["default"]
    assert url(seen, app) == "http://127.0.0.1:80/"
    assert url(seen, replace(app, route_prefix="/a")) == "http://127.0.0.1:80/a/"
    assert url(seen, replace(app, route_prefix=None)) is None
    assert "not reachable by HTTP" in ready_line(ServeStatus(), app, 1.0)
    assert summary(seen, ["default"]) == ["  A  2 replicas", "  routes: http://127.0.0.1:80/-/routes"]
    assert "beside it: application default" in summary(seen, ["other"])[0]


def test_the_table_moves_and_makes_way_for_lines(capfd: pytest.CaptureFixture[str]) -> None:
    screen = LiveTable(listens=True)
    assert screen.output is None  # stderr is no terminal here
    screen.begin(["default"], 0.0)
    assert screen.period_s is not None
    screen.show(status(("loading", 0.5)), 1.0)
    screen._printed(b"first\rloa")
    screen._printed(b"ded\nhalf")
    screen.tick(2.0)
    screen.settle()
    assert screen.period_s is None
    screen.show(status(("ready", 0.5)), 3.0)
    screen._printed(b" a line\n")
    screen.close()
    shown = capfd.readouterr().out
    assert "loaded\n" in shown
    assert shown.endswith("half" + "default/A#0  ready after 2.0 s, 1 of 2\n" + " a line\n")


def test_each_replica_that_is_not_ready_has_its_phase_and_its_seconds() -> None:
    screen = LiveTable()
    screen.begin(["default", "other"], 0.0)
    screen.show(status(("ready", 9.0), ("loading", 3.0)), 5.0)
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as captured:
        console.print(screen._drawing(17.0))
    shown = " ".join(captured.get().split())
    assert "Starting default 17 s http://127.0.0.1:80/ A 1 of 2 ready replica 2/2 loading 15 s" in shown
    assert "Starting other 17 s" in shown
    screen.close()


def test_what_is_imported_is_said_before_there_is_a_replica() -> None:
    importing = with_app(status(), "default", message="importing app:app", deployments={})
    assert lines_of((1.0, importing), (2.0, importing)) == ["default: importing app:app"]


# -- events and signals ---------------------------------------------------------------------------------


def test_events_come_in_order_and_superfluous_ones_do_not() -> None:
    inbox: Inbox[object] = Inbox()
    inbox.post("a")
    inbox.post(1, latest=True)
    inbox.post(2, latest=True)
    inbox.post("b")
    assert inbox.take(1.0) == ["a", 2, "b"]
    assert inbox.take(0.0) == []
    inbox.close()


def test_a_thread_wakes_the_one_that_waits() -> None:
    inbox: Inbox[str] = Inbox()
    thread = threading.Thread(target=inbox.post, args=("x",))
    thread.start()
    assert inbox.take(30.0) == ["x"]
    thread.join()
    inbox.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_wakes_and_is_remembered(number: signal.Signals) -> None:
    inbox: Inbox[str] = Inbox()
    before = signal.getsignal(number)
    with inbox.signals(lambda: None):
        os.kill(os.getpid(), number)
        assert inbox.take(30.0) == []
        assert inbox.interrupted
    assert signal.getsignal(number) is before
    inbox.close()
