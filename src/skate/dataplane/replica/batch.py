"""Pieces of a stream that leave together: what a handler yields within one turn of the loop is one chunk.

Law: a piece is encoded as it is when it was yielded; only what cannot change (numbers, short text and bytes, None) may
wait as a value, to be pickled as one list with its neighbours, which costs a tenth. A piece that is large leaves alone.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from skate.authoring.code import PROTOCOL
from skate.dataplane.wire.frames import MANY
from skate.dataplane.wire.items import segment_head

BATCH_MAX = 16 * 1024  # bytes of pieces that leave together, about; what is larger leaves alone
SHORT_MAX = 1024  # characters or bytes of what may wait as a value
VALUE_SIZE = 10  # bytes that a number or the head of a text takes in a pickle, at most
INT_MAX = 1 << 63  # beyond, an int can be of any size


class Encoded:
    """An item that is encoded already."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class Items:
    """Items for a Python caller. A ``Gathering`` of the exchange."""

    __slots__ = ("_encode", "_parts", "_run", "size")
    may_cut = False

    def __init__(self, encode: Callable[[Any], bytes]) -> None:
        self._encode = encode
        self._parts: list[bytes] = []
        self._run: list[Any] = []
        self.size = 0

    def add(self, item: Any) -> bytes | None:
        """Takes an item in; one that must leave alone, after those in here, comes back encoded."""
        kind = type(item)
        if kind is int:
            if -INT_MAX < item < INT_MAX:
                self._run.append(item)
                self.size += VALUE_SIZE
                return None
        elif kind is str or kind is bytes:
            if len(item) <= SHORT_MAX:
                self._run.append(item)
                self.size += len(item) + VALUE_SIZE
                return None
        elif kind is float or kind is bool or item is None:
            self._run.append(item)
            self.size += VALUE_SIZE
            return None
        return self.add_encoded(self._encode(item))

    def prepare(self, item: Any) -> Any:
        """What may be done on another thread, so that ``add_prepared`` has little to do."""
        kind = type(item)
        if kind is int or kind is float or kind is bool or kind is str or kind is bytes or item is None:
            return item
        return Encoded(self._encode(item))

    def add_prepared(self, item: Any) -> bytes | None:
        """Takes in what ``prepare`` gave."""
        return self.add_encoded(item.data) if type(item) is Encoded else self.add(item)

    def add_encoded(self, data: bytes) -> bytes | None:
        """The same for an item that is encoded already."""
        if len(data) > BATCH_MAX or type(data) is not bytes:  # one that refers to memory must be seen when it arrives
            return data
        if self._run:
            self._close_run()
        self._parts += (segment_head(len(data), False), data)
        self.size += len(data) + 4
        return None

    def take(self) -> tuple[bytes, int]:
        """All items as one chunk."""
        if self._run:
            self._close_run()
        body = b"".join(self._parts)
        self._parts.clear()
        self.size = 0
        return body, MANY

    def _close_run(self) -> None:
        data = pickle.dumps(self._run, PROTOCOL)
        self._run.clear()
        self._parts += (segment_head(len(data), True), data)


class Pieces:
    """Bytes of a body, whose borders mean nothing. A ``Gathering`` of the exchange."""

    __slots__ = ("_parts", "size")
    may_cut = True

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.size = 0

    def add(self, data: bytes) -> bytes | None:
        """Takes a piece in; one that must leave alone, after those in here, comes back."""
        size = len(data)
        if size > BATCH_MAX:
            return data
        self._parts.append(data)
        self.size += size
        return None

    def take(self) -> tuple[bytes, int]:
        """All pieces as one chunk."""
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self.size = 0
        return body, 0
