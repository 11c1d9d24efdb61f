from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from skate.authoring.code import dumps, loads
from skate.dataplane.replica.batch import BATCH_MAX, SHORT_MAX, Items, Pieces
from skate.dataplane.wire.frames import MANY
from skate.dataplane.wire.items import split_segments

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=30)
    | st.binary(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def opened(body: bytes) -> list[Any]:
    found: list[Any] = []
    for run, data in split_segments(body):
        found += loads(data) if run else [loads(data)]
    return found


@given(st.lists(VALUES, max_size=30), st.booleans())
def test_items_come_out_as_they_went_in(values: list[Any], prepared: bool) -> None:
    items = Items(dumps)
    for value in values:
        assert (items.add_prepared(items.prepare(value)) if prepared else items.add(value)) is None
    assert bool(items.size) == bool(values)
    body, flags = items.take()
    found = opened(body)
    assert found == values and [type(one) for one in found] == [type(one) for one in values]
    assert flags == MANY and items.size == 0 and items.take()[0] == b""


def test_what_can_change_is_encoded_as_it_was_yielded() -> None:
    items, changing = Items(dumps), [1]
    items.add(changing)
    changing.append(2)
    items.add(changing)
    assert opened(items.take()[0]) == [[1], [1, 2]]


def test_what_is_large_leaves_alone() -> None:
    items = Items(dumps)
    assert items.add(1) is None
    alone = items.add(b"x" * (BATCH_MAX + 1))
    assert alone is not None and loads(alone) == b"x" * (BATCH_MAX + 1)
    assert items.add("y" * (SHORT_MAX + 1)) is None
    assert items.add(10**5000) is None
    assert opened(items.take()[0]) == [1, "y" * (SHORT_MAX + 1), 10**5000]


def test_the_size_is_about_that_of_the_chunk() -> None:
    for values in ([1] * 1000, ["abc"] * 1000, [{"n": 1}] * 1000, [10**18] * 1000, [1.5] * 1000):
        items = Items(dumps)
        for value in values:
            items.add(value)
        size = items.size
        body, _ = items.take()
        assert len(body) <= size + 100 and size <= 10 * len(body)


def test_pieces_of_a_body_are_joined() -> None:
    pieces = Pieces()
    assert pieces.add(b"a") is None and pieces.add(b"bc") is None and pieces.size == 3
    assert pieces.add(b"x" * (BATCH_MAX + 1)) == b"x" * (BATCH_MAX + 1)
    assert pieces.take() == (b"abc", 0) and pieces.size == 0
