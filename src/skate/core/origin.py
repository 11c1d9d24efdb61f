"""Who asked for an application, in words that people read: ``python train.py in ~/work (pid 12)``.

Law: two askers are the same when the same command was said in the same place; the process id is only for people.
"""

from __future__ import annotations

import os
import re

_PID = re.compile(r" \(pid \d+\)$")


def said(command: str, cwd: str, pid: int) -> str:
    """The asker in words."""
    return f"{command} in {_short(cwd)} (pid {pid})"


def same(one: str, other: str) -> bool:
    """Whether both are the same asker; one that is not known counts as the same."""
    return not one or not other or _PID.sub("", one) == _PID.sub("", other)


def _short(path: str) -> str:
    home = os.path.expanduser("~")
    return "~" + path.removeprefix(home) if path == home or path.startswith(home + os.sep) else path
