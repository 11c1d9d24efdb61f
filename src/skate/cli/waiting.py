"""Waits until applications run that somebody else keeps: ``skate deploy`` and ``skate rollback``.

Law: what was asked for is stored before the wait begins; so the end of the wait, by Ctrl-C, by its limit or by a
closed terminal, ends nothing but the wait, and says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import click

from skate.cli.failure import said
from skate.cli.following import Gone, Seen, follow
from skate.cli.inbox import INTERRUPTED_CODE, Inbox
from skate.cli.progress import Progress, Reached
from skate.cli.screen import Screen
from skate.cli.words import duration, ready_line
from skate.controlplane.instance import Instance
from skate.core.clock import Clock
from skate.core.errors import DeployError, NotRunningError
from skate.core.specs import ApplicationStatus, ServeStatus
from skate.dataplane import caller as callers

FAILED_CODE = 1


def _serves(app: ApplicationStatus) -> bool:
    return any(replica.phase == "ready" for one in app.deployments.values() for replica in one.replicas)


class Wait:
    """One wait. ``wanted``: revisions by application; None of what was ordered to be built. ``by``: who asked."""

    def __init__(
        self, instance: Instance, wanted: Mapping[str, int | None], by: str, screen: Screen, clock: Clock
    ) -> None:
        self._instance = instance
        self._progress = Progress(wanted, by)
        self._screen = screen
        self._clock = clock
        self._inbox: Inbox[Seen | Gone] = Inbox()
        self._began = clock.now()

    def run(self, limit_s: float) -> int:
        """Blocks until all have come to their end, or nobody wants to wait any more; the exit code."""
        following = callers.io_thread().submit(follow(self._instance, self._inbox, self._clock))
        try:
            with contextlib.closing(self._inbox), self._inbox.signals(self._screen.settle):
                self._screen.begin(self._progress.pending, self._began)
                try:
                    return self._until(self._began + limit_s)
                finally:
                    self._screen.settle()
        finally:
            following.cancel()
            self._screen.close()

    def _until(self, limit: float) -> int:
        while self._progress.pending:
            now = self._clock.now()
            period_s = self._screen.period_s
            for event in self._inbox.take(limit - now if period_s is None else min(period_s, limit - now)):
                self._take(event)
            self._screen.tick(self._clock.now())
            if self._inbox.interrupted and self._progress.pending:
                self._leave("interrupted")
                return INTERRUPTED_CODE
            if self._clock.now() >= limit and self._progress.pending:
                self._leave(f"not ready within {duration(limit - self._began)}")
                return FAILED_CODE
        return FAILED_CODE if self._progress.failed else 0

    def _take(self, event: Seen | Gone) -> None:
        if isinstance(event, Gone):
            raise NotRunningError("the instance has ended while its applications were starting")
        self._screen.show(event.status, self._clock.now())
        for reached in self._progress.look(event.status):
            self._say(event.status, reached)

    def _say(self, status: ServeStatus, reached: Reached) -> None:
        if not self._progress.pending:
            self._screen.settle()
        if reached.failure is not None or reached.app is None:
            self._screen.error(said(DeployError(reached.failure or "")))
            if reached.app is not None and reached.app.status == "DEPLOY_FAILED" and _serves(reached.app):
                self._screen.line(f"What ran of {reached.name} before goes on serving.")
        else:
            self._screen.line(ready_line(status, reached.app, self._clock.now() - self._began))

    def _leave(self, why: str) -> None:
        self._screen.settle()
        names = ", ".join(self._progress.pending)
        click.echo(f"{why}; the deploy of {names} goes on, see how with: skate status --watch", err=True)
