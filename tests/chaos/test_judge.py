"""What the chaos asserts can fail: each of its complaints is provoked once, and each excuse covers what it should."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from chaos import judge, link
from chaos.apps import FIRST, Want
from chaos.course import Result
from chaos.judge import Done, Lies, Record, Story
from chaos.report import as_json, text
from skate.core.specs import ApplicationStatus, DeploymentStatus, ProxyStatus, ReplicaStatus, ServeStatus

NAMED = "ReplicaDiedError: replica plain/Plain#3 died while it had request r in hand; it may ..."
KILL = Done("kill", "replica", "plain/Plain#3", 10.0, 10.0, 100)


def record(**other: Any) -> Record:
    fields: dict[str, Any] = {
        "id": "c1", "kind": "http plain", "app": "plain", "began": 9.9, "ended": 10.1, "word": "ok"
    }  # fmt: skip
    return Record(**{**fields, **other})


def story(*records: Record, done: tuple[Done, ...] = (), executed: dict[str, int] | None = None) -> Story:
    counts = {one.id: 1 for one in records} if executed is None else executed
    return Story(list(records), list(done), counts, len(records))


def test_a_call_that_does_not_end_or_ends_late() -> None:
    assert judge.verdict(story(record())) == []
    lost = story(record())
    lost.made = 2
    assert judge.verdict(lost) == ["2 calls were begun and 1 ended"]
    late = record(ended=9.9 + judge.DEADLINE_S + judge.SLACK_S + 1)
    assert "took 8.0 s" in judge.verdict(story(late))[0]
    halted = Done("halt", "proxy", "0", 11.0, 12.5)
    assert judge.verdict(story(late, done=(halted,))) == []


PROXY = Done("kill", "proxy", "0", 10.0, 10.0, 7)
TERM = Done("term", "proxy", "0", 10.0, 10.0, 7)
DELETE = Done("delete", "app", "fleeting", 9.0, 9.5)


@pytest.mark.parametrize(
    ("failed", "done", "excused"),
    [
        (record(word="died", text=NAMED), KILL, True),
        (record(word="died", text=NAMED), Done("kill", "replica", "plain/Plain#33", 10.0, 10.0), False),
        (record(word="died", text=NAMED), Done("kill", "replica", "plain/Plain#3", 8.0, 8.0), False),
        (record(word="died", text=NAMED), Done("term", "replica", "plain/Plain#3", 10.0, 10.0), False),
        (record(word="died", text="replica plain/Plain#3 is full"), KILL, False),
        (record(word="cut"), KILL, False),  # nobody said that it died
        (record(word="cut", begun=True), KILL, True),
        (record(word="cut", begun=True, app="shop"), KILL, False),
        (record(word="cut", proxy=7), PROXY, True),
        (record(word="cut"), PROXY, True),
        (record(word="unreachable"), PROXY, True),
        (record(word="cut", proxy=8), PROXY, False),
        (record(word="cut", proxy=7), TERM, True),
        (record(word="cut", proxy=7), Done("term", "proxy", "0", 10.07, 10.07, 7), False),
        (record(word="cut", proxy=7, begun=True), TERM, False),
        (record(word="cut", kind="websocket", text="being stopped", begun=True), TERM, True),
        (record(word="gone", app="fleeting"), DELETE, True),
        (record(word="gone"), DELETE, False),
        (record(word="gone", app="door"), DELETE, True),
        (record(word="timed out"), KILL, False),
        (record(word="hung"), KILL, False),
        (record(word="WireError"), KILL, False),
    ],
)
def test_only_the_deed_that_explains_it_excuses(failed: Record, done: Done, excused: bool) -> None:
    assert bool(judge.excuse(failed, [done])) == excused
    assert (judge.ends(story(failed, done=(done,))) == []) == excused
    assert "ended without an excuse" in judge.ends(story(failed))[0]


def test_what_is_executed_twice_or_never_or_by_nobody() -> None:
    assert "c1 was executed 2 times" in judge.executions(story(record(), executed={"c1": 2}))[0]
    assert judge.executions(story(record(again=1), executed={"c1": 2})) == []
    assert "c1 was executed 3 times" in judge.executions(story(record(again=1), executed={"c1": 3}))[0]
    assert "c1.l was executed 2 times" in judge.executions(story(record(again=1), executed={"c1": 1, "c1.l": 2}))[0]
    assert "answered and never executed" in judge.executions(story(record(), executed={}))[0]
    assert judge.executions(story(record(word="gone"), executed={})) == []
    assert "c9 was executed and nobody made it" in judge.executions(story(executed={"c9": 1}))[0]


def test_an_old_version_that_still_answers() -> None:
    running = Done("running", "plain", "2", 1.0, 3.0)
    assert judge.answers(story(record(version=2), done=(running,))) == []
    assert "by version 1, not by 2" in judge.answers(story(record(version=1), done=(running,)))[0]
    soon = record(version=1, began=3.5)
    assert judge.answers(story(soon, done=(running,))) == []
    assert judge.answers(story(record(version=1), done=(running, Done("deploy", "plain", "3", 9.0, 9.0)))) == []
    assert judge.answers(story(record(version=1, app="shop"), done=(running,))) == []


def status(ready: int = 3, state: Any = "HEALTHY", app_state: Any = "RUNNING", target: int = 3) -> ServeStatus:
    replicas = tuple(ReplicaStatus(f"plain/Plain#{i}", "ready", 100 + i, 1.0) for i in range(ready))
    deployment = DeploymentStatus("Plain", state, "", target, replicas)
    app = ApplicationStatus("plain", app_state, "why", "/plain", 0.0, {"Plain": deployment})
    return ServeStatus(1, {"0": ProxyStatus("0", "HEALTHY", 7, "127.0.0.1:1")}, {"plain": app})


def test_a_status_that_contradicts_itself() -> None:
    assert judge.inconsistent(status()) == []
    assert "HEALTHY with 2 of 3" in judge.inconsistent(status(ready=2))[0]
    assert "RUNNING while Plain is UNHEALTHY" in judge.inconsistent(status(ready=2, state="UNHEALTHY"))[0]
    assert judge.inconsistent(status(ready=2, state="UPDATING", app_state="DEPLOYING")) == []


def test_dead_replicas_that_are_shown_as_ready_for_too_long() -> None:
    ready = judge.said_ready(status())
    assert ready == {"plain/Plain#0": 100, "plain/Plain#1": 101, "plain/Plain#2": 102}
    lies = Lies()
    assert lies.look(ready, lambda pid: pid != 101, 0.0) == []
    assert lies.look({}, lambda pid: pid != 101, 1.0) == []  # it was not shown any more: that counts anew
    assert lies.look(ready, lambda pid: pid != 101, 2.0) == []
    (lie,) = lies.look(ready, lambda pid: pid != 101, 2.1 + judge.LAG_S)
    assert "plain/Plain#1 (pid 101) is dead" in lie


def test_what_is_not_as_it_is_wanted() -> None:
    want = Want(version=2, replicas=3, factor=1)
    told = [["", f"plain/Plain#{i}", 2, 1] for i in range(3)]

    def left(seen: ServeStatus, *answers: Any, wants: Any = None) -> str:
        asked = {"plain/Plain": list(answers)} if answers else {}
        return "; ".join(judge.unsettled(seen, {"plain": want} if wants is None else wants, asked))

    assert left(status(), *told) == ""
    assert "plain is DEPLOYING: why" in left(status(app_state="DEPLOYING"))
    assert "plain is not there" in left(ServeStatus())
    assert "has 2 replicas ready, 3 are wanted" in left(status(ready=2))
    assert "['plain/Plain#2'] answered and are not shown" in left(status(ready=2), *told)
    assert "['plain/Plain#2'] are shown as ready and answered nothing" in left(status(), *told[:2])
    assert "runs version 1" in left(status(), *told, ["", "plain/Plain#0", 1, 1])
    assert "factor 0" in left(status(), *told, ["", "plain/Plain#0", 2, 0])
    assert "plain is there and not wanted" in left(status(), wants={})
    assert "proxy 0 is STARTING" in left(replace(status(), proxies={"0": ProxyStatus("0", "STARTING", 0, "")}))


def test_the_judge_of_the_link_can_fail() -> None:
    def calls(**other: Any) -> list[Record]:
        return [record(kind="call over the link", **other)]

    assert link.ended(calls()) == link.ended(calls(word="timed out")) == []
    assert link.ended(calls(word="died", text="replica link/Remote#1 died")) == []
    assert "ended as 'died'" in link.ended(calls(word="died", text="somebody"))[0]
    assert "ended as 'cut'" in link.ended(calls(word="cut"))[0]
    assert "took 9.0 s" in link.ended(calls(ended=18.9))[0]
    assert link.repeated(calls(), Counter(c1=1)) == []
    assert "executed 2 times" in link.repeated(calls(), Counter(c1=2))[0]
    assert link.repeated(calls(again=1), Counter(c1=2)) == []
    assert "never executed" in link.repeated(calls(), Counter())[0]


def test_complaints_of_one_sort_are_shown_a_few_times() -> None:
    kept = judge.shortened([f"call c{i} was executed 2 times" for i in range(20)] + ["another"])
    assert len(kept) == judge.EXAMPLES_MAX + 2 and "15 more" in kept[-1]


def test_the_report_shows_everything() -> None:
    failed = record(word="died", text=NAMED, id="c2")
    result = Result(7, 3.0, story(record(), failed, done=(KILL,)), ["a fault"], ["a remark"])
    result.deeds["kill replica"] = 1
    result.link = {"calls": 5, "cuts": 2, "ended": {"ok": 5}, "faults": []}
    shown = text(result)
    for word in (
        "seed 7",
        "kill replica 1",
        "http plain",
        "died 1",
        "FAULTS: 1",
        "a fault",
        "a remark",
        "5 calls under",
    ):
        assert word in shown
    assert b'"a fault"' in as_json(result)
    result.link = {"skipped": "not allowed", "faults": []}
    assert "no link is cut: not allowed" in text(result)


def test_what_is_wanted_first_is_sound() -> None:
    assert FIRST["single"].replicas == 1 and not any(want.broken for want in FIRST.values())
