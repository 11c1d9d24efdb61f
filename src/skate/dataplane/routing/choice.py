"""Which replica gets the next call. Pure: loads and chance are arguments.

Two random candidates, the less loaded one wins: close to the best choice at the cost of looking at two
(Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
"""

from __future__ import annotations

from collections.abc import Sequence


def two_choices(loads: Sequence[int], first: float, second: float) -> int:
    """Index of the chosen one among ``loads`` (not empty). ``first`` and ``second`` are random, 0 <= x < 1."""
    count = len(loads)
    if count == 1:
        return 0
    a = int(first * count)
    b = int(second * (count - 1))
    if b >= a:
        b += 1
    return a if loads[a] <= loads[b] else b
