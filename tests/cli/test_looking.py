"""Commands that look, against an instance in memory, and what changes as lines."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from skate.authoring.config import read_text
from skate.cli import main, watching
from skate.cli.news import News
from skate.core.config import AppConfig, ServeConfig
from skate.core.specs import Event, ServeStatus
from tests.cli.fakes import FakeInstance, install, with_app
from tests.cli.test_applications import BEGINNING, BOTH_RUN, ONE_RUNS


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeInstance:
    made = install(monkeypatch, str(tmp_path))
    made.controller.statuses = [BOTH_RUN]
    return made


def invoke(*words: str) -> Result:
    return CliRunner().invoke(main, words)


class Takes:
    """Ends a watching command, as Ctrl-C does, once it has seen so many statuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.left = count
        outer = self

        class Counted(watching.Inbox[watching.Seen | watching.Gone]):
            waiting: list[watching.Seen | watching.Gone] = []

            def take(self, timeout_s: float | None) -> list[watching.Seen | watching.Gone]:
                self.waiting = self.waiting or super().take(timeout_s)
                taken, self.waiting = self.waiting[:1], self.waiting[1:]
                outer.left -= len(taken)
                return taken

            def post(self, event: watching.Seen | watching.Gone, *, latest: bool = False) -> None:
                super().post(event)  # each one counts here

            @property
            def interrupted(self) -> bool:
                return outer.left <= 0

        monkeypatch.setattr(watching, "Inbox", Counted)


def test_status_of_one_application_and_of_its_calls(here: FakeInstance) -> None:
    assert "Application one" in invoke("status", "--name", "one").stdout
    assert "Application two" not in invoke("status", "--name", "one").stdout
    assert json.loads(invoke("status", "--json", "--name", "two").stdout)["name"] == "two"
    assert "total" in invoke("status", "--calls").stdout
    assert "is running; running are: one, two" in invoke("status", "--name", "nix").stderr


