"""Who runs on a thread, told from its stack: the user's function and line before a package's, before Skate's own.

Law: frames are looked at and never kept beyond the answer; whose code a file holds is remembered by its name.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator, Set
from itertools import takewhile
from pathlib import Path
from types import CodeType, FrameType

from skate.core import context
from skate.dataplane.replica.blocking import Sample

FILES_MAX = 10_000  # of which it is remembered whose they are

_OWN = str(Path(context.__file__).parents[1]) + os.sep
_CALLS = os.path.join(_OWN, "dataplane") + os.sep
_STANDARD = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

# Whose code a file holds: who is named first, when it is on the stack, has the higher number. NOBODY: the loop itself.
NOBODY, SKATE, PACKAGE, USER = range(4)


def sample_of(frame: FrameType, base: Set[FrameType] = frozenset()) -> Sample | None:
    """What a stack says, given its innermost frame: the innermost function of the user, else of a package, else the
    part of Skate that works for a call; None when nothing is on it but the loop and its ``base``.
    """
    frames = list(takewhile(lambda one: one not in base, outwards(frame)))
    if not frames:
        return None
    owners = [owner_of(one.f_code.co_filename) for one in frames]
    best = max(owners)
    if best == NOBODY:
        return None
    chosen = frames[owners.index(best)]
    step = frames[len(owners) - 1 - owners[::-1].index(best)]
    inside = "" if chosen is frames[0] else shown(frames[0].f_code, frames[0].f_lineno)
    return Sample(step, shown(chosen.f_code, chosen.f_lineno), inside)


def shown(code: CodeType, line: int) -> str:
    """Function, file and line, as short as they stay clear."""
    file = code.co_filename
    here = os.getcwd() + os.sep
    return f"{code.co_qualname} ({file.removeprefix(here)}:{line})"


def outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


_owners: dict[str, int] = {}


def owner_of(file: str) -> int:
    """Whose code a file holds."""
    owner = _owners.get(file)
    if owner is None:
        if len(_owners) >= FILES_MAX:
            _owners.clear()
        owner = _owners[file] = _owner_of(file)
    return owner


def _owner_of(file: str) -> int:
    if file.startswith(_OWN):
        return SKATE if file.startswith(_CALLS) else NOBODY
    if any(part in file for part in _PACKAGES):
        return PACKAGE
    return NOBODY if file.startswith((*_STANDARD, "<frozen ")) else USER
