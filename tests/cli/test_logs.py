"""``skate logs`` on files that the test writes: which lines, in which order, and what comes later."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from skate.cli import main, printed
from skate.cli.logs import Follower, Pick, Record, past, records_of, time_of
from skate.core.environment import environment
from skate.engine.output import FORMER, LOG, stem
from skate.engine.runtime_dir import LOGS

AT = datetime(2026, 11, 27, 7, 30, 0).timestamp()


def line(second: int, text: str, request: str = "") -> str:
    return f"2026-11-27 07:30:{second:02},500 INFO [skate: x{request and f', request {request}'}] {text}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The logs of an instance with one application beside the system's processes."""
    monkeypatch.setenv("SKATE_RUNTIME_DIR", str(tmp_path))
    environment.cache_clear()
    made = tmp_path / "default" / LOGS
    made.mkdir(parents=True)
    write(made, "controller", line(1, "decided"))
    write(made, "shop/Model#1", "loading\n" + line(2, "one", "abc-1") + "Traceback\n  x\n" + line(4, "two", "abc-12"))
    write(made, "shop/Front#2", line(3, "three", "abc-1"))
    write(made, "other/Model#3", line(5, "request abc-1 failed"))
    return made


def write(folder: Path, id: str, text: str, ending: str = LOG) -> None:
    (folder / (stem(id) + ending)).write_text(text)


def invoke(*words: str) -> Result:
    return CliRunner().invoke(main, ("logs", *words))


def said(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [line.rpartition("] ")[2].rpartition("  ")[2] for line in result.stdout.splitlines()]


def test_all_processes_are_merged_by_time(folder: Path) -> None:
    result = invoke()
    assert said(result) == ["decided", "loading", "one", "Traceback", "x", "three", "two", "request abc-1 failed"]
    assert result.stdout.startswith("controller  2026-11-27 07:30:01,500 INFO")
    assert "\nshop/Model#1  loading\n" in result.stdout


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (("--app", "other"), ["request abc-1 failed"]),
        (("--deployment", "Model", "-n", "2"), ["two", "request abc-1 failed"]),
        (("--app", "shop", "--deployment", "Front"), ["three"]),
        (("--replica", "shop/Front#2"), ["three"]),
        (("--replica", "#2"), ["three"]),
        (("--replica", "2"), ["three"]),
        (("--request-id", "abc-1"), ["one", "Traceback", "x", "three", "request abc-1 failed"]),
        (("--request-id", "abc"), []),
        (("--since", "2026-11-27T07:30:04"), ["two", "request abc-1 failed"]),
        (("--since", "1d", "--app", "nix"), []),
        (("-n", "0"), []),
        (("-n", "3"), ["three", "two", "request abc-1 failed"]),
    ],
)
def test_what_is_picked(folder: Path, words: tuple[str, ...], lines: list[str]) -> None:
    assert said(invoke(*words)) == lines


def test_one_replica_needs_no_name_before_its_lines(folder: Path) -> None:
    assert invoke("--replica", "2").stdout == line(3, "three", "abc-1")


def test_the_former_text_is_read_where_all_is_wanted(folder: Path) -> None:
    write(folder, "controller", line(0, "early", "abc-1"), FORMER)
    assert said(invoke("--request-id", "abc-1"))[0] == "early"


@pytest.mark.parametrize("word", ["soon", "10", "10x", "2026-13-01"])
def test_a_time_that_is_none(folder: Path, word: str) -> None:
    result = invoke("--since", word)
    assert result.exit_code == 2 and "write 30s, 10m" in result.stderr


def test_without_an_instance() -> None:
    result = invoke()
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "no Skate instance is running" in result.stderr


def test_any_names_are_told_apart(tmp_path: Path) -> None:
    for number, app in enumerate(("a%2FA", "ä b", "a", "build a")):
        write(tmp_path, f"{app}/A#{number}", f"{app}\n")
    for app in ("a%2FA", "ä b", "a", "build a"):
        assert [one.lines for one in past(str(tmp_path), Pick(app=app), 10)[0]] == [[app]]


def test_builds_belong_to_their_application(tmp_path: Path) -> None:
    write(tmp_path, "build shop@1a2b", "importing\n")
    assert [one.lines for one in past(str(tmp_path), Pick(app="shop"), 10)[0]] == [["importing"]]
    assert past(str(tmp_path), Pick(app="sho"), 10)[0] == past(str(tmp_path), Pick(deployment="A"), 10)[0] == []


# -- records ------------------------------------------------------------------------------------------


