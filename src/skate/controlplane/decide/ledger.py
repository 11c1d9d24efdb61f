"""The counts of calls of the whole instance, by deployment. Law: what was accepted has ended or is open, in every sum.

Each process reports its totals since its start, first all of them, then those that changed. When it goes away, what
it had open can not be answered by it any more and counts as lost; should the same process come back, its new totals
take the place of the old ones.
"""

from __future__ import annotations

from collections.abc import Iterable

from skate.core.specs import UNKNOWN_DEPLOYMENT, Counts, LedgerReport

AWAY_MAX = 256  # processes whose connection is gone that are remembered one by one
NAMES_MAX = 10_000  # deployments, present and past, that are counted one by one; further ones count as unknown


def total(reports: Iterable[LedgerReport]) -> LedgerReport:
    """The sum."""
    names = LedgerReport.__struct_fields__
    sums = dict.fromkeys(names, 0)
    for report in reports:
        for name in names:
            sums[name] += getattr(report, name)
    return LedgerReport(**sums)


def merged(parts: Iterable[Counts]) -> Counts:
    """The sum for each deployment, in the order of their names."""
    found: dict[str, list[LedgerReport]] = {}
    for part in parts:
        for key, report in part.items():
            if key not in found and len(found) >= NAMES_MAX:
                key = UNKNOWN_DEPLOYMENT
            found.setdefault(key, []).append(report)
    return {key: total(found[key]) for key in sorted(found)}


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
        retried=report.retried,
    )


def balances(report: LedgerReport) -> bool:
    """Whether every accepted call is accounted for."""
    outcomes = report.ok + report.user_error + report.refused + report.timed_out + report.cancelled + report.lost
    open = report.queued + report.sent + report.started
    return report.accepted == outcomes + report.open and report.open == open


class Accounts:
    """Counts of every process that ever reported, by connection and by name. ``ended``: of those gone for good."""

    def __init__(self, ended: Counts) -> None:
        self.ended = ended  # never changed in place: the controller stores it when it is another one
        self._live: dict[int, tuple[str, Counts]] = {}  # by connection
        self._away: dict[str, Counts] = {}  # by name: the connection is gone, the process may come back

    def report(self, connection: int, name: str, news: Counts) -> None:
        """The totals of a process since its start: on a new connection all, later those that changed."""
        if connection in self._live:
            self._live[connection][1].update(news)
            return
        before = self._away.pop(name, {})
        if _accepted(news) < _accepted(before):  # another process took the name over
            self.ended = merged((self.ended, before))
        self._live[connection] = (name, dict(news))

    def left(self, connection: int) -> None:
        """The connection is gone."""
        name, counts = self._live.pop(connection, ("", {}))
        if not _accepted(counts):
            return
        self.fold(name)
        self._away[name] = {key: ended(report) for key, report in counts.items()}
        if len(self._away) > AWAY_MAX:
            self.fold(next(iter(self._away)))

    def fold(self, name: str) -> None:
        """The process of that name is gone for good, if its connection is."""
        if name in self._away:
            self.ended = merged((self.ended, self._away.pop(name)))

    def counts(self) -> Counts:
        """The counts of the whole instance, by deployment."""
        return merged((self.ended, *self._away.values(), *(counts for _, counts in self._live.values())))


def _accepted(counts: Counts) -> int:
    return sum(report.accepted for report in counts.values())
