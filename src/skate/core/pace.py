"""How often something may be said. Law: what is left out is counted and told with the next one. Pure: time is given."""

from __future__ import annotations


class Pace:
    """At most ``most`` within each ``span_s`` seconds."""

    __slots__ = ("_left", "_most", "_skipped", "_span_s", "_until")

    def __init__(self, most: int, span_s: float = 1.0) -> None:
        self._most = most
        self._span_s = span_s
        self._until = float("-inf")
        self._left = 0
        self._skipped = 0

    def allow(self, now: float) -> int | None:
        """None: not now. Else it may be said, and the number is how many were left out since the last one."""
        if now >= self._until:
            self._until = now + self._span_s
            self._left = self._most
        if not self._left:
            self._skipped += 1
            return None
        self._left -= 1
        skipped, self._skipped = self._skipped, 0
        return skipped