def test_watching_without_a_terminal_says_what_changes(here: FakeInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    here.controller.statuses = [BEGINNING, ONE_RUNS]
    Takes(monkeypatch, 2)
    result = invoke("status", "--watch")
    assert result.exit_code == 0
    lines = [line.partition("  ")[2] for line in result.stdout.splitlines()]
    places = [lines.index(f"one{said}") for said in ("  DEPLOYING", "/Model#0  ready after 0.0 s, 2 of 2", "  RUNNING")]
    assert places == sorted(places)
    assert lines.count("two  DEPLOYING") == 1


def test_watching_one_application_for_programs(here: FakeInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    here.controller.statuses = [BEGINNING, ONE_RUNS]
    Takes(monkeypatch, 2)
    result = invoke("status", "--watch", "--json", "--name", "one")
    assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == ["DEPLOYING", "RUNNING"]


def test_an_application_that_goes_is_watched_for(here: FakeInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    here.controller.statuses = [BOTH_RUN, ServeStatus(), BOTH_RUN]
    Takes(monkeypatch, 3)
    lines = invoke("status", "--watch", "--json", "--name", "one").stdout.splitlines()
    assert [json.loads(line) is None for line in lines] == [False, True, False]


def test_watching_goes_over_to_the_next_controller(here: FakeInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    here.controller.losses = 1
    monkeypatch.setattr("skate.cli.following.running_pid", lambda _: 1)
    monkeypatch.setattr("skate.cli.following.AGAIN_S", 0.0)
    Takes(monkeypatch, 1)
    assert "one  RUNNING" in invoke("status", "--watch").stdout


def test_the_end_of_the_instance_ends_watching(here: FakeInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    here.controller.losses = 1
    monkeypatch.setattr("skate.cli.following.running_pid", lambda _: None)
    result = invoke("status", "--watch")
    assert (result.exit_code, result.stderr) == (1, "error: the instance has ended\n")


def test_config_is_a_file_that_can_be_deployed(here: FakeInstance) -> None:
    here.controller.applied = ServeConfig(
        (AppConfig("one", "pack:app", "/", {"size": 3}, deployments={"Model": {"num_replicas": 2}}),)
    )
    said = invoke("config").stdout
    read, notes = read_text(said, {})
    assert (read, notes) == (here.controller.applied, [])
    assert json.loads(invoke("config", "--json").stdout)["applications"][0]["args"] == {"size": 3}


# -- events -------------------------------------------------------------------------------------------

EVENTS = [
    Event(1, 0.0, "one", "", "deployed", "revision 1"),
    Event(2, 0.0, "one", "Model", "replica_died", "one/Model#1 was killed\nby SIGKILL"),
    Event(3, 0.0, "two", "Model", "scaled", "2 → 3"),
]


def test_events_as_lines(here: FakeInstance) -> None:
    here.controller.log = EVENTS
    lines = invoke("events").stdout.splitlines()
    assert [line.split("  ", 1)[1] for line in (lines[0], lines[3])] == [
        "one  deployed  revision 1",
        "two/Model  scaled  2 → 3",
    ]
    assert lines[1].endswith("one/Model  replica_died  one/Model#1 was killed") and lines[2] == "    by SIGKILL"
    assert "deployed" not in invoke("events", "--lines", "1").stdout
    assert "scaled" not in invoke("events", "--app", "one").stdout
    assert [json.loads(line)["id"] for line in invoke("events", "--json").stdout.splitlines()] == [1, 2, 3]


def test_events_are_followed_and_each_is_shown_once(here: FakeInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    here.controller.log = EVENTS[:1]
    here.controller.statuses = [BOTH_RUN, BOTH_RUN]
    Takes(monkeypatch, 2)
    asked = here.controller.events

    async def growing(*words: object) -> list[Event]:
        found = await asked(*words)  # type: ignore[arg-type]
        here.controller.log = EVENTS
        return found

    monkeypatch.setattr(here.controller, "events", growing)
    assert [line.split()[3] for line in invoke("events", "--follow").stdout.splitlines() if line[0] != " "] == [
        "deployed",
        "replica_died",
        "scaled",
    ]


# -- completion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: str) -> None:
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert "_SKATE_COMPLETE" in result.stdout


def completed(words: str, begun: str) -> list[str]:
    environment = {"_SKATE_COMPLETE": "bash_complete", "COMP_WORDS": f"skate {words} {begun}", "COMP_CWORD": "2"}
    output = CliRunner().invoke(main, [], prog_name="skate", env=environment).output
    return [line.partition(",")[2] for line in output.splitlines() if line]


def test_names_are_completed(here: FakeInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skate.cli.group.running_pid", lambda _: 1)
    assert completed("delete", "") == ["one", "two"]
    assert completed("rollback", "t") == ["two"]
    assert completed("scale", "one/") == ["one/Model"]


def test_completion_is_silent_without_an_instance() -> None:
    assert completed("delete", "x") == []


# -- what is new --------------------------------------------------------------------------------------


def test_news_of_states_come_once() -> None:
    news = News(states=True)
    first = [click.unstyle(line) for line in news.of(BEGINNING, 1.0)]
    assert "Proxy 0  HEALTHY" in first and "two/Model  UPDATING  2 replicas wanted" in first
    assert news.of(BEGINNING, 2.0) == []
    gone = replace(BEGINNING, applications={"two": BEGINNING.applications["two"]})
    assert "one  gone" in news.of(gone, 3.0)


def test_news_of_named_applications_only() -> None:
    assert not [line for line in News(["one"]).of(BEGINNING, 1.0) if "two" in line.split("  ")[0]]
    assert News(["nix"], states=True).of(ServeStatus(), 1.0) == []


def test_what_somebody_wants_else_is_news() -> None:
    news = News(["one"], states=True)
    news.of(BOTH_RUN, 1.0)
    model = replace(BOTH_RUN.applications["one"].deployments["Model"], target_replicas=3)
    more = with_app(BOTH_RUN, "one", deployments={"Model": model})
    assert [click.unstyle(line) for line in news.of(more, 2.0)] == ["one/Model  UPDATING  3 replicas wanted"]


def test_what_was_so_before_anybody_looked_is_no_news() -> None:
    news = News(["one"], 10.0)
    assert news.of(ONE_RUNS, 9.0) == []
    assert [line for line in news.of(BEGINNING, 11.0) if "Model#0" in line] != []
