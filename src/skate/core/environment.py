"""The one door to the environment. Law: no other module of Skate reads or writes ``os.environ``.

Six variables count; they are read once, checked, and are a frozen value from then on. Whatever else may be
set is an option (``core/options.py``), so that two runs with the same arguments do the same.
"""

from __future__ import annotations

import functools
import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from skate.core.errors import OptionError

DEFAULT_INSTANCE: Final = "default"
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
INSTANCE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
ADMIN_TOKEN: Final = "SKATE_ADMIN_TOKEN"
BESIDE: Final = ".state"  # in the runtime base; no instance can be called so
RUNTIME_DIR_MAX: Final = 80  # bytes; a Unix socket path ends at 103 (macOS) or 107 (Linux), its name needs the rest


@dataclass(frozen=True, slots=True)
class Environment:
    """What the environment says. ``runtime_base`` is absolute; ``log_level`` is one of ``LOG_LEVELS``."""

    runtime_base: str
    instance: str = DEFAULT_INSTANCE
    log_level: str = "INFO"
    admin_token: str | None = field(default=None, repr=False)
    state_base: str = ""  # absolute

    @property
    def runtime_dir(self) -> str:
        """The folder of this instance: its sockets, its logs and, if it has an owner, its state, nothing else."""
        return os.path.join(self.runtime_base, self.instance)

    @property
    def state_dir(self) -> str:
        """The folder for the state of this instance if it has no owner: it outlives the instance and the machine."""
        return os.path.join(self.state_base, self.instance)


def read(variables: Mapping[str, str], uid: int) -> Environment:
    """The value that these variables mean. An empty variable counts as not set.

    Raises OptionError naming the variable that is wrong.
    """
    instance = variables.get("SKATE_INSTANCE") or DEFAULT_INSTANCE
    if not INSTANCE_NAME.fullmatch(instance):
        raise OptionError(
            f"SKATE_INSTANCE={instance!r} cannot name an instance: use 1 to 32 letters, digits, '_', '-' or '.', "
            "not starting with '-' or '.'"
        )
    level = (variables.get("SKATE_LOG_LEVEL") or "INFO").upper()
    if level not in LOG_LEVELS:
        raise OptionError(f"SKATE_LOG_LEVEL={level!r} is no log level: use one of {', '.join(LOG_LEVELS)}")
    runtime_base = _runtime_base(variables, uid)
    state_base = _state_base(variables, uid, runtime_base)
    found = Environment(runtime_base, instance, level, variables.get(ADMIN_TOKEN) or None, state_base)
    if len(os.fsencode(found.runtime_dir)) > RUNTIME_DIR_MAX:
        raise OptionError(
            f"the runtime folder {found.runtime_dir!r} is longer than {RUNTIME_DIR_MAX} bytes, its sockets would not "
            "fit into a Unix socket path: set SKATE_RUNTIME_DIR to a shorter folder"
        )
    return found


def _runtime_base(variables: Mapping[str, str], uid: int) -> str:
    if chosen := variables.get("SKATE_RUNTIME_DIR"):
        if not os.path.isabs(chosen):
            raise OptionError(f"SKATE_RUNTIME_DIR={chosen!r} is not absolute: write the path from '/' on")
        return os.path.normpath(chosen)
    desktop = variables.get("XDG_RUNTIME_DIR")
    if desktop and os.path.isabs(desktop):  # its own specification says to ignore a relative one
        return os.path.join(os.path.normpath(desktop), "skate")
    return f"/tmp/skate-{uid}"


def _state_base(variables: Mapping[str, str], uid: int, runtime_base: str) -> str:
    """Instances of different runtime folders must not meet here: who has chosen that one has chosen this one, too."""
    if chosen := variables.get("SKATE_STATE_DIR"):
        if not os.path.isabs(chosen):
            raise OptionError(f"SKATE_STATE_DIR={chosen!r} is not absolute: write the path from '/' on")
        return os.path.normpath(chosen)
    if variables.get("SKATE_RUNTIME_DIR"):
        return os.path.join(runtime_base, BESIDE)
    desktop = variables.get("XDG_STATE_HOME")
    if desktop and os.path.isabs(desktop):
        return os.path.join(os.path.normpath(desktop), "skate")
    home = variables.get("HOME") or _home(uid)
    return os.path.join(home, ".local", "state", "skate") if os.path.isabs(home) else os.path.join(runtime_base, BESIDE)


def _home(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return ""


@functools.cache
def environment() -> Environment:
    """The environment of this process, read at the first call."""
    return read(os.environ, os.getuid())


def variables() -> Mapping[str, str]:
    """All variables of this process, for what files take from the environment by name."""
    return os.environ


def export(variables: Mapping[str, str]) -> None:
    """Sets variables of this process for user code that will run in it (``runtime_env: env_vars`` of a replica)."""
    os.environ.update(variables)


def export_default(name: str, value: str) -> None:
    """Sets a variable of this process unless it is set."""
    os.environ.setdefault(name, value)


def handed_on() -> dict[str, str]:
    """The variables of this process for an instance that it starts: all but the token."""
    return {name: value for name, value in os.environ.items() if name != ADMIN_TOKEN}
