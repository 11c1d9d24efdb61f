"""Payloads: plain, in parts, in shared memory; what arrives is equal, writable, and nobody else's."""

from __future__ import annotations

import os
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skate.core.errors import CodeError, ReplicaDiedError, SkateError
from skate.dataplane import payload
from skate.dataplane.payload import Arrived, Lent, Passed, dumps, loads, receive, size_of
from skate.dataplane.shared.pool import Pool
from skate.dataplane.wire.parts import HERE, Extent, Part, decode_table, encode_table
from tests.payload.world import MB, array, pool, sent, travelled

__all__ = ["pool"]
HERE_PID = os.getpid


# -- what travels how -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 1, "text", b"bytes", [1, {"k": (2.5, None)}], np.arange(100), bytearray(5000)])
def test_a_small_value_is_a_plain_pickle(pool: Pool, value: Any) -> None:
    data = dumps(value)
    assert type(data) is bytes and data == pickle.dumps(value, 5)
    assert receive(data, HERE_PID()) is data and pool.spent == 0


@pytest.mark.parametrize("value", [b"x" * MB, "y" * MB, list(range(MB)), {"deep": [bytearray(MB)]}])
def test_a_long_pickle_goes_through_shared_memory_as_a_whole(pool: Pool, value: Any) -> None:
    data = dumps(value)
    assert isinstance(data, Lent) and len(data) < 200 and size_of(data) > MB / 2
    assert travelled(value) == value and type(travelled(value)) is type(value)


def test_an_array_lies_in_shared_memory_and_where_it_lies_is_sent(pool: Pool) -> None:
    data = dumps({"a": array(MB), "b": 1})
    assert isinstance(data, Lent) and len(data) < 500
    came = receive(sent(data), HERE_PID())
    assert isinstance(came, Arrived) and size_of(came) == size_of(data) > MB
    value = loads(came)
    assert np.array_equal(value["a"], array(MB)) and value["b"] == 1
    assert value["a"].ctypes.data % payload.ALIGN == 0


def test_what_cannot_be_shared_travels_all_the_same(pool: Pool) -> None:
    value = [array(MB), "and", array(MB, 1)]
    for data in (dumps(value, share=False), sent(dumps(value), shares=False)):
        assert type(data) is bytes and len(data) > 2 * MB
        one, _, two = loads(receive(data, 0))
        assert np.array_equal(one, value[0]) and np.array_equal(two, value[2])
        one[0], two[0] = 1, 2  # writable


def test_read_only_stays_read_only(pool: Pool) -> None:
    fixed = array(MB)
    fixed.flags.writeable = False
    for shares in (True, False):
        assert not travelled(fixed, shares).flags.writeable
        assert travelled(array(MB), shares).flags.writeable


def test_a_payload_is_the_value_at_the_moment_of_the_call(pool: Pool) -> None:
    value = array(MB)
    data = dumps(value)
    value[:] = 0
    assert np.array_equal(loads(receive(sent(data), HERE_PID())), array(MB))
    assert np.array_equal(loads(receive(sent(data, shares=False), 0)), array(MB))


def test_a_class_that_only_this_script_has_brings_its_array(pool: Pool) -> None:
    class Own:
        def __init__(self) -> None:
            self.data, self.text = array(MB), "t"

    came = travelled(Own())
    assert np.array_equal(came.data, array(MB)) and came.text == "t" and came.data.flags.writeable


leaves = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=20),
    st.binary(max_size=100),
    st.integers(0, 300_000).map(lambda n: b"b" * n),
    st.integers(0, 300_000).map(bytearray),
    st.builds(array, st.integers(0, 300_000), st.integers(0, 9)),
    st.builds(lambda n: np.asfortranarray(np.arange(n * 7.0).reshape(n, 7)), st.integers(0, 20_000)),
    st.builds(lambda n: np.arange(n, dtype="i4")[::2], st.integers(0, 100_000)),
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
)


def same(one: Any, two: Any) -> bool:
    if isinstance(one, np.ndarray):
        return type(one) is type(two) and one.dtype == two.dtype and np.array_equal(one, two) and two.flags.writeable
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    return bool(one == two) and type(one) is type(two)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=values, shares=st.booleans())
def test_any_nesting_comes_as_it_went(pool: Pool, value: Any, shares: bool) -> None:
    assert same(value, travelled(value, shares))


# -- isolation --------------------------------------------------------------------------------------


def test_what_a_receiver_writes_nobody_else_sees(pool: Pool) -> None:
    mine = array(MB)
    data = dumps(mine)
    first, second = (loads(receive(sent(data), HERE_PID())) for _ in range(2))
    first[:] = 7
    assert np.array_equal(second, array(MB)) and np.array_equal(mine, array(MB))
    assert np.array_equal(loads(receive(sent(data), HERE_PID())), array(MB))


