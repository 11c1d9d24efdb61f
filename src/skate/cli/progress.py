"""How far the applications have come that somebody asked for. A value machine: statuses in, what was reached out.

Law: an application is there when it is RUNNING at the revision that was asked for, or a later one; it has failed when
that revision has, when it is gone again, or, if it is known who asks, when somebody else has asked for another.
What was ordered has no revision before it is built; until then the status says DEPLOYING, so RUNNING means that it is
built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from skate.core.specs import ApplicationStatus, ServeStatus


@dataclass(frozen=True)
class Reached:
    """One application has come to its end of the way: it runs, or why it does not."""

    name: str
    app: ApplicationStatus | None
    failure: str | None = None


class Progress:
    """``wanted``: the revision by name; None of what was ordered. It is shown statuses only that were taken after those
    were stored. ``by``: who asked, as the status will say it."""

    def __init__(self, wanted: Mapping[str, int | None], by: str | None = None) -> None:
        self._by = by
        self.wanted = dict(wanted)
        self.failed: dict[str, str] = {}
        self._open = dict(wanted)

    @property
    def pending(self) -> tuple[str, ...]:
        """Those that are still on their way."""
        return tuple(self._open)

    def look(self, status: ServeStatus) -> list[Reached]:
        """What has been reached since the last look."""
        news = []
        for name, revision in tuple(self._open.items()):
            reached = self._of(name, revision, status.applications.get(name))
            if reached is not None:
                del self._open[name]
                if reached.failure is not None:
                    self.failed[name] = reached.failure
                news.append(reached)
        return news

    def _of(self, name: str, revision: int | None, app: ApplicationStatus | None) -> Reached | None:
        if app is None:
            return Reached(name, None, f"application {name!r} was deleted while it was starting")
        if revision is not None and app.revision < revision:
            return None
        if self._by is not None and app.deployed_by and app.deployed_by != self._by:
            return Reached(name, app, f"application {name!r} was replaced before it was ready, by {app.deployed_by}")
        if app.status == "RUNNING":
            return Reached(name, app)
        if app.status == "DEPLOY_FAILED":
            return Reached(name, app, f"application {name!r} did not start. {app.message}")
        return None
