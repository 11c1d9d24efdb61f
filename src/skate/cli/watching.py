"""``skate status --watch`` and ``skate events --follow``: what changes, as it changes, until Ctrl-C.

Law: the instance tells when something has changed; nobody asks in between. Only the seconds on a terminal run by
themselves. A controller that comes back is watched again; the end of the instance ends the command with 1.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterable
from typing import Protocol

import click

from skate.cli.following import Gone, Seen, follow
from skate.cli.group import show_json
from skate.cli.inbox import Inbox
from skate.cli.news import News
from skate.cli.words import stamp
from skate.controlplane.instance import Instance
from skate.core.clock import Clock
from skate.core.errors import NotFoundError, NotRunningError
from skate.core.specs import ServeStatus
from skate.dataplane import caller as callers

Draw = Callable[[ServeStatus, float], list[str]]  # a status and its age in seconds, as lines


class View(Protocol):
    """Where a watched instance is shown."""

    period_s: float | None  # how often it draws again although nothing has changed

    def show(self, status: ServeStatus, since_s: float) -> None:
        """The status, ``since_s`` seconds ago."""

    def close(self) -> None:
        """Nothing more comes."""


class Changes:
    """Lines of what is new, each with its time."""

    def __init__(self, names: Iterable[str] | None, clock: Clock) -> None:
        self.period_s: float | None = None
        self._news = News(None if names is None else tuple(names), clock.now(), states=True)
        self._clock = clock

    def show(self, status: ServeStatus, since_s: float) -> None:
        now = time_of_day(self._clock.wall())
        for line in self._news.of(status, self._clock.now()):
            click.echo(f"{now}  {line}")

    def close(self) -> None:
        """Every line is out."""


class Documents:
    """A JSON document on a line for each status."""

    def __init__(self, part: Callable[[ServeStatus], object]) -> None:
        self.period_s: float | None = None
        self._part = part

    def show(self, status: ServeStatus, since_s: float) -> None:
        try:
            part = self._part(status)
        except NotFoundError:  # it may come again
            part = None
        show_json(part, indent=0)

    def close(self) -> None:
        """Every document is out."""


def view(names: Iterable[str] | None, draw: Draw, clock: Clock) -> View:
    """A table that is drawn again on a terminal, lines elsewhere."""
    if not sys.stdout.isatty():
        return Changes(names, clock)
    made: View = importlib.import_module("skate.cli.live").Drawn(draw)
    return made


def watch(instance: Instance, shown: View, clock: Clock) -> None:
    """Shows every status until Ctrl-C. Raises NotRunningError when the instance ends before."""
    each(instance, clock, shown.show, shown.period_s, shown.close)


def each(
    instance: Instance,
    clock: Clock,
    take: Callable[[ServeStatus, float], None],
    period_s: float | None = None,
    close: Callable[[], None] = lambda: None,
) -> None:
    """Calls ``take`` with every status, and with the last one and its age again after ``period_s``."""
    inbox: Inbox[Seen | Gone] = Inbox()
    following = callers.io_thread().submit(follow(instance, inbox, clock))
    latest: tuple[ServeStatus, float] | None = None
    try:
        with contextlib.closing(inbox), inbox.signals(close):
            while not inbox.interrupted:
                for event in inbox.take(period_s):
                    if isinstance(event, Gone):
                        raise NotRunningError("the instance has ended")
                    latest = event.status, clock.now()
                if latest is not None:
                    take(latest[0], clock.now() - latest[1])
    finally:
        following.cancel()
        close()


def time_of_day(wall: float) -> str:
    """Hours, minutes and seconds of a wall time, where the user is."""
    return stamp(wall).rpartition(" ")[2]
