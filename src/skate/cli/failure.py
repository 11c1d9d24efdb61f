"""What went wrong, as a user should read it: the cause and the user's own lines, not Skate's.

Law: the first line says everything that can be said in one; what follows is the user's code. ``-v`` shows the rest.
"""

from __future__ import annotations

import sys
import traceback
from typing import IO, Any

import click

from skate.authoring.traces import shortened
from skate.core.errors import SkateError


class Failure(click.ClickException):
    """An error of a command; ``error:`` and one line, and the traceback with ``-v``."""

    def __init__(self, cause: BaseException, verbose: bool) -> None:
        super().__init__(said(cause))
        self.verbose = verbose
        self.cause = cause

    def show(self, file: IO[Any] | None = None) -> None:
        """Writes it to stderr."""
        if self.verbose:
            click.echo("".join(traceback.format_exception(self.cause)), file=file, err=True, nl=False)
        click.echo(error_line(self.message), file=file, err=True)


def error_line(text: str) -> str:
    return click.style("error:", fg="red", bold=True) + " " + text


def said(error: BaseException) -> str:
    """The error as text, with the user's lines of tracebacks in it."""
    if isinstance(error, SkateError | click.ClickException):
        return shortened(str(error))
    if isinstance(error, TimeoutError):
        return str(error) or "the instance did not answer in time; look at it with `skate status`, or end it"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename is not None and error.strerror else str(error)
    return f"{type(error).__name__}: {error} (this should not happen; -v shows where it did)"


def show_traceback_if(verbose: bool) -> None:
    """Prints the traceback of the exception that is being handled, with ``-v``."""
    if verbose and sys.exc_info()[0] is not None:
        click.echo(traceback.format_exc(), err=True, nl=False)
