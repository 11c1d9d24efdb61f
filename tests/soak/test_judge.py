"""What the soak asserts can fail: each of its complaints is provoked once."""

from __future__ import annotations

import math
import random
from array import array

import pytest

from skate.core.specs import LedgerReport, ServeStatus
from soak import judge
from soak.judge import DIED, GROWTH_KB, Kill, Spread, Tally, cut_by_death, growth, more_files, third_of, told_of_death
from soak.report import Result, as_json, measured, text
from soak.watch import Watched, unbalanced


def tally(made: int, **seen: int) -> Tally:
    made_of = Tally("kind", frozenset({"ok", "refused"}), made)
    made_of.seen.update(seen)
    return made_of


def test_every_call_ends_once_and_as_it_should() -> None:
    assert tally(3, ok=2, refused=1).complaints() == []
    assert "3 calls were made and 2 ended" in tally(3, ok=2).complaints()[0]
    assert "hung" in tally(3, ok=2, hung=1).complaints()[0]
    assert "none of 2 calls" in tally(2, **{DIED: 2}).complaints()[0]
    assert tally(3, ok=2, **{DIED: 1}).complaints() == []


def test_a_spread_knows_its_percentiles_within_a_twentieth() -> None:
    chance = random.Random(1)
    times = sorted(chance.lognormvariate(-6, 1) for _ in range(5000))
    spread = Spread()
    for seconds in times:
        spread.add(seconds)
    for percent in (50, 90, 99):
        assert spread.percentile(percent) == pytest.approx(times[percent * 50 - 1], rel=0.06)
    assert math.isnan(Spread().percentile(50))


@pytest.mark.parametrize(("factor", "base", "slower"), [(1.2, 0.005, False), (2.0, 0.005, True), (2.0, 0.0005, False)])
def test_what_gets_slower_is_named(factor: float, base: float, slower: bool) -> None:
    seen = tally(200, ok=200)
    for _ in range(100):
        seen.times["middle"].add(base)
        seen.times["last"].add(base * factor)
    assert bool(seen.slower()) == slower
    seen.times["last"] = Spread()
    assert seen.slower() == ""


@pytest.mark.parametrize(("last", "change"), [(0.002, 1.0), (0.004, 2.0)])
def test_the_machine_itself_may_get_slower(last: float, change: float) -> None:
    pulse = {third: Spread() for third in judge.THIRDS}
    assert judge.machine_slower(pulse) == 1.0
    for _ in range(100):
        pulse["middle"].add(0.002)
        pulse["last"].add(last)
    assert judge.machine_slower(pulse) == pytest.approx(change, rel=0.06)


def samples(slope_kb_s: float, noise_kb: float, n: int = 120) -> tuple[list[float], list[float]]:
    chance = random.Random(2)
    return [float(t) for t in range(n)], [20_000 + slope_kb_s * t + chance.gauss(0, noise_kb) for t in range(n)]


def test_memory_that_grows_is_told_from_noise() -> None:
    leak = growth(*samples(50, 300))
    assert leak is not None and leak.kb > leak.bound_kb and leak.kb == pytest.approx(50 * 119, rel=0.2)
    calm, wild = growth(*samples(0, 300)), growth(*samples(0, 5000))
    assert calm is not None and calm.kb < calm.bound_kb and calm.bound_kb == GROWTH_KB
    assert wild is not None and wild.kb < wild.bound_kb
    assert growth([1.0] * 30, [1.0] * 30) is None and growth([1.0, 2.0], [1.0, 2.0]) is None


def test_descriptors_and_thirds() -> None:
    assert more_files({1: 10, 2: 10, 3: 10}, {1: 11, 2: 13, 4: 99}) == {2: (10, 13)}
    assert [third_of(at, 10, 40) for at in (5, 10, 19, 21, 31, 45)] == [
        None, "first", "first", "middle", "last", "last",
    ]  # fmt: skip


def test_only_a_killed_replica_excuses() -> None:
    kills = [Kill("a/D#3", 10.0)]
    assert told_of_death("replica a/D#3 died while it had request r in hand", kills)
    assert not told_of_death("replica a/D#4 died while it had request r in hand", kills)
    assert not told_of_death("something else at a/D#3", kills)
    assert cut_by_death(9.5, 10.5, kills) and not cut_by_death(10.5, 11.0, kills)


def ledger(**other: int) -> LedgerReport:
    ends = dict.fromkeys(("ok", "user_error", "refused", "timed_out", "cancelled", "lost"), 1)
    return LedgerReport(**{"accepted": 8, "open": 2, "sent": 1, "started": 1, **ends, **other})


def test_a_ledger_that_does_not_balance() -> None:
    assert unbalanced(ServeStatus(calls=ledger(), calls_by_deployment={"a/D": ledger()})) == ""
    for other in ({"open": 3}, {"accepted": 7}, {"ok": -1}, {"sent": 2}, {"sent": 4, "started": -2}):
        off = ledger(**other)
        assert unbalanced(ServeStatus(calls=off)).startswith("all: ")
        assert unbalanced(ServeStatus(calls=ledger(), calls_by_deployment={"a/D": off})).startswith("a/D: ")
    twice = {"a/D": ledger(), "a/E": ledger()}
    assert "8 in all, 16 in" in unbalanced(ServeStatus(calls=ledger(), calls_by_deployment=twice))


def test_the_report_shows_everything() -> None:
    seen = tally(3, ok=3)
    process = Watched(1, "skate: proxy 0")
    process.at_s, process.memory_kb = (array("d", numbers) for numbers in samples(100, 1))
    process.files, process.threads = array("l", [9] * 120), array("l", [2] * 120)
    result = Result(120.0, 20.0, [seen], [Kill("a/D#3", 10.0)], [process], {"accepted": 3}, 5, ["a fault"], ["a drift"])
    shown = text(result)
    for word in ("3 calls", "kind", "ok 3", "skate: proxy 0", "a fault", "a drift", "accepted 3", "1 replicas killed"):
        assert word in shown
    assert b'"a fault"' in as_json(result, {"seed": 1})
    steady = measured(process, result)
    assert steady is not None and min(steady[0]) == 20 and len(steady[0]) == 100
    process.at_s[0] = 60.0  # one that was not there all the time is not judged
    assert measured(process, result) is None
