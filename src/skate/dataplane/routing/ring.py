"""A ring of hashes: which member a key belongs to, such that few keys move when members come and go. Pure.

Each member has many points on the ring (virtual nodes); a key belongs to the first point at or behind its own hash. A
member that comes takes keys only for itself, one that goes gives up only its own (Karger et al., "Consistent Hashing
and Random Trees", 1997). The hash is the same in every process and on every machine.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from hashlib import blake2b


def place_of(text: str) -> int:
    """Where a text lies on the ring, 0 <= x < 2**64."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class Ring:
    """The ring of some members, which never change."""

    __slots__ = ("_owners", "_places", "members")

    def __init__(self, members: Sequence[str], points: int) -> None:
        self.members = tuple(members)
        pairs = sorted((place_of(f"{member} {point}"), member) for member in self.members for point in range(points))
        self._places = [place for place, _ in pairs]
        self._owners = [member for _, member in pairs]

    def walk(self, key: str) -> Iterator[str]:
        """All members, once each: first the one that the key belongs to, then who would have it without that one …"""
        owners = self._owners
        count = len(owners)
        at = bisect_left(self._places, place_of(key))
        seen: set[str] = set()
        for step in range(count):
            owner = owners[(at + step) % count]
            if owner not in seen:
                seen.add(owner)
                yield owner
                if len(seen) == len(self.members):
                    return
