"""Names and ids: which names are good, and ids that no two processes share.

Law: an id is random enough to be unique in the instance, never derived from time, and cheap (about 1 µs), because
every request gets one. The generator is our own, so that a user's ``random.seed(0)`` changes nothing here, and is
seeded anew in every forked child, so that two replicas of one template never draw the same ids.
"""

from __future__ import annotations

import os
import random

NAME_MAX = 200  # characters; enough for generated names, short enough for a log line
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # 32 signs; without l, o, 0, 1 that people mix up
_FORBIDDEN = "#/\\"  # separators of replica ids and keys

_chance = random.Random()
_bits, _bytes = _chance.getrandbits, _chance.randbytes
os.register_at_fork(after_in_child=_chance.seed)


def name_problem(name: object) -> str | None:
    """Why this cannot be the name of an application or deployment; None when it can."""
    if not isinstance(name, str):
        return f"must be a string, not {type(name).__name__}"
    if not name:
        return "must not be empty"
    if len(name) > NAME_MAX:
        return f"must have at most {NAME_MAX} characters, this has {len(name)}"
    if name != name.strip() or not name.isprintable():
        return "must not begin or end with a blank or hold control characters"
    if bad := next((sign for sign in name if sign in _FORBIDDEN), None):
        return f"must not contain {bad!r}, which separates the parts of a replica's id"
    return None


def random_id(length: int = 8) -> str:
    """A short random id of lower-case letters and digits (5 bits a sign)."""
    drawn = _bits(5 * length)
    signs = []
    for _ in range(length):
        signs.append(_ALPHABET[drawn & 31])
        drawn >>= 5
    return "".join(signs)


def replica_id(app: str, deployment: str) -> str:
    """The id of a new replica: ``<app>/<deployment>#<random>``."""
    return f"{app}/{deployment}#{random_id()}"


def request_id() -> str:
    """A request id in the form of a random UUID (version 4)."""
    drawn = _bytes(16).hex()
    return f"{drawn[:8]}-{drawn[8:12]}-4{drawn[13:16]}-a{drawn[17:20]}-{drawn[20:]}"
