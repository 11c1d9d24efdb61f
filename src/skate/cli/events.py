"""The log of events as lines, and how to follow it: a change of the status is the sign to look for new ones.

Law: an event is shown once, in the order of its number, over any number of controllers.
"""

from __future__ import annotations

from collections.abc import Callable

import click

from skate.authoring.traces import shortened
from skate.cli.watching import each
from skate.cli.words import COLOURS, stamp
from skate.controlplane.instance import Instance
from skate.core.clock import Clock
from skate.core.errors import NotRunningError
from skate.core.specs import Event, ServeStatus

LOOK_AGAIN_S = 2.0  # for what happens without a change of the status
BATCH = 1000

BAD = ("died", "failed", "crash", "unhealthy", "refused", "error")


def event_line(event: Event) -> str:
    """Time, place, kind and what happened."""
    place = f"{event.app}/{event.deployment}" if event.deployment else event.app or "instance"
    colour = COLOURS["UNHEALTHY"] if any(word in event.kind for word in BAD) else None
    kind = click.style(event.kind, fg=colour) if colour else event.kind
    lines = shortened(event.message).splitlines() or [""]
    return "\n    ".join([f"{stamp(event.at)}  {place}  {kind}  {lines[0]}".rstrip(), *lines[1:]])


class Follower:
    """Shows what is new each time it is asked to look. ``after``: the number of the last one that was shown."""

    def __init__(self, instance: Instance, after: int, app: str | None, show: Callable[[Event], None]) -> None:
        self._instance = instance
        self._after = after
        self._app = app
        self._show = show

    def look(self, status: ServeStatus, since_s: float) -> None:
        """Whatever the status is, there may be events."""
        try:
            found = self._instance.run(self._instance.read(lambda client: client.events(self._after, self._app, BATCH)))
        except NotRunningError:  # between two controllers
            return
        for event in found:
            self._show(event)
            self._after = max(self._after, event.id)


def follow_events(instance: Instance, after: int, app: str | None, show: Callable[[Event], None], clock: Clock) -> None:
    """Until Ctrl-C. Raises NotRunningError when the instance ends before."""
    each(instance, clock, Follower(instance, after, app, show).look, LOOK_AGAIN_S)
