"""The counts of calls of the whole instance. Law: what was accepted has ended or is open, in every sum.

Each process reports its totals since its start. When it goes away, what it had open can not be answered by it any
more and counts as lost; should the same process come back, its new totals take the place of the old ones.
"""

from __future__ import annotations

from collections.abc import Iterable

from skate.core.specs import LedgerReport

AWAY_MAX = 256  # processes whose connection is gone that are remembered one by one


def total(reports: Iterable[LedgerReport]) -> LedgerReport:
    """The sum."""
    names = LedgerReport.__struct_fields__
    sums = dict.fromkeys(names, 0)
    for report in reports:
        for name in names:
            sums[name] += getattr(report, name)
    return LedgerReport(**sums)


def ended(report: LedgerReport) -> LedgerReport:
    """The same counts after the process went away: open calls are lost."""
    return LedgerReport(
        accepted=report.accepted,
        open=0,
        ok=report.ok,
        user_error=report.user_error,
        refused=report.refused,
        timed_out=report.timed_out,
        cancelled=report.cancelled,
        lost=report.lost + report.open,
    )


def balances(report: LedgerReport) -> bool:
    """Whether every accepted call is accounted for."""
    outcomes = report.ok + report.user_error + report.refused + report.timed_out + report.cancelled + report.lost
    return report.accepted == outcomes + report.open


class Accounts:
    """Counts of every process that ever reported, by connection and by name. ``ended``: of those gone for good."""

    def __init__(self, ended: LedgerReport) -> None:
        self.ended = ended
        self._live: dict[int, tuple[str, LedgerReport]] = {}  # by connection
        self._away: dict[str, LedgerReport] = {}  # by name: the connection is gone, the process may come back

    def report(self, connection: int, name: str, report: LedgerReport) -> None:
        """The totals of a process since its start."""
        if connection not in self._live and name in self._away:
            before = self._away.pop(name)
            if report.accepted < before.accepted:  # another process took the name over
                self.ended = total((self.ended, before))
        self._live[connection] = (name, report)

    def left(self, connection: int) -> None:
        """The connection is gone."""
        name, report = self._live.pop(connection, ("", LedgerReport()))
        if not report.accepted:
            return
        self.fold(name)
        self._away[name] = ended(report)
        if len(self._away) > AWAY_MAX:
            self.fold(next(iter(self._away)))

    def fold(self, name: str) -> None:
        """The process of that name is gone for good, if its connection is."""
        if name in self._away:
            self.ended = total((self.ended, self._away.pop(name)))

    def total(self) -> LedgerReport:
        """The counts of the whole instance."""
        return total((self.ended, *self._away.values(), *(report for _, report in self._live.values())))
