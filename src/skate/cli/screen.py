"""What a command shows while it waits for applications, in lines: for pipes, files and logs, and after the start.

Law: a screen is told whole statuses and finds out itself what is new; it never asks. Time is given to it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Protocol

import click

from skate.authoring.traces import shortened
from skate.cli.failure import error_line
from skate.cli.news import News
from skate.core.specs import ServeStatus


class Screen(Protocol):
    """Where a command shows what happens to some applications."""

    period_s: float | None  # how often it wants to be told the time; None: never
    output: int | None  # where processes shall print; None: where this one does

    def begin(self, names: Sequence[str], now: float) -> None:
        """The applications are about to start, or to start again."""

    def show(self, status: ServeStatus, now: float) -> None:
        """The whole instance, at every change."""

    def tick(self, now: float) -> None:
        """Time has passed."""

    def settle(self) -> None:
        """The applications are ready, or have failed; only changes are of interest from now on."""

    def line(self, text: str) -> None:
        """A line for the user."""

    def error(self, text: str) -> None:
        """An error that does not end the command."""

    def close(self) -> None:
        """The command ends."""


class Lines:
    """One line for each change of a replica."""

    def __init__(self) -> None:
        self.period_s: float | None = None
        self.output: int | None = None
        self._names: Sequence[str] = ()
        self._news = News(())

    def begin(self, names: Sequence[str], now: float) -> None:
        if names != self._names:  # else what was said stays said
            self._names, self._news = names, News(names, now)

    def show(self, status: ServeStatus, now: float) -> None:
        for line in self.news(status, now):
            self.line(line)

    def news(self, status: ServeStatus, now: float) -> list[str]:
        """What is new since the last status; it counts as said from now on."""
        return self._news.of(status, now)

    def tick(self, now: float) -> None:
        """Lines do not move."""

    def settle(self) -> None:
        """Nor do they end."""

    def line(self, text: str) -> None:
        click.echo(text)

    def error(self, text: str) -> None:
        click.echo(error_line(shortened(text)), err=True)

    def close(self) -> None:
        """Every line is out."""


def screen(*, listens: bool = False) -> Screen:
    """A table that moves where there is a terminal to draw it on; only then rich is imported.

    ``listens``: an instance may be started, whose processes would print into that table.
    """
    if not sys.stdout.isatty():
        return Lines()
    made: Screen = importlib.import_module("skate.cli.live").LiveTable(listens)
    return made
