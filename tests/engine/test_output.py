"""Logs of processes, without processes: bounds, names, what is shown besides, what stays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.engine import output
from skate.engine.output import Log, Shelf, Stream, log_path, stem


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(log_path(str(tmp_path), "app/A#1"))
    yield made
    os.close(made.fd)


def text(log: Log, ending: str = "") -> str:
    return Path(log.path + ending).read_text()


def test_a_full_log_becomes_the_former_one_and_its_descriptor_stays(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LOG_BYTES_MAX", 10)
    monkeypatch.setattr(output, "LOOK_AFTER_BYTES", 0)
    other = os.open(log.path, os.O_WRONLY | os.O_APPEND)  # as a program that user code has started holds it
    for word in (b"1234567\n", b"abcdefg\n", b"second\n"):
        log.write(memoryview(word))
    os.write(other, b"third\n")
    os.close(other)
    assert text(log, ".1") == "1234567\nabcdefg\n"
    assert text(log) == "second\nthird\n"


def test_what_did_not_go_through_it_counts_too(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LOG_BYTES_MAX", 10)
    os.write(log.fd, b"said by a library")
    log.keep_bounded()
    assert (text(log), text(log, ".1")) == ("", "said by a library")


def test_a_disk_that_is_full_is_no_error_of_who_prints(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), log.fd)
    stream = Stream("<stdout>", 1, log, False)
    assert stream.write(b"lost") == 4


@pytest.mark.parametrize("shown", [True, False])
def test_a_stream_writes_into_the_log_and_where_it_is_shown(log: Log, shown: bool) -> None:
    reader, writer = os.pipe()
    stream = Stream("<stdout>", writer, log, shown)
    assert stream.write(memoryview(b"word\n")) == 5
    assert (stream.fileno(), stream.isatty()) == (writer, False)
    os.close(writer)
    with open(reader, "rb") as seen:
        assert seen.read() == (b"word\n" if shown else b"")
    assert text(log) == "word\n"


def test_a_reader_that_left_is_no_error_of_who_prints(log: Log) -> None:
    reader, writer = os.pipe()
    stream = Stream("<stdout>", writer, log, True)
    os.close(reader)
    assert stream.write(b"one\n") == stream.write(b"two\n") == 4
    os.close(writer)
    assert text(log) == "one\ntwo\n"


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=300), min_size=2, max_size=2, unique=True))
def test_names_of_files_are_safe_and_differ(ids: list[str]) -> None:
    names = [stem(id) + output.FORMER for id in ids]
    assert names[0] != names[1]
    for name in names:
        assert "/" not in name and "\0" not in name and len(os.fsencode(name)) <= 255 and name not in (".", "..")


# -- what stays ---------------------------------------------------------------------------------------


def ended(shelf: Shelf, folder: Path, id: str, said: str = "x") -> None:
    Path(log_path(str(folder), id)).write_text(said)
    shelf.ended(id)


def test_of_those_that_ended_the_newest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "ENDED_MAX", 2)
    shelf = Shelf(str(tmp_path))
    (tmp_path / (stem("a/A#1") + output.FORMER)).write_text("former")
    for number in (1, 2, 3):
        ended(shelf, tmp_path, f"a/A#{number}")
    ended(shelf, tmp_path, "a/A#4", said="")
    shelf.ended("a/A#5")  # it never had one
    assert sorted(os.listdir(tmp_path)) == [f"a%2FA#{number}.log" for number in (3,)]


CRASH = 'before\nFatal Python error: Aborted\n\nCurrent thread 0x1:\n  File "a.py"\n\nThread 0x2:\n  File "b.py"\n'


@pytest.mark.parametrize(
    ("said", "code", "crash"),
    [
        (CRASH, -6, 'Fatal Python error: Aborted\nCurrent thread 0x1:\n  File "a.py"'),
        (CRASH, -9, ""),
        (CRASH, 1, ""),
        (CRASH, None, ""),
        ("nothing", -11, ""),
    ],
)
def test_a_crash_is_quoted(tmp_path: Path, said: str, code: int | None, crash: str) -> None:
    Path(log_path(str(tmp_path), "a/A#1")).write_text(said)
    assert Shelf(str(tmp_path)).crash("a/A#1", code) == crash


def test_the_crash_of_one_without_a_log(tmp_path: Path) -> None:
    assert Shelf(str(tmp_path)).crash("a/A#1", -6) == ""
