"""The board of exit codes: what a process says of its end to whoever comes after its parent.

Law: one cell for each process, written once, by that process, as its last act; shared memory, so it outlives the
writer. The kernel tells an exit code to the parent only. A supervisor that took over is nobody's parent, and must know
whether the controller ended by its own will. A cell that is still empty at the end means: killed.
"""

from __future__ import annotations

import mmap

EMPTY = 0
CELL_BYTES = 2


class ExitBoard:
    """Cells for ``size`` processes at a time; every fork of its maker sees the same ones."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._cells = mmap.mmap(-1, CELL_BYTES * size)  # zeros, shared with every fork
        self._taken: set[int] = set()
        self._next = 0

    def take(self) -> int:
        """An empty cell of one's own. The caller sees to it that there are no more than ``size``."""
        while self._next in self._taken:
            self._next = (self._next + 1) % self._size
        slot = self._next
        self._taken.add(slot)
        self._write(slot, EMPTY)
        return slot

    def keep(self, slot: int) -> None:
        """The cell is taken, as another process has told."""
        self._taken.add(slot)

    def give_back(self, slot: int) -> None:
        """The cell may be another's."""
        self._taken.discard(slot)

    def note(self, slot: int, exit_code: int) -> None:
        """Says that this process ends with that code, 0 to 255."""
        self._write(slot, (exit_code & 0xFF) + 1)

    def code(self, slot: int) -> int | None:
        """How its process ended; None: it did not say so."""
        value = int.from_bytes(self._cells[CELL_BYTES * slot : CELL_BYTES * (slot + 1)], "big")
        return value - 1 if value else None

    def _write(self, slot: int, value: int) -> None:
        self._cells[CELL_BYTES * slot : CELL_BYTES * (slot + 1)] = value.to_bytes(CELL_BYTES, "big")
