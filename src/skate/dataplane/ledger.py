"""The ledger: how many calls a router accepted and how each ended. Law: ``accepted == ended + open``, always."""

from __future__ import annotations

from enum import IntEnum

from skate.core.specs import LedgerReport


class Outcome(IntEnum):
    """How a call ended; exactly one for each."""

    OK = 0
    USER_ERROR = 1
    REFUSED = 2
    TIMED_OUT = 3
    CANCELLED = 4
    LOST = 5


class Ledger:
    """Plain integers; whoever wants them reads them."""

    __slots__ = ("accepted", "outcomes")

    def __init__(self) -> None:
        self.accepted = 0
        self.outcomes = [0] * len(Outcome)

    @property
    def open(self) -> int:
        """Calls that are under way."""
        return self.accepted - sum(self.outcomes)

    def report(self) -> LedgerReport:
        """The counts as a value."""
        ok, user_error, refused, timed_out, cancelled, lost = self.outcomes
        return LedgerReport(self.accepted, self.open, ok, user_error, refused, timed_out, cancelled, lost)