def test_what_is_kept_is_not_overwritten_by_what_comes_later(pool: Pool) -> None:
    kept = [travelled(array(MB, seed))[10:20] for seed in range(20)]
    for seed in range(20, 60):
        travelled(array(MB, seed))
    for seed, view in enumerate(kept):
        assert np.array_equal(view, array(MB, seed)[10:20])


def test_a_payload_that_was_not_looked_at_keeps_its_value(pool: Pool) -> None:
    waiting = [receive(sent(dumps(array(MB, seed))), HERE_PID()) for seed in range(20)]
    for seed in range(20, 60):
        travelled(array(MB, seed))
    for seed, came in enumerate(waiting):
        assert np.array_equal(loads(came), array(MB, seed))
        assert np.array_equal(loads(came), array(MB, seed))  # as often as one likes


def test_what_was_sent_waits_for_the_one_it_was_sent_to(pool: Pool) -> None:
    data = sent(dumps(array(MB)))  # nothing in this process holds it any more
    for seed in range(1, 20):
        travelled(array(MB, seed))
    assert np.array_equal(loads(receive(data, HERE_PID())), array(MB))


def test_one_who_comes_too_late_gets_an_error_and_not_another_value(pool: Pool) -> None:
    data = dumps(array(MB))
    late = bytes(data)  # as a call that was cancelled before it was sent: nobody counts on it
    del data
    again = dumps(array(MB, 1))
    with pytest.raises(ReplicaDiedError, match="another value"):
        receive(late, HERE_PID())
    assert np.array_equal(loads(receive(sent(again), HERE_PID())), array(MB, 1))


def test_memory_is_used_again(pool: Pool) -> None:
    for seed in range(200):
        travelled(array(MB, seed))
    assert pool.spent <= 3 * MB


def test_a_child_that_was_forked_keeps_what_it_has(pool: Pool) -> None:
    value = travelled(array(MB))
    reads, writes = os.pipe()
    go, went = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(go, 1)
        os.write(writes, b"1" if np.array_equal(value, array(MB)) else b"0")
        os._exit(0)
    del value
    for seed in range(1, 20):
        travelled(array(MB, seed))
    os.write(went, b".")
    assert os.read(reads, 1) == b"1"
    os.waitpid(child, 0)
    for end in (reads, writes, go, went):
        os.close(end)


# -- passing on -------------------------------------------------------------------------------------


def passed_on(came: bytes, *more: Any) -> bytes:
    passed = Passed(came)
    return dumps(((passed, *more), {}), passed=[passed])


def test_a_value_that_is_passed_on_is_not_copied(pool: Pool) -> None:
    came = receive(sent(dumps({"a": array(MB), "b": array(MB, 1)})), HERE_PID())
    spent = pool.spent
    onward = passed_on(came, "more")
    assert isinstance(onward, Lent) and len(onward) < 1000 and pool.spent == spent
    ((value, more), _) = loads(receive(sent(onward), HERE_PID()))
    assert np.array_equal(value["a"], array(MB)) and np.array_equal(value["b"], array(MB, 1)) and more == "more"
    value["a"][:] = 3  # writable, and nobody else's
    assert np.array_equal(loads(came)["a"], array(MB))


def test_it_is_kept_on_the_way(pool: Pool) -> None:
    onward = passed_on(receive(sent(dumps(array(MB))), HERE_PID()))
    for seed in range(1, 20):
        travelled(array(MB, seed))
    came = receive(sent(onward), HERE_PID())
    del onward
    for seed in range(20, 40):
        travelled(array(MB, seed))
    assert np.array_equal(loads(came)[0][0], array(MB))


def test_values_and_arguments_of_ones_own_go_together(pool: Pool) -> None:
    one = receive(sent(dumps(array(MB, 1))), HERE_PID())
    two = receive(sent(dumps(b"z" * MB)), HERE_PID())
    small = dumps("small")
    passed = [Passed(one), Passed(two), Passed(small)]
    data = dumps(((*passed, array(MB, 2), array(30_000, 3)), {}), passed=passed)
    for shares in (True, False):
        (a, b, c, d, e), _ = loads(receive(sent(data, shares), HERE_PID()))
        assert np.array_equal(a, array(MB, 1)) and b == b"z" * MB and c == "small"
        assert np.array_equal(d, array(MB, 2)) and np.array_equal(e, array(30_000, 3))
        assert a.flags.writeable and d.flags.writeable and e.flags.writeable


def test_passing_on_what_cannot_be_shared(pool: Pool) -> None:
    inline = receive(sent(dumps(array(MB)), shares=False), 0)
    assert np.array_equal(loads(receive(sent(passed_on(inline)), HERE_PID()))[0][0], array(MB))
    shared = receive(sent(dumps(array(MB))), HERE_PID())
    assert np.array_equal(loads(receive(sent(passed_on(shared), shares=False), 0))[0][0], array(MB))


