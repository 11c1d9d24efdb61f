"""What went wrong in the user's code, in words. Law: never raises, whatever the exception object does.

A traceback begins at the user's first line; the frames of Skate around it tell nobody anything.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from skate.core import context
from skate.core.errors import SkateError
from skate.dataplane.transport.failure import described

TEXT_MAX = 32_000  # characters of an error in a report
_OWN_FILES = str(Path(context.__file__).parents[1])  # the folder of the package


def user_traceback(error: BaseException) -> str | None:
    """The traceback from the user's first line on; None for an error in which none of the user's code took part."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OWN_FILES):
        trace = trace.tb_next
    if trace is None and isinstance(error, SkateError | TypeError):
        return None
    return "".join(traceback.format_exception(type(error), error, trace or error.__traceback__))


def said_of(error: BaseException) -> str:
    """The error with the user's traceback, as a report shows it: the end of it, where it is long."""
    try:
        text = user_traceback(error)
        if text is None:
            text = f"{type(error).__name__}: {error}"
    except Exception:  # exceptions are user code, too
        text = described(error)
    return text.rstrip()[-TEXT_MAX:]


async def failure_of(work: Awaitable[Any]) -> str | None:
    """Awaits user code; what went wrong, None if nothing did. Raises nothing but a cancellation of whoever waits."""
    try:
        await work
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return said_of(error)
    except BaseException as error:  # SystemExit, too: user code must not take the event loop with it
        return said_of(error)
    return None
