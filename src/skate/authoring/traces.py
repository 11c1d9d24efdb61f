"""Which lines of an error are the user's own, and errors as text that shows those and not ours.

Law: what stays of a traceback is the user's code; only where there is none, its last frame whoever's it is.
"""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType

from skate.core.errors import SkateError

FRAMES_MAX = 6  # of one traceback
TOLD_MAX = 32_000  # characters
TRACEBACK = "Traceback (most recent call last):"
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_FRAME = re.compile(r'^\s+(?:\|\s*)?File "(?P<file>[^"]+)", line (?P<line>\d+)')
_MARKS = re.compile(r"^[\s|]*[~^][~^\s]*$")


def shortened(text: str) -> str:
    """The text with its tracebacks cut down to the last frames of user code."""
    lines: list[str] = []
    frames: list[list[str]] = []
    for line in text.rstrip().splitlines():
        if _FRAME.match(line):
            frames.append([_with_short_path(line)])
        elif frames and line[:1].isspace():
            if not _MARKS.match(line):
                frames[-1].append(line)
        else:
            lines += _kept(frames)
            frames = []
            lines.append(line)
    lines += _kept(frames)
    return "\n".join(line.removesuffix(" " + TRACEBACK) for line in lines if line != TRACEBACK)


def _kept(frames: list[list[str]]) -> Iterator[str]:
    own = [frame for frame in frames if not _is_foreign(frame[0])]
    for frame in (own or frames[-1:])[-FRAMES_MAX:]:
        yield from frame


def _is_foreign(line: str) -> bool:
    match = _FRAME.match(line)
    return match is not None and not is_users(match["file"])


def is_users(file: str) -> bool:
    """Whether a file of a traceback is neither Skate's nor a library's."""
    path = os.path.abspath(file)
    foreign = (_PACKAGE, *_LIBRARIES)
    return not file.startswith("<frozen") and not any(path.startswith(root + os.sep) for root in foreign)


def _with_short_path(line: str) -> str:
    match = _FRAME.match(line)
    assert match is not None
    return line.replace(match["file"], short_path(match["file"]), 1)


def short_path(file: str) -> str:
    """Relative to where the user stands, if it lies below."""
    here = os.getcwd() + os.sep
    return file.removeprefix(here)


# -- exceptions of user code in this process --------------------------------------------------------


def place(error: BaseException) -> str:
    """Where in the user's code it was raised, as `` (app.py:3: x = 1 / 0)``; empty if that is not known."""
    if isinstance(error, SyntaxError) and error.filename:
        shown = f": {error.text.strip()}" if error.text else ""
        return f" ({short_path(error.filename)}:{error.lineno}{shown})"
    frames = [frame for frame in _frames(error.__traceback__) if is_users(frame.filename)]
    if not frames:
        return ""
    last = frames[-1]
    return f" ({short_path(last.filename)}:{last.lineno}{f': {last.line}' if last.line else ''})"


def told(error: BaseException) -> str:
    """One readable line, and after it the user's own lines of the traceback, where there are any."""
    own = isinstance(error, SkateError)
    line = str(error) if own else f"{one_line(error)}{place(error)}"
    culprit = (error.__cause__ or error) if own else error
    if not place(culprit) or (own and culprit is error):
        return line
    return f"{line}\n{shortened(''.join(traceback.format_exception(culprit)))}"[:TOLD_MAX]


def _frames(trace: TracebackType | None) -> Iterable[traceback.FrameSummary]:
    return traceback.extract_tb(trace)


def one_line(error: BaseException) -> str:
    """Type and text of a user's exception, on one line."""
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
