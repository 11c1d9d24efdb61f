"""A caller and a callee that do anything they may, over a line that cuts where it likes: neither errs, both agree.

The line is bytes, not frames, and each delivery takes a random number. ``WINDOW`` is small, so that credit runs out.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from skate.dataplane.wire import connection as wire
from skate.dataplane.wire import frames as f
from skate.dataplane.wire.connection import CHUNK_COST, IDS, Connection

WINDOW = 1000
CHUNK_MAX = 1500
SIZES = st.integers(0, CHUNK_MAX) | st.sampled_from([0, 1, WINDOW - CHUNK_COST, WINDOW, CHUNK_MAX])
CUTS = st.integers(1, 4000) | st.sampled_from([1, f.HEADER_SIZE - 1, f.HEADER_SIZE, f.HEADER_SIZE + 1])


class End:
    """One side: its connection, what it has said and not delivered, what has come and is not taken by its user."""

    def __init__(self, connection: Connection) -> None:
        self.wire = connection
        self.line = bytearray()  # on its way to the other side
        self.may_speak: set[int] = set()  # calls on which this side's direction is open, as its user sees it
        self.arrived: dict[int, list[int]] = {}  # sizes of chunks that the user has not taken
        self.heard: dict[int, list[str]] = {}

    def say(self, data: bytes) -> None:
        self.line += data

    def send(self, call: int, size: int, last: bool) -> None:
        self.wire.spend(call, size)
        self.say(f.pack(f.CHUNK, call, f.LAST if last else 0, 0, bytes(size)))

    def hear(self, data: bytes) -> list[tuple[int, int, int]]:
        frames = self.wire.feed(data)
        for kind, call, flags, _, body in frames:
            self.heard.setdefault(call, []).append(f.NAMES[kind])
            if kind == f.CHUNK and not flags & f.LAST:
                self.arrived.setdefault(call, []).append(len(body))
        return [(kind, call, flags) for kind, call, flags, _, _ in frames]

    def take(self, call: int) -> None:
        sizes = self.arrived[call]
        self.say(self.wire.take(call, sizes.pop(0)))
        if not sizes:
            del self.arrived[call]


class TwoEnds(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = patch.object(wire, "WINDOW", WINDOW)
        self.patch.start()
        self.caller, self.callee = End(Connection("caller")), End(Connection("callee"))
        self.caller.say(self.caller.wire.hello("c"))
        self.callee.say(self.callee.wire.hello("s"))
        self.opened: set[int] = set()

    def teardown(self) -> None:
        """Whatever happened: when all is delivered and all calls have ended, nothing is left on either side."""
        try:
            self.deliver_all()
            assert set(self.caller.wire.calls) == set(self.callee.wire.calls)
            for call in list(self.callee.wire.calls):
                if call % 2:
                    self.answer_with(call, f.ERROR, 0)
                else:
                    self.cancel_it(call)
            self.deliver_all()
            assert not self.caller.wire.calls and not self.callee.wire.calls
            assert not self.caller.wire._cutter._parts and not self.callee.wire._cutter._parts
        finally:
            self.patch.stop()

    def deliver_all(self) -> None:
        while self.caller.line or self.callee.line:
            self.deliver(self.caller, self.callee, 1 << 30)
            self.deliver(self.callee, self.caller, 1 << 30)

    @initialize(from_the_last=st.integers(0, 20) | st.none())
    def ids(self, from_the_last: int | None) -> None:
        """Ids begin at 1, or just before they go round."""
        if from_the_last is not None:
            self.caller.wire._last_call = self.callee.wire._last_call = IDS - 1 - from_the_last

    def deliver(self, sender: End, receiver: End, size: int) -> None:
        data = bytes(sender.line[:size])
        del sender.line[:size]
        for kind, call, flags in receiver.hear(data):
            if kind == f.CALL:
                assert call in self.opened
                receiver.may_speak.add(call)
                receiver.say(f.pack(f.STARTED, 0, 0, 1, f.pack_ids([call])))
            elif kind == f.CANCEL or (receiver is self.caller and call not in receiver.wire.calls):
                receiver.may_speak.discard(call)
            assert call == 0 or kind == f.CREDIT or call in self.opened, flags

    # -- the caller -----------------------------------------------------------------------------

    @precondition(lambda self: self.caller.wire.peer_name is not None and len(self.caller.wire.calls) < 8)
    @rule(complete=st.booleans(), granted=st.booleans(), size=SIZES)
    def open(self, complete: bool, granted: bool, size: int) -> None:
        call = self.caller.wire.open(complete)
        assert call not in self.opened and 0 < call < IDS
        self.opened.add(call)
        flags = f.HEADED | (f.LAST if complete else 0) | (f.GRANTED if granted else 0)
        self.caller.say(f.pack(f.CALL, call, flags, 0, f.join_head(b"h", bytes(size))))
        if not complete:
            self.caller.may_speak.add(call)

    @precondition(lambda self: self.caller.may_speak)
    @rule(data=st.data(), size=SIZES, last=st.booleans())
    def send(self, data: st.DataObject, size: int, last: bool) -> None:
        call = data.draw(st.sampled_from(sorted(self.caller.may_speak)))
        if self.caller.wire.may_send(call):
            self.caller.send(call, size, last)
            if last:
                self.caller.wire.finish_input(call)
                self.caller.may_speak.discard(call)

    @precondition(lambda self: self.caller.wire.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.cancel_it(data.draw(st.sampled_from(sorted(self.caller.wire.calls))))

    def cancel_it(self, call: int) -> None:
        self.caller.wire.close(call)
        self.caller.may_speak.discard(call)
        self.caller.say(f.pack(f.CANCEL, call, 0, 0, b"why"))

    # -- the callee -----------------------------------------------------------------------------

    @precondition(lambda self: self.callee.may_speak)
    @rule(data=st.data(), size=SIZES, kind=st.sampled_from([f.CHUNK, f.CHUNK, f.ERROR, f.REFUSED]), last=st.booleans())
    def answer(self, data: st.DataObject, size: int, kind: int, last: bool) -> None:
        call = data.draw(st.sampled_from(sorted(self.callee.may_speak)))
        if kind == f.CHUNK and not last:
            if self.callee.wire.may_send(call):
                self.callee.send(call, size, False)
        else:
            self.answer_with(call, kind, size)

    def answer_with(self, call: int, kind: int, size: int) -> None:
        self.callee.wire.close(call)
        self.callee.may_speak.discard(call)
        self.callee.say(f.pack(kind, call, f.LAST if kind == f.CHUNK else 0, 0, bytes(size)))

    @precondition(lambda self: self.callee.wire.peer_name is not None)
    @rule(count=st.integers(0, 5))
    def ready_and_release(self, count: int) -> None:
        self.callee.say(f.pack(f.READY, 0, 0, 0, f.pack_count(count)))
        if self.caller.wire.peer_name is not None:
            self.caller.say(f.pack(f.RELEASE, 0, 0, 0, f.pack_count(count)))
            self.caller.say(f.pack(f.RECALL, 0, 0, 0, b""))

    # -- both -----------------------------------------------------------------------------------

    @precondition(lambda self: self.caller.arrived or self.callee.arrived)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        ends = [end for end in (self.caller, self.callee) if end.arrived]
        end = data.draw(st.sampled_from(ends))
        end.take(data.draw(st.sampled_from(sorted(end.arrived))))

    @precondition(lambda self: self.caller.line)
    @rule(size=CUTS)
    def deliver_to_callee(self, size: int) -> None:
        self.deliver(self.caller, self.callee, size)

    @precondition(lambda self: self.callee.line)
    @rule(size=CUTS)
    def deliver_to_caller(self, size: int) -> None:
        self.deliver(self.callee, self.caller, size)

    # -- what holds always ----------------------------------------------------------------------

    @invariant()
    def credit_is_bounded(self) -> None:
        """Nobody is ahead by more than the window and one chunk, which may be larger than what is left of it."""
        for end in (self.caller, self.callee):
            for state in end.wire.calls.values():
                assert -(CHUNK_MAX + CHUNK_COST) < state.send_window <= WINDOW
                assert 0 <= state.arrived <= WINDOW + CHUNK_MAX + CHUNK_COST
                assert 0 <= state.taken <= state.arrived

    @invariant()
    def an_end_is_said_once(self) -> None:
        for call, words in self.caller.heard.items():
            if call:
                assert len([word for word in words if word in ("ERROR", "REFUSED")]) <= 1
        for call, words in self.callee.heard.items():
            if call:
                assert words[0] == "CALL" and words.count("CALL") == 1 and words.count("CANCEL") <= 1


def machine(examples: int, steps: int) -> Any:
    TwoEnds.TestCase.settings = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    return TwoEnds.TestCase


TestTwoEnds = machine(settings.default.max_examples, 60)  # type: ignore[attr-defined]
