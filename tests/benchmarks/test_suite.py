from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec
import pytest

from benchmarks import compare
from benchmarks.processes import Cost
from benchmarks.suite import environments, tables
from benchmarks.suite.goals import GOALS, OWN, Goal, Judged, judge
from benchmarks.suite.methods import METHODS, spent
from benchmarks.suite.results import Results, title
from benchmarks.suite.systems import ALL, PEERS, ROOT, SKATE, System, document_of
from benchmarks.suite.works import GROUPS, HTTP, START

HELLO = HTTP.works[0].name


def _results(**rounds: list[float]) -> Results:
    """Requests/s of HTTP hello by system."""
    results = Results()
    for system, values in rounds.items():
        for value in values:
            results.add(system, "http", HELLO, {"requests/s": value, "load cores": 0.5})
    return results


# -- results --------------------------------------------------------------------------------------


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    results = _results(Skate=[60, 10, 90], Mosec=[100, 10, 100])
    assert results.value("http", HELLO, "requests/s", "Skate") == 60
    assert results.ratio("http", HELLO, "requests/s", "Skate", "Mosec") == pytest.approx(0.9)


def test_who_was_not_measured_has_no_value() -> None:
    results = _results(Skate=[1])
    assert results.value("http", HELLO, "requests/s", "Mosec") is None
    assert results.ratio("http", HELLO, "requests/s", "Skate", "Mosec") is None
    assert results.value("nowhere", "nothing", "x", "Skate") is None


def test_a_failure_is_noted_once_and_one_of_a_group_counts_for_all_its_works() -> None:
    results = Results()
    results.fail("Mosec", "http", "", "it did not start")
    results.fail("Mosec", "http", HELLO, "and so this is missing")
    results.fail("BentoML", "http", HELLO, "too slow")
    assert [failure.reason for failure in results.failures] == ["it did not start", "too slow"]
    assert results.failed("Mosec", "http", "anything")
    assert not results.failed("BentoML", "http", "another")


def test_what_is_published_names_no_folder() -> None:
    results = Results()
    results.fail("Mosec", "http", "", f'File "{ROOT}/benchmarks/x.py" of {Path.home()}/y')
    assert results.failures[0].reason == 'File "benchmarks/x.py" of y'


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/a/b/python -m benchmarks.peers.limit 80 hello", "benchmarks.peers.limit 80 hello"),
        ("/a/python3.11 -u /c/monitor.py --logs-dir=/x", "monitor.py"),
        ("skate: replica hello/Hello#1", "skate: replica hello/Hello#1"),
        ("/a/raylet/raylet --socket=/x", "raylet"),
        ("", ""),
    ],
)
def test_a_process_is_called_by_what_it_does(command: str, name: str) -> None:
    assert title(command) == name


def test_cpu_time_is_counted_for_processes_that_came_meanwhile() -> None:
    assert spent({1: 2.0, 2: 5.0}, {1: 2.5, 3: 0.25}) == pytest.approx(0.75)


# -- goals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "own", "verdict"),
    [
        (Goal("a", "http", HELLO, "requests/s", ">=", 0.9, "Mosec"), [89], "short"),
        (Goal("a", "http", HELLO, "requests/s", ">=", 0.9, "Mosec"), [91], "pass"),
        (Goal("a", "http", HELLO, "requests/s", "<=", 90), [91], "short"),
        (Goal("a", "http", HELLO, "requests/s", "<=", 90), [90], "pass"),
        (Goal("a", "http", HELLO, "requests/s", ">=", 1, "BentoML"), [100], "not measured"),
        (Goal("a", "http", "another", "requests/s", ">=", 1), [100], "not measured"),
    ],
)
def test_one_rule_judges_goals(goal: Goal, own: list[float], verdict: str) -> None:
    assert judge(goal, _results(Skate=own, Mosec=[100])).verdict == verdict


def test_every_goal_is_about_something_that_is_measured() -> None:
    works = {(group.name, work.name) for group in GROUPS for work in group.works}
    for goal in GOALS:
        assert (goal.group, goal.work) in works, goal
        assert not goal.than or goal.than in {system.name for system in PEERS}, goal
        served = next(group.app for group in GROUPS if group.name == goal.group)
        assert all(served in system.apps for system in ALL if system.name in (OWN, goal.than)), goal


# -- works and systems ----------------------------------------------------------------------------


def test_every_work_has_its_method_and_somebody_to_do_it() -> None:
    names = {system.name for system in ALL}
    for group in GROUPS:
        assert group.app in SKATE.apps
        assert len({work.name for work in group.works}) == len(group.works)
        for work in group.works:
            assert work.kind in METHODS or group is START
            assert set(work.only) <= names
            assert work.seconds <= 10


def test_every_peer_is_pinned_and_has_its_program() -> None:
    for system in PEERS:
        assert (environments.REQUIREMENTS / f"{system.module}.py").exists()
        assert not system.venv or environments.version(system), system.name
    assert environments.requirements(environments.PLOTS).exists()


