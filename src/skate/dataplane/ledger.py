"""The ledger: how many calls a router accepted for each deployment, how far each came and how it ended.

Law: ``accepted == queued + sent + started + ended``, always, in every account. The hot path only adds to plain integers
(one for each step of a call); what can be derived from them is derived by whoever asks.
"""

from __future__ import annotations

from enum import IntEnum

from skate.core.specs import UNKNOWN_DEPLOYMENT, LedgerReport

ACCOUNTS_MAX = 4096  # deployments counted one by one in a process; further ones count as unknown


class Outcome(IntEnum):
    """How a call ended; exactly one for each."""

    OK = 0
    USER_ERROR = 1
    REFUSED = 2
    TIMED_OUT = 3
    CANCELLED = 4
    LOST = 5


class Account:
    """The calls of one deployment in this process. Plain integers; whoever wants them reads them."""

    __slots__ = ("accepted", "outcomes", "placed", "retried", "started")

    def __init__(self) -> None:
        self.accepted = 0
        self.placed = 0  # calls that a replica has, at this moment
        self.started = 0  # those of them that it has started, when that was last looked up (``Router.counts``)
        self.retried = 0  # times that a call was sent again because its replica had died
        self.outcomes = [0] * len(Outcome)

    @property
    def open(self) -> int:
        """Calls that are under way."""
        return self.accepted - sum(self.outcomes)

    def report(self) -> LedgerReport:
        """The counts as a value."""
        ok, user_error, refused, timed_out, cancelled, lost = self.outcomes
        return LedgerReport(
            accepted=self.accepted,
            open=self.open,
            ok=ok,
            user_error=user_error,
            refused=refused,
            timed_out=timed_out,
            cancelled=cancelled,
            lost=lost,
            queued=self.open - self.placed,
            sent=self.placed - self.started,
            started=self.started,
            retried=self.retried,
        )


class Ledger:
    """All accounts of a router, by deployment key; they outlive the deployments."""

    __slots__ = ("accounts",)

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}

    def account(self, key: str) -> Account:
        """The account of a deployment; opened when first asked for."""
        account = self.accounts.get(key)
        if account is None:
            if len(self.accounts) >= ACCOUNTS_MAX:
                key = UNKNOWN_DEPLOYMENT
            account = self.accounts.setdefault(key, Account())
        return account

    def reports(self) -> dict[str, LedgerReport]:
        """The counts of every deployment that ever had a call, as values."""
        return {key: account.report() for key, account in self.accounts.items() if account.accepted}

    # -- in sum -----------------------------------------------------------------------------------

    @property
    def accepted(self) -> int:
        """Calls that were ever accepted."""
        return sum(account.accepted for account in self.accounts.values())

    @property
    def open(self) -> int:
        """Calls that are under way."""
        return sum(account.open for account in self.accounts.values())

    @property
    def outcomes(self) -> list[int]:
        """How many calls ended in each way, by ``Outcome``."""
        return [sum(account.outcomes[outcome] for account in self.accounts.values()) for outcome in Outcome]

    def report(self) -> LedgerReport:
        """The sum as a value."""
        whole = Account()
        for account in self.accounts.values():
            whole.accepted += account.accepted
            whole.placed += account.placed
            whole.started += account.started
            whole.retried += account.retried
        whole.outcomes = self.outcomes
        return whole.report()