# -- limits -----------------------------------------------------------------------------------------


def test_beyond_the_budget_values_go_the_other_way(pool: Pool) -> None:
    pool.budget = 3 * MB
    held = [dumps(array(MB, seed)) for seed in range(6)]
    assert {type(data) for data in held} == {Lent, bytes} and pool.spent <= 3 * MB
    for seed, data in enumerate(held):
        assert np.array_equal(loads(receive(sent(data), HERE_PID())), array(MB, seed))


def test_one_value_above_the_budget(pool: Pool) -> None:
    pool.budget = MB
    assert np.array_equal(travelled(array(3 * MB)), array(3 * MB))
    came = receive(sent(dumps(array(MB // 2))), HERE_PID())
    pool.budget = 0
    (value, own), _ = loads(receive(sent(passed_on(came, array(MB, 5))), HERE_PID()))
    assert np.array_equal(value, array(MB // 2)) and np.array_equal(own, array(MB, 5))


def test_who_holds_many_gets_copies(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "HELD_MAX", 4)
    files = len(os.listdir("/proc/self/fd"))
    kept = [travelled({"a": array(MB, seed), "b": "x" * 20_000}) for seed in range(20)]
    waiting = [receive(sent(dumps(array(MB, seed))), HERE_PID()) for seed in range(20)]
    assert len(os.listdir("/proc/self/fd")) - files < 30
    for seed in range(20):
        assert same(kept[seed], {"a": array(MB, seed), "b": "x" * 20_000})
        assert same(loads(waiting[seed]), array(MB, seed))
    onward = [passed_on(came) for came in waiting]
    for seed in range(20):
        assert same(loads(receive(sent(onward[seed]), HERE_PID()))[0][0], array(MB, seed))


def test_no_descriptor_is_left(pool: Pool) -> None:
    travelled(array(MB))
    files = len(os.listdir("/proc/self/fd"))
    for seed in range(50):
        travelled(array(MB, seed))
    assert len(os.listdir("/proc/self/fd")) <= files + 4  # a second segment


# -- bad ones ---------------------------------------------------------------------------------------


def test_a_connection_that_shares_nothing_may_not_name_memory(pool: Pool) -> None:
    with pytest.raises(CodeError, match="does not share"):
        receive(sent(dumps(array(MB))), 0)


def test_memory_that_was_not_held_when_it_came_is_not_fetched_later(pool: Pool) -> None:
    with pytest.raises(CodeError, match="not held"):
        loads(sent(dumps(array(MB))))


def test_a_process_that_is_gone(pool: Pool) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(ReplicaDiedError, match=f"process {child}, which has ended"):
        receive(sent(dumps(array(MB))), child)


@pytest.mark.parametrize(
    "data",
    [
        b"\x81",
        b"\x81\0\0\0\0\0\0\0",
        b"\x81\1\0\0\1\0\0\0",
        b"\x81" + b"\xff" * 100,
        encode_table((), [Part(HERE, 0, 5)]),
        encode_table((), [Part(1, 0, 5)]) + b"12345",
        encode_table([Extent(3, 1, 1, 100)], [Part(1, 90, 11)]),
        encode_table([Extent(3, 1, 1, 100)], [Part(1, (1 << 64) - 1, 2)]),
    ],
)
def test_what_is_no_table(data: bytes) -> None:
    with pytest.raises(CodeError, match="cannot be read"):
        receive(data, HERE_PID())
    with pytest.raises(CodeError, match="cannot be read"):
        loads(data)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    fd=st.integers(0, 300), inode=st.integers(0, 1 << 20), generation=st.integers(0, 1 << 40), size=st.integers(0, MB)
)
def test_a_descriptor_that_is_none_of_ours(pool: Pool, fd: int, inode: int, generation: int, size: int) -> None:
    """Whatever lies behind the number (sockets, pipes, other files): it is refused, and nothing is left open."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ReplicaDiedError):
        receive(encode_table([Extent(fd, inode, generation, size)], [Part(1, 0, 0)]), HERE_PID())
    assert len(os.listdir("/proc/self/fd")) <= before  # fewer: of tests before this one


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(at=st.integers(1, 55), byte=st.integers(0, 255))
def test_a_table_with_a_wrong_byte_is_an_error_or_the_value(pool: Pool, at: int, byte: int) -> None:
    lent = dumps(b"x" * MB)
    data = bytearray(lent)
    data[at] = byte
    try:
        came = receive(bytes(data), HERE_PID())
        assert decode_table(came).parts
    except SkateError:
        pass
    else:
        del came
