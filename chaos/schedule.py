"""What is done to the instance, and when. Law: pure; the same seed and abilities give the same deeds, so a seed is all
that a replay needs. Which process a deed hits is drawn here, too, as a share of those that will live by then.

First every kind of deed once, in random order; then by weight.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

FIRST_S = 0.5  # of calm
GAP_S = (0.2, 1.0)  # between two deeds
HALT_S = (0.1, 0.8)  # for which a process is halted: far below every deadline
FULL_S = (0.5, 1.5)  # for which the disk is full

# kind of deed: (weight, what it needs)
KINDS: dict[str, tuple[int, str]] = {
    "kill replica": (8, ""),
    "term replica": (4, ""),
    "halt replica": (3, ""),
    "kill proxy": (3, ""),
    "term proxy": (2, ""),
    "halt proxy": (2, ""),
    "kill controller": (6, ""),
    "halt controller": (2, ""),
    "kill admin": (1, ""),
    "kill supervisor": (2, "standby"),
    "halt supervisor": (1, ""),
    "kill standby": (2, "standby"),
    "kill replica and controller": (2, ""),
    "kill supervisor and controller": (1, "standby"),
    "deploy the same": (2, ""),
    "deploy another version": (4, ""),
    "deploy a broken version": (2, ""),
    "apply a file": (4, ""),
    "apply a file and kill its builder": (2, ""),
    "reconfigure": (3, ""),
    "scale": (4, ""),
    "roll back": (2, ""),
    "delete and deploy again": (3, ""),
    "fill the disk": (2, "disk"),
}


@dataclass(frozen=True)
class Deed:
    """One thing to do, ``at_s`` seconds after the traffic began. ``choice`` and ``amount`` lie between 0 and 1."""

    at_s: float
    kind: str
    choice: float
    amount: float

    def one_of(self, candidates: list[str]) -> str:
        """Whom it hits."""
        return sorted(candidates)[int(self.choice * len(candidates))]

    def within(self, bounds: tuple[float, float]) -> float:
        """How much."""
        return bounds[0] + self.amount * (bounds[1] - bounds[0])


def possible(abilities: Iterable[str]) -> list[str]:
    """The kinds of deeds that can be done here."""
    able = set(abilities) | {""}
    return [kind for kind, (_, needs) in KINDS.items() if needs in able]


def deeds(seed: int, seconds: float, abilities: Iterable[str], only: Iterable[str] = ()) -> list[Deed]:
    """All of them, in order. ``only``: kinds whose name holds one of these words."""
    chance = random.Random(seed)
    words = list(only)
    kinds = [kind for kind in possible(abilities) if not words or any(word in kind for word in words)]
    if not kinds:
        return []
    each_once = chance.sample(kinds, len(kinds))
    weights = [KINDS[kind][0] for kind in kinds]
    found: list[Deed] = []
    at_s = FIRST_S
    while at_s < seconds:
        kind = each_once[len(found)] if len(found) < len(each_once) else chance.choices(kinds, weights)[0]
        found.append(Deed(at_s, kind, chance.random(), chance.random()))
        at_s += chance.uniform(*GAP_S)
    return found
