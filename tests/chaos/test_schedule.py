"""A seed is all that a replay needs, and a short chaos does everything once."""

from __future__ import annotations

import itertools
import shlex

import pytest

from chaos.hands import DEEDS
from chaos.run import arguments, replay
from chaos.schedule import FIRST_S, GAP_S, KINDS, Deed, deeds, possible

EVERYTHING = {needs for _, needs in KINDS.values()}


@pytest.mark.parametrize("seed", range(20))
def test_the_same_seed_gives_the_same_deeds(seed: int) -> None:
    found = deeds(seed, 60, EVERYTHING)
    assert found == deeds(seed, 60, EVERYTHING) != deeds(seed + 1, 60, EVERYTHING)
    times = [deed.at_s for deed in found]
    assert times == sorted(times) and times[0] == FIRST_S and times[-1] < 60
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert GAP_S[0] - 1e-9 <= min(gaps) and max(gaps) <= GAP_S[1] + 1e-9
    assert {deed.kind for deed in found[: len(KINDS)]} == set(KINDS)


def test_what_is_not_possible_here_is_left_out() -> None:
    assert set(possible(EVERYTHING)) == set(KINDS)
    assert "fill the disk" not in possible([]) and "kill controller" in possible([])
    assert {deed.kind for deed in deeds(1, 20, [], ["proxy"])} == {"kill proxy", "term proxy", "halt proxy"}
    assert deeds(1, 20, [], ["nothing of that name"]) == []


def test_a_deed_chooses_within_bounds() -> None:
    assert [Deed(0, "", choice, 0).one_of(["b", "a", "c"]) for choice in (0.0, 0.5, 0.99)] == ["a", "b", "c"]
    assert [Deed(0, "", 0, amount).within((1, 3)) for amount in (0.0, 0.5)] == [1, 2]


def test_every_deed_can_be_done() -> None:
    assert set(DEEDS) == set(KINDS)


def test_a_replay_reads_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAOS_SECONDS", "9")
    monkeypatch.setenv("CHAOS_SEED", "4")
    told = arguments([])
    assert (told.seconds, told.seed) == (9, 4)
    words = shlex.split(replay(7, 12.5, ["kill", "roll back"]))
    assert words[:3] == ["python", "-m", "chaos.run"]
    again = arguments(words[3:])
    assert (again.seed, again.seconds, again.only) == (7, 12.5, ["kill", "roll back"])