def test_a_request_is_made_as_the_system_wants_it() -> None:
    plain, posts = System("a", "a", "a"), System("b", "b", "b", posts=True, wraps=True)
    assert (plain.request("/x").method, posts.request("/x").method) == ("GET", "POST")
    assert posts.request("/x").body == b"{}"
    assert json.loads(posts.request("/x", "json", 200).body)["value"] == json.loads(document_of(200))
    assert plain.request("/x", "bytes", 7).body == bytes(7)


@pytest.mark.parametrize("size", [200, 1024, 4096])
def test_a_document_has_about_its_size(size: int) -> None:
    assert size - 16 <= len(document_of(size)) <= size + 16


# -- tables ---------------------------------------------------------------------------------------


def test_a_grid_has_its_columns_below_each_other() -> None:
    lines = tables.grid(("", "a"), [["first", "1"], ["x", "1,000"]]).splitlines()
    assert lines == ["|       |     a |", "| ----- | ----: |", "| first |     1 |", "| x     | 1,000 |"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01823, "0.0182"),
        (None, "–"),
        (float("nan"), "?"),
        (0, "0"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (12345.6, "12,346"),
    ],
)
def test_values_have_three_digits(value: float | None, text: str) -> None:
    assert tables.shown(value) == text


def _run() -> dict[str, object]:
    machine = {"cores": 2, "cpu": "a CPU", "memory_mb": 1000, "system": "Linux"}
    return {
        "machine": machine, "versions": {"python": "3.11"}, "commit": "abc", "date": "today", "rounds": 1,
        "seconds": 1.0, "busy_before": 0.01, "load": "wrk", "busy_after": None, "peers": {"Mosec": "1.0"},
    }  # fmt: skip


def test_the_page_shows_what_was_seen_and_what_is_missing() -> None:
    results = _results(Skate=[200], Mosec=[100])
    results.add("the limit", "http", HELLO, {"requests/s": 300, "load cores": 0.95})
    results.fail("BentoML", "http", "", "it could not\nbe installed")
    results.processes["Skate"] = [Cost(1, "skate: a | b", 2.0, 1.0, 3)]
    text = tables.page(_run(), results, ["Skate", "Mosec", "BentoML", "the limit"])
    (hello,) = [line for line in text.splitlines() if line.startswith(f"| {HELLO} ")]
    assert [cell.strip() for cell in hello.split("|")[2:5]] == ["200", "100", "300°"]
    assert "- BentoML: it could not be installed" in text
    assert "| skate: a / b |" in text
    assert "load cores" not in text
    assert "not measured" in text


def test_a_document_shows_the_goals_where_it_has_its_marks() -> None:
    document = f"before\n\n{tables.BEGIN}\nold\n{tables.END}\n\nafter\n"
    new = tables.published(document, tables.extract(_run(), _results(Skate=[1])))
    assert new.startswith("before\n\n") and new.endswith("\n\nafter\n")
    assert "old" not in new and "HTTP hello, 64 connections" in new
    assert tables.published(new, "x") == tables.published(document, "x")
    with pytest.raises(ValueError, match="no place"):
        tables.published("without marks", "x")


def test_the_performance_page_has_its_place() -> None:
    assert tables.published(compare.DOCUMENT.read_text(), "x")


def test_short_goals_are_named() -> None:
    lines = tables.short(_results(Skate=[1.0]))
    assert any(line.startswith("not measured: HTTP hello, 64 connections (Ray Serve)") for line in lines)


# -- the command ----------------------------------------------------------------------------------


def test_the_command_line_chooses_groups_and_peers() -> None:
    told = compare.arguments(["--only", "http", "--peers", "ray-serve-haproxy", "--peers", "mosec", "--rounds", "2"])
    groups, systems = compare.chosen(told)
    assert [group.name for group in groups] == ["http"]
    assert [system.name for system in systems] == ["Skate", "Ray Serve, HAProxy", "Mosec"]
    for wrong in (["--rounds", "0"], ["--only", "gpu"], ["--peers", "nobody"]):
        with pytest.raises(SystemExit):
            compare.arguments(wrong)


def test_a_quick_run_leaves_out_what_takes_long() -> None:
    groups, _ = compare.chosen(compare.arguments(["--quick"]))
    assert not any(work.long for group in groups for work in group.works)
    everything, _ = compare.chosen(compare.arguments([]))
    assert any(work.long for group in everything for work in group.works)


def test_the_file_holds_every_round_and_every_goal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "none")
    compare.write(tmp_path, _run(), _results(Skate=[1, 2]), "the page")
    read = msgspec.json.decode((tmp_path / "peers.json").read_bytes())
    assert read["seen"]["http"][HELLO]["requests/s"]["Skate"] == [1, 2]
    assert len(read["goals"]) == len(GOALS)
    assert (tmp_path / "peers.md").read_text() == "the page"


def test_an_environment_that_cannot_be_made_costs_its_peers_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "set_up", lambda name: "no network" if name == "mosec" else "")
    results = Results()
    left = compare._set_up(ALL, [HTTP], results)
    assert "Mosec" not in {system.name for system in left}
    assert len(left) == len(ALL) - 1
    assert "no network" in results.failures[0].reason


def test_a_goal_that_was_judged_is_a_value() -> None:
    assert Judged(GOALS[0], None, None, None).verdict == "not measured"
    assert isinstance(compare.arguments([]), argparse.Namespace)
