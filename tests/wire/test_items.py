from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.core.errors import WireError
from skate.dataplane.wire.items import Segment, segment_head, split_segments

SEGMENTS = st.lists(st.tuples(st.booleans(), st.binary(max_size=50)), max_size=20)


@given(SEGMENTS)
def test_what_was_joined_is_split_again(segments: list[Segment]) -> None:
    body = b"".join(segment_head(len(data), run) + data for run, data in segments)
    assert split_segments(body) == segments


@given(st.binary(max_size=200))
def test_any_bytes_are_segments_or_an_error(body: bytes) -> None:
    try:
        found = split_segments(body)
    except WireError:
        return
    assert sum(len(data) + 4 for _, data in found) == len(body)


@given(SEGMENTS.filter(bool), st.data())
def test_a_chunk_that_is_cut_within_a_segment_is_an_error(segments: list[Segment], data: st.DataObject) -> None:
    body = b"".join(segment_head(len(part), run) + part for run, part in segments)
    borders = {0}
    for _, part in segments:
        borders.add(max(borders) + 4 + len(part))
    at = data.draw(st.integers(1, len(body)))
    if at in borders:
        assert len(split_segments(body[:at])) <= len(segments)
    else:
        with pytest.raises(WireError):
            split_segments(body[:at])
