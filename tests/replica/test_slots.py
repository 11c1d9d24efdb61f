"""Slots: never more than the limit, whatever comes in whatever order, and a new limit in between."""

from __future__ import annotations

from collections.abc import Hashable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from skate.dataplane.replica.slots import BEGUN, PARKED, REFUSED, Slots

CALLERS = ("a", "b", "c")


def slots_of(limit: int) -> tuple[Slots[str], list[Hashable], list[str]]:
    granted: list[Hashable] = []
    begun: list[str] = []
    return Slots(limit, granted.append, begun.append), granted, begun


def test_a_smaller_limit_takes_promises_back_and_owes_the_next_ones() -> None:
    slots, granted, begun = slots_of(2)
    assert [slots.offer(f"c{n}", f"{n}") for n in range(4)] == [BEGUN, BEGUN, REFUSED, REFUSED]
    slots.free()
    slots.free()
    assert granted == ["c2", "c3"] and slots.promised == 2
    slots.resize(1)
    assert slots.promised == 1
    assert slots.offer("c3", "3", granted=True) == REFUSED  # its promise was taken back
    assert slots.offer("c2", "2", granted=True) == BEGUN
    slots.free()
    assert granted == ["c2", "c3", "c3"]
    assert slots.offer("c3", "3", granted=True) == BEGUN and begun == ["0", "1", "2", "3"]


def test_calls_in_hand_go_on_beyond_a_smaller_limit() -> None:
    slots, granted, begun = slots_of(4)
    for n in range(4):
        slots.offer("a", f"{n}")
    slots.resize(2)
    assert slots.offer("a", "parked", ahead=True) == PARKED
    assert slots.offer("b", "refused") == REFUSED
    slots.free()
    slots.free()
    assert begun == ["0", "1", "2", "3"] and not granted
    slots.free()
    assert len(begun) == 5 or granted == ["b"]
    slots.resize(9)
    assert "parked" in begun and granted == ["b"]


class Life(RuleBasedStateMachine):
    """Callers do what they may, and what they may not: a call for a promise that they do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self.in_hand = 0
        self.too_many = False
        self.granted: list[Hashable] = []
        self.slots: Slots[int] = Slots(3, self.granted.append, self.begin)
        self.calls = 0

    def begin(self, call: int) -> None:
        self.in_hand += 1
        self.too_many = self.too_many or self.in_hand > self.slots.limit

    @rule(caller=st.sampled_from(CALLERS), granted=st.booleans(), ahead=st.booleans())
    def offer(self, caller: str, granted: bool, ahead: bool) -> None:
        self.calls += 1
        self.slots.offer(caller, self.calls, granted, ahead)

    @precondition(lambda self: self.in_hand)
    @rule()
    def end(self) -> None:
        self.in_hand -= 1
        self.slots.free()

    @rule(limit=st.integers(1, 5))
    def resize(self, limit: int) -> None:
        self.slots.resize(limit)

    @rule(caller=st.sampled_from(CALLERS), count=st.integers(0, 3))
    def release(self, caller: str, count: int) -> None:
        self.slots.release(caller, count)

    @rule(caller=st.sampled_from(CALLERS))
    def forget(self, caller: str) -> None:
        self.slots.forget(caller)

    @invariant()
    def nothing_begins_beyond_the_limit(self) -> None:
        slots = self.slots
        assert not self.too_many
        assert slots.ongoing == self.in_hand
        assert slots.promised == sum(slots._promised.values()) and 0 not in slots._promised.values()
        assert not slots.promised or slots.ongoing + slots.promised <= slots.limit

    @invariant()
    def nobody_waits_beside_a_free_slot(self) -> None:
        slots = self.slots
        free = slots.ongoing + slots.promised < slots.limit
        assert not (free and (slots._parked or slots._waiting))


TestLife = Life.TestCase
