"""What is still to be written into the store. Law: the store may fail (a full disk), the instance goes on; what could
not be written is kept, the latest value of each row, and written with the next attempt.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Sequence

from skate.controlplane.decide.restart import clipped
from skate.controlplane.decide.values import Happening
from skate.controlplane.store import Row, Store
from skate.core.errors import StoreError
from skate.core.specs import Event

logger = logging.getLogger("skate.controller")

UNWRITTEN_EVENTS_MAX = 1000
MESSAGE_MAX = 2000  # characters of one event's message: a crash loop writes thousands of them
FAILURES = (OSError, sqlite3.Error)


class Records:
    """The way into the store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.failing = ""  # why the last attempt failed
        self._rows: dict[tuple[str, str], Row] = {}
        self._events: list[Event] = []
        try:
            self._last_event = store.last_event()
        except FAILURES:
            self._last_event = 0

    @property
    def pending(self) -> bool:
        """Whether something is not written yet."""
        return bool(self._rows or self._events)

    def put(self, *rows: Row) -> None:
        """To be written at the next ``write``."""
        for row in rows:
            self._rows[row.kind, row.name] = row

    def happened(self, events: Iterable[Happening], at: float) -> None:
        """To be added to the log of events. ``at``: wall time."""
        for one in events:
            self._last_event += 1
            self._events.append(
                Event(self._last_event, at, one.app, one.deployment, one.kind, _short(one.message), one.details)
            )
        del self._events[:-UNWRITTEN_EVENTS_MAX]

    def write(self) -> bool:
        """Writes what is pending; whether nothing is pending any more. A failure is logged once."""
        if not self.pending:
            return True
        try:
            self.store.write(list(self._rows.values()), self._events)
        except FAILURES as error:
            if not self.failing:
                logger.error(
                    "the state cannot be written: %s. What runs goes on, and it is tried again; a deploy is refused "
                    "until then. Is the disk full?",
                    error,
                )
            self.failing = str(error)
            return False
        if self.failing:
            logger.info("the state could be written again")
        self.failing = ""
        self._rows.clear()
        self._events.clear()
        return True

    def must_write(self, rows: Sequence[Row], events: Iterable[Happening], at: float) -> None:
        """Writes these rows now, or raises StoreError and forgets them: what a user is told is stored, is stored."""
        before = {(row.kind, row.name): self._rows.get((row.kind, row.name)) for row in rows}
        count, last = len(self._events), self._last_event
        self.put(*rows)
        self.happened(events, at)
        if self.write():
            return
        for key, row in before.items():
            if row is None:
                del self._rows[key]
            else:
                self._rows[key] = row
        del self._events[count:]
        self._last_event = last
        raise StoreError(
            f"the wish cannot be stored, so it is not taken up: {self.failing}. Make room on the disk of "
            f"{getattr(self.store, 'path', 'the store')} and ask again"
        )

    def read_events(self, after: int, app: str | None, limit: int) -> list[Event]:
        """The newest events with an id above ``after``, oldest first, those not written yet too."""
        unwritten = [one for one in self._events if one.id > after and app in (None, one.app)]
        found = [*self.store.events(after, app, limit), *unwritten]
        return found[max(0, len(found) - limit) :]


def _short(message: str) -> str:
    return clipped(message, MESSAGE_MAX)
