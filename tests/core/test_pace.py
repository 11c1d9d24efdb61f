from __future__ import annotations

from skate.core.pace import Pace


def test_what_is_left_out_is_told_with_the_next_one() -> None:
    pace = Pace(2, span_s=1.0)
    assert [pace.allow(now) for now in (0.0, 0.1, 0.2, 0.3, 0.9)] == [0, 0, None, None, None]
    assert pace.allow(1.0) == 3
    assert pace.allow(1.5) == 0 and pace.allow(1.6) is None
    assert pace.allow(100.0) == 1
