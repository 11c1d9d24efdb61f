"""The choosers that there are, as pure functions of what they are shown."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skate.dataplane.routing.policies import (
    BUILT_IN,
    CallView,
    Candidate,
    ConsistentHash,
    PowerOfTwo,
    RequestRouter,
    RoundRobin,
    SameNode,
    built_in,
)
from skate.dataplane.routing.ring import Ring

candidates = st.lists(
    st.builds(
        Candidate,
        st.integers(0, 30).map("a/A#{}".format),
        st.sampled_from("xy"),
        st.integers(0, 12),
        st.integers(0, 12),
        st.integers(1, 12),
        st.booleans(),
    ),
    min_size=2,
    max_size=8,
    unique_by=lambda one: one.id,
)
keys = st.none() | st.text(max_size=5)


def call(key: str | None = None, headers: tuple[tuple[bytes, bytes], ...] = ()) -> CallView:
    return CallView("id", "a", "A", "m", key, headers)


def all_choosers() -> list[RequestRouter]:
    return [kind() for kind in BUILT_IN.values()]


def free(*ids: str, load: int = 0, limit: int = 10, node: str = "") -> list[Candidate]:
    return [Candidate(id, node, load, load, limit, True) for id in ids]


@settings(max_examples=50, deadline=None)
@given(candidates, st.lists(keys, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_whoever_has_room_may_be_chosen_and_nobody_waits_while_there_is_any(
    shown: list[Candidate], asked: list[str | None], chance: Random
) -> None:
    for chooser in all_choosers():
        chooser.chance, chooser.node = chance.random, "x"
        for key in asked:
            chosen = chooser.choose(call(key), shown)
            if chosen is None:
                assert not any(one.has_room for one in shown)
            else:
                assert chosen in shown and chosen.has_room


def test_same_node_goes_elsewhere_only_when_nobody_here_has_room() -> None:
    near, far = Candidate("a", "x", 9, 9, 10, True), Candidate("b", "y", 0, 0, 10, True)
    chooser = SameNode()
    chooser.node = "x"
    assert chooser.choose(call(), [near, far]) is near
    assert chooser.choose(call(), [near._replace(has_room=False), far]) is far


def test_round_robin_takes_turns_and_passes_over_the_full() -> None:
    chooser = RoundRobin()
    a, b, c = free("a", "b", "c")

    def next_of(*shown: Candidate) -> str:
        chosen = chooser.choose(call(), shown)
        assert chosen is not None
        return chosen.id

    assert [next_of(a, b, c) for _ in range(6)] == list("abcabc")
    assert [next_of(a, b._replace(has_room=False), c) for _ in range(3)] == list("aca")
    assert [next_of(a, b, c) for _ in range(2)] == list("bc")


# -- by key ---------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=3, max_size=12, unique=True), st.data())
def test_keys_move_only_to_whom_comes_and_from_whom_goes(numbers: list[int], data: st.DataObject) -> None:
    ids = [f"a/A#{number}" for number in numbers]
    gone = data.draw(st.sampled_from(ids))
    rest = [id for id in ids if id != gone]
    here, elsewhere, later = ConsistentHash(), ConsistentHash(), ConsistentHash()
    for key in map(str, range(30)):
        before, after = here.choose(call(key), free(*ids)), later.choose(call(key), free(*rest))
        again = elsewhere.choose(call(key), free(*reversed(ids)))  # another process, in another order
        assert before is not None and after is not None and again is not None
        assert after.id == before.id or before.id == gone
        assert again.id == before.id


def test_keys_spread_over_all_replicas() -> None:
    chooser, shown = ConsistentHash(), free(*(f"a/A#{number}" for number in range(8)))
    counts = Counter(chooser.choose(call(str(key)), shown) for key in range(8000))
    assert len(counts) == 8 and max(counts.values()) < 1500 and min(counts.values()) > 600


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 8), st.integers(2, 40), st.integers(1, 200))
def test_a_hot_key_drowns_nobody(count: int, limit: int, calls: int) -> None:
    """All calls have one key and none ends: nobody gets beyond half its limit while others are much less busy."""
    chooser, loads = ConsistentHash(), [0] * count
    for _ in range(min(calls, count * limit)):
        shown = [Candidate(str(n), "", load, load, limit, load < limit) for n, load in enumerate(loads)]
        chosen = chooser.choose(call("hot"), shown)
        assert chosen is not None
        loads[int(chosen.id)] += 1
        mean = sum(loads) / count
        assert max(loads) <= max(limit // 2, 1, -(-mean * 5 // 4) + 1)


def test_the_key_is_the_handles_or_a_headers() -> None:
    chooser, shown = ConsistentHash(header="X-User"), free("a", "b", "c", "d", "e")

    def chosen(view: CallView) -> str:
        one = chooser.choose(view, shown)
        assert one is not None
        return one.id

    for key in "uvwxyz":
        here = chosen(call(key))
        assert chosen(call(headers=((b"x-other", b"1"), (b"x-user", key.encode()), (b"x-user", b"2")))) == here
        assert chosen(call(key, ((b"x-user", b"another"),))) == here


def test_without_a_key_two_random_choices_decide() -> None:
    chooser = ConsistentHash()
    chances = iter([0.0, 0.0] * 2 + [0.9, 0.9] * 2)
    chooser.chance = lambda: next(chances)
    a, b, c = free("a", "b", "c")
    assert [chooser.choose(call(), [a, b._replace(load=1), c]) for _ in range(2)] == [a, a]
    assert [chooser.choose(call(), [a, b._replace(load=1), c]) for _ in range(2)] == [c, c]


@pytest.mark.parametrize(
    "kwargs", [{"header": ""}, {"virtual_nodes": 0}, {"virtual_nodes": 10**6}, {"load_factor": 0.5}]
)
def test_bad_arguments_are_refused(kwargs: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        ConsistentHash(**kwargs)  # type: ignore[arg-type]


def test_a_ring_names_everybody_once() -> None:
    ring = Ring("abc", 10)
    for key in map(str, range(20)):
        assert sorted(ring.walk(key)) == list("abc")
    assert list(Ring((), 10).walk("x")) == []


# -- names ----------------------------------------------------------------------------------------


def test_ours_are_known_by_both_names_and_others_by_none() -> None:
    assert built_in("skate.routers:PowerOfTwo") is built_in("skate.routers.PowerOfTwo") is PowerOfTwo
    assert built_in(f"{RoundRobin.__module__}:RoundRobin") is RoundRobin
    assert built_in("mine:PowerOfTwo") is None and built_in("skate.routers:Other") is None


def test_a_header_in_any_case() -> None:
    view = call(headers=((b"x-one", b"1"), (b"X-Two", b"caf\xe9")))
    assert (view.header("X-ONE"), view.header("x-two"), view.header("x-three")) == ("1", "café", None)
