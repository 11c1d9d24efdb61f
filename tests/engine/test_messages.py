"""Frames between controller and supervisor, and the supervisor's arithmetic: pure, so tested without processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.core.errors import WireError
from skate.core.specs import ProcessSpec
from skate.engine.base import ForgetProcess, ProcessSeen, StartProcess, StopProcess
from skate.engine.messages import Answer, Ask, Ended, FrameReader, ListProcesses, frame, read_ask, read_told
from skate.engine.supervisor import calm_s, restart_delay_s

SPEC = ProcessSpec("x1", "replica", "skate: replica x1", "module:function", b"\0config")
SEEN = ProcessSeen("x1", "replica", 17, False, -9)
MESSAGES: list[Ask | Answer | Ended] = [
    Ask(1, StartProcess(SPEC)),
    Ask(2, StopProcess("x1", 1.5)),
    Ask(3, ForgetProcess("x1")),
    Ask(4, ListProcesses()),
    Answer(5, "no"),
    Answer(6, seen=(SEEN,)),
    Ended(SEEN),
]


@given(st.lists(st.sampled_from(MESSAGES), max_size=8), st.lists(st.integers(1, 50), min_size=1))
def test_messages_survive_any_cutting(messages: list[Ask | Answer | Ended], cuts: list[int]) -> None:
    data = b"".join(frame(message, 1000) for message in messages)
    reader, bodies, at = FrameReader(1000), [], 0
    while at < len(data):
        size = cuts[at % len(cuts)]
        bodies += reader.feed(data[at : at + size])
        at += size
    read = [
        read_ask(body) if isinstance(message, Ask) else read_told(body)
        for message, body in zip(messages, bodies, strict=True)
    ]
    assert read == messages


@given(st.binary(max_size=200))
def test_noise_is_refused_or_waits_for_more(noise: bytes) -> None:
    try:
        for body in FrameReader(100).feed(noise):
            read_ask(body)
    except WireError:
        pass


def test_a_frame_above_the_limit_is_refused_before_its_body_comes() -> None:
    with pytest.raises(WireError, match="101 bytes"):
        FrameReader(100).feed((101).to_bytes(4, "big"))
    with pytest.raises(WireError, match="pass large constructor"):
        frame(Ask(1, StartProcess(SPEC)), 10)


def test_starts_slow_down_and_end_only_where_none_ever_worked() -> None:
    delays = [restart_delay_s(deaths, 5, worked=False) for deaths in range(1, 7)]
    assert delays == [0.0, 0.1, 0.2, 0.4, 0.5, None]
    assert [restart_delay_s(deaths, 5, worked=True) for deaths in (1, 2, 6, 10**6)] == [0.0, 0.1, 0.5, 0.5]


def test_supervisors_are_slowed_down_beyond_the_budget_and_end_only_where_nothing_worked() -> None:
    assert [calm_s(takeovers, 5, worked=False) for takeovers in (1, 5, 6)] == [0.0, 0.0, None]
    assert [calm_s(takeovers, 5, worked=True) for takeovers in (1, 5, 6, 10**6)] == [0.0, 0.0, 0.5, 0.5]