def test_times() -> None:
    assert time_of(line(7, "x")) == AT + 7.5
    assert time_of("2026-11-27T07:30:07.500 own form") == AT + 7.5
    for other in ("", "x", "2026-11-27 07:30:00 INFO [x] no milliseconds", "2026-99-27 07:30:00,000 INFO [x]"):
        assert time_of(other) is None


def test_lines_without_a_time_go_with_what_is_before_them() -> None:
    first, second = line(1, "a").rstrip(), line(2, "b").rstrip()
    assert records_of("p", ["print", first, "more", second], 9.0) == [
        Record("p", AT + 1.5, ["print"]),
        Record("p", AT + 1.5, [first, "more"]),
        Record("p", AT + 2.5, [second]),
    ]
    assert records_of("p", ["print"], 9.0) == [Record("p", 9.0, ["print"])]


def test_of_a_progress_bar_its_end_is_shown(tmp_path: Path) -> None:
    write(tmp_path, "a/A#1", "10 %\r50 %\r100 %\n windows\r\nhalf")
    assert [one.lines for one in past(str(tmp_path), Pick(), 10)[0]] == [["100 %", " windows"]]


# -- following ----------------------------------------------------------------------------------------


class Follows:
    """A follower from the start of a folder, and what it showed since one last looked."""

    def __init__(self, folder: Path, pick: Pick = Pick()) -> None:  # noqa: B008 (immutable)
        self.follower = Follower(str(folder), pick, {})
        self.shown: list[str] = []

    def look(self) -> list[str]:
        self.shown = []
        self.there = self.follower.look(lambda name, line: self.shown.append(line.rpartition("] ")[2]))
        return self.shown


def append(folder: Path, id: str, text: str) -> None:
    with open(folder / (stem(id) + LOG), "a") as file:
        file.write(text)


def test_new_lines_and_new_processes_are_shown_once(tmp_path: Path) -> None:
    follows = Follows(tmp_path)
    append(tmp_path, "a/A#1", line(1, "one") + "ha")
    assert follows.look() == ["one"]
    append(tmp_path, "a/A#1", "lf\n")
    append(tmp_path, "a/A#2", "other\n")
    assert follows.look() == ["half", "other"]
    assert follows.look() == []
    follows.follower.close()


def test_what_was_shown_already_is_not_shown_again(folder: Path) -> None:
    append(folder, "controller", "half")
    _, read_to = past(str(folder), Pick(), 100)
    append(folder, "controller", " a line\n")
    shown: list[tuple[str, str]] = []
    follower = Follower(str(folder), Pick(), read_to)
    follower.look(lambda *what: shown.append(what))
    follower.close()
    assert shown == [("controller", "half a line")]


def test_a_file_that_begins_anew_loses_no_line(tmp_path: Path) -> None:
    follows = Follows(tmp_path)
    append(tmp_path, "a/A#1", "one\n")
    follows.look()
    append(tmp_path, "a/A#1", "two\n")
    path = tmp_path / (stem("a/A#1") + LOG)
    write(tmp_path, "a/A#1", path.read_text(), FORMER)
    os.truncate(path, 0)
    append(tmp_path, "a/A#1", "3\n")
    assert follows.look() == ["two", "3"]
    follows.follower.close()


def test_only_what_is_picked_is_followed(tmp_path: Path) -> None:
    follows = Follows(tmp_path, Pick(app="a", request_id="abc-1"))
    append(tmp_path, "a/A#1", "print\n" + line(1, "one", "abc-1") + "its second line\n" + line(2, "two") + "print\n")
    append(tmp_path, "b/A#2", line(1, "three", "abc-1"))
    assert follows.look() == ["one", "its second line"]
    follows.follower.close()


def test_the_last_words_are_shown_when_the_folder_goes(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    follows = Follows(folder)
    append(folder, "a/A#1", "one\n")
    assert (follows.look(), follows.there) == (["one"], True)
    append(folder, "a/A#1", "last\n")
    (folder / (stem("a/A#1") + LOG)).unlink()
    folder.rmdir()
    assert (follows.look(), follows.there) == (["last"], False)
    follows.follower.close()


def test_the_end_of_the_instance_ends_following(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printed, "running_pid", lambda _: 1)
    monkeypatch.setattr(printed, "LOOK_S", 0.0)
    looks = iter([True, True, False])
    monkeypatch.setattr(Follower, "look", lambda self, show: next(looks))
    result = invoke("--follow", "-n", "1")
    assert (result.exit_code, result.stderr) == (1, "error: the instance has ended\n")
    assert "request abc-1 failed" in result.stdout
