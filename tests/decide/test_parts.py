"""Properties of the parts that decide: deltas, back-off, the ledger."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from skate.controlplane.decide import ledger, restart
from skate.controlplane.decide.publish import Published, published
from skate.controlplane.decide.rollout import Pace, Stage, Standing, to_start, to_stop
from skate.controlplane.decide.values import Desired, Failures, Goal, Memory, Observed
from skate.controlplane.publications import Publications
from skate.core.specs import Counts, DeploymentTarget, LedgerReport, ReplicaTarget, Route, Snapshot
from tests.decide.world import deployment, goal, random_goal

targets = st.builds(
    DeploymentTarget,
    app=st.just("a"),
    name=st.sampled_from("ABCD"),
    max_ongoing_requests=st.integers(1, 3),
    max_queued_requests=st.just(-1),
    replicas=st.lists(st.sampled_from("xyz"), unique=True).map(
        lambda ids: tuple(ReplicaTarget(id, f"memory:{id}") for id in ids)
    ),
)
states = st.builds(
    lambda found, prefixes: Published({one.key: one for one in found}, tuple(Route(p, "a", "A") for p in prefixes)),
    st.lists(targets, max_size=4),
    st.lists(st.sampled_from(["/", "/a", "/b"]), unique=True),
)


@given(st.lists(states, min_size=1, max_size=6), st.integers(0, 6))
def test_a_publication_turns_any_earlier_state_into_the_latest(found: list[Published], known_from: int) -> None:
    publications = Publications()
    earlier = [publications.state]
    for state in found:
        gone = {key: None for key in publications.state.deployments if key not in state.deployments}
        publications.put({**gone, **state.deployments}, state.routes)
        assert publications.state == state
        if len(earlier) <= publications.generation:
            earlier.append(state)
    since = min(known_from, publications.generation)
    told = publications.since(since)
    if told is None:
        assert since == publications.generation and (since == 0 or earlier[since] == found[-1])
        return
    news = msgspec.msgpack.decode(told, type=Snapshot)
    known = {} if news.whole else dict(earlier[since].deployments)
    assert news.whole == (since == 0) and news.generation == publications.generation
    for key, target in news.deployments.items():
        known[key] = target  # type: ignore[assignment]
    assert {key: target for key, target in known.items() if target is not None} == found[-1].deployments
    assert (earlier[since].routes if news.routes is None else news.routes) == found[-1].routes


@given(st.integers(0, 10_000), st.integers(1, 100))
def test_the_delay_never_shrinks_with_more_failures_and_has_a_limit(recent: int, width: int) -> None:
    assert 0.0 <= restart.delay_s(recent, width) <= restart.delay_s(recent + 1, width) <= restart.DELAY_MAX_S
    assert restart.delay_s(min(recent, width), width) == 0.0


@given(st.floats(0, 1e6), st.floats(0, 200))
def test_failures_are_forgotten_after_a_minute(at: float, later: float) -> None:
    failures = restart.noted(Failures(), 50, True, at, "x" * 100_000)
    assert len(failures.error) < 21_000
    waits = restart.next_try_at(failures, 1, at + later) > at + later
    assert waits == (at + restart.DELAY_MAX_S > at + later)


stages: st.SearchStrategy[Stage] = st.sampled_from(["starting", "ready"])
standings = st.lists(st.tuples(st.sampled_from(["v1", "v2"]), stages), max_size=12).map(
    lambda pairs: [Standing(str(number), version, stage, number) for number, (version, stage) in enumerate(pairs)]
)


@given(standings, st.integers(0, 6), st.integers(1, 3), st.integers(0, 1))
def test_stops_leave_enough_ready_and_starts_keep_within_the_surge(
    standing: list[Standing], target: int, surge: int, unavailable: int
) -> None:
    pace = Pace(surge, unavailable)
    leaving = to_stop("v1", target, pace, standing)
    staying = [one for one in standing if one not in leaving]
    ready = sum(one.stage == "ready" for one in standing)
    assert sum(one.stage == "ready" for one in staying) >= min(ready, target - unavailable)
    assert len({one.id for one in leaving}) == len(leaving)
    count = to_start("v1", target, pace, staying)
    assert count == 0 or len(staying) + count <= target + surge
    done = [*staying, *(Standing(f"new{n}", "v1", "starting", 100 + n) for n in range(count))]
    assert not to_stop("v1", target, pace, done) and not to_start("v1", target, pace, done)


counts = st.integers(0, 50)


def report_of(queued: int, sent: int, started: int, ok: int, lost: int) -> LedgerReport:
    open = queued + sent + started
    return LedgerReport(open + ok + lost, open, ok, lost=lost, queued=queued, sent=sent, started=started)


reports = st.builds(report_of, counts, counts, counts, counts, counts)
news = st.dictionaries(st.sampled_from(("a/A", "a/B", "(unknown)")), reports, max_size=3)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("xyz"), news, st.booleans(), st.booleans())))
def test_the_ledger_always_balances(events: list[tuple[int, str, Counts, bool, bool]]) -> None:
    accounts = ledger.Accounts({})
    for connection, name, told, leaves, gone in events:
        accounts.report(connection, name, told)
        if leaves:
            accounts.left(connection)
        if gone:
            accounts.fold(name)
        now = accounts.counts()
        assert all(ledger.balances(report) for report in (*now.values(), ledger.total(now.values())))
    for connection in range(6):
        accounts.left(connection)
    now = accounts.counts()
    assert all(report.open == 0 and ledger.balances(report) for report in now.values())


@given(st.lists(st.tuples(st.sampled_from("xyz"), news)))
def test_nothing_that_was_counted_is_forgotten(events: list[tuple[str, Counts]]) -> None:
    """Processes that come and go for good: the sum is that of all they ever said last."""
    accounts = ledger.Accounts({})
    for connection, (name, told) in enumerate(events):
        accounts.report(connection, f"{name} {connection}", told)
        accounts.left(connection)
        accounts.fold(f"{name} {connection}")
    for key in ("a/A", "a/B", "(unknown)"):
        said = [told[key] for _, told in events if key in told]
        assert accounts.counts().get(key, LedgerReport()) == ledger.total(map(ledger.ended, said))


def test_what_is_open_when_a_process_goes_counts_as_lost_until_it_comes_back() -> None:
    accounts = ledger.Accounts({"a/A": LedgerReport(accepted=1, ok=1)})
    accounts.report(1, "driver 1", {"a/A": LedgerReport(accepted=3, ok=3)})
    accounts.report(1, "driver 1", {"a/B": LedgerReport(accepted=2, open=2, queued=2)})  # only what is new
    assert accounts.counts()["a/A"] == LedgerReport(accepted=4, ok=4)
    accounts.left(1)
    assert accounts.counts() == {"a/A": LedgerReport(accepted=4, ok=4), "a/B": LedgerReport(accepted=2, lost=2)}
    accounts.report(2, "driver 1", {"a/A": LedgerReport(accepted=5, ok=5), "a/B": LedgerReport(accepted=2, ok=2)})
    assert accounts.counts() == {"a/A": LedgerReport(accepted=6, ok=6), "a/B": LedgerReport(accepted=2, ok=2)}
    accounts.left(2)
    accounts.report(3, "driver 1", {"a/A": LedgerReport(accepted=1, ok=1)})  # another process of that name
    assert accounts.counts() == {"a/A": LedgerReport(accepted=7, ok=7), "a/B": LedgerReport(accepted=2, ok=2)}


def test_names_that_are_too_many_count_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "NAMES_MAX", 2)
    accounts = ledger.Accounts({})
    accounts.report(1, "driver 1", {f"a/{number}": LedgerReport(accepted=1, ok=1) for number in range(5)})
    counts = accounts.counts()
    assert counts["(unknown)"].ok == 3 and ledger.total(counts.values()).ok == 5


def test_routes_are_there_from_the_deploy_on_and_gone_with_the_delete() -> None:
    apps = {"a": goal("a", deployment("a", "A"), prefix="/x"), "b": goal("b", deployment("b", "B"), prefix=None)}
    state = published(Desired(apps), Observed(), Memory(), "memory:")
    assert state.routes == (Route("/x", "a", "A"),)
    assert set(state.deployments) == {"a/A", "b/B"} and not state.deployments["a/A"].replicas


def test_a_cause_is_one_line() -> None:
    assert restart.last_line("Traceback:\n  File x\nValueError: no\n\n") == "ValueError: no"
    assert restart.last_line("")


def test_a_failure_before_the_machines_clock_began_anew_keeps_nobody_waiting() -> None:
    before = Failures(in_a_row=2, recent=5, last_at=90_000.0, error="ValueError: no")
    assert restart.next_try_at(before, 1, 10.0) == 10.0
    assert not restart.is_loop(restart.forgotten(before, 10.0), 1)
    again = restart.noted(before, 1, False, 10.0, "")
    assert (again.in_a_row, again.recent, again.last_at) == (3, 1, 10.0)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_wanted_with_another_application_is_what_it_would_be_from_the_beginning(seed: int) -> None:
    chance, desired = random.Random(seed), Desired(proxies=("0",), capacity=50.0)
    for step in range(40):
        name = chance.choice("abc")
        before = desired.apps.get(name)
        made: Goal | None = random_goal(chance, name, before, float(step), calm=False)
        drawn = chance.random()
        if before is not None and drawn < 0.5:
            parts = (replace(before.spec, deployments=(deployment(name, "Old"),)),)
            made = chance.choice(
                [None, replace(before, deleting=True), replace(before, worked=True), replace(before, retiring=parts)]
            )
        elif made is not None and drawn > 0.8:
            made = replace(made, spec=replace(made.spec, route_prefix=chance.choice([None, "/a", "/b"])))
        if chance.random() < 0.7:
            assert len(desired.wanted) >= len(desired.routes)  # both are made, or are not
        desired = desired.with_app(name, made)
        anew = Desired(desired.apps, ("0",), 50.0)
        assert desired == anew and desired.wanted == anew.wanted
        assert desired.routes == anew.routes and desired.leaving == anew.leaving
