"""What an engine is: it is told what to run (actions) and says what runs (observations).

Law: an engine decides nothing. It does not restart, place or count; it performs one action at a time and
reports what is there, the dead ones too until it is told to forget them. Whoever decides (the controller)
may be killed and come back: everything that matters is in ``observe()``.

An entry is ``async def entry(config: bytes, life: Life) -> None``. It ends by returning soon after
``life.stopping`` is set. Engines find it by name, so nothing on this floor imports a floor above.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias

import msgspec

from skate.core.clock import Clock
from skate.core.errors import Fault, SkateError
from skate.core.specs import ProcessSpec

KILLED = -9  # exit code of what did not end within its grace, as ``subprocess`` counts signals


class EngineError(SkateError, RuntimeError):
    """The engine cannot do what it was asked: an unknown entry, an id in use, a supervisor that is gone."""


class AlreadyRunningError(EngineError):
    """An instance with this runtime directory is running already."""

    fault: ClassVar[Fault] = "caller"


@dataclass(slots=True)
class Life:
    """What an entry is given to live with. ``engine_address`` is "" inline."""

    clock: Clock
    inline: bool
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    engine_address: str = ""


Entry: TypeAlias = Callable[[bytes, Life], Awaitable[None]]


class ProcessSeen(msgspec.Struct, frozen=True, array_like=True):
    """One process as the engine sees it. ``exit_code`` is negative for a signal.

    It is None while the process lives, and when it was killed and the supervisor that would have been told by which
    signal had died before it.
    """

    id: str
    role: str
    pid: int
    alive: bool
    exit_code: int | None = None


class StartProcess(msgspec.Struct, frozen=True, array_like=True, tag="start"):
    """Run this. An id that is still known, dead or alive, is refused."""

    spec: ProcessSpec


class StopProcess(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """Ask it to stop, kill it after ``grace_s``. Done when asked, not when ended; the unknown and dead are no error."""

    id: str
    grace_s: float


class ForgetProcess(msgspec.Struct, frozen=True, array_like=True, tag="forget"):
    """Drop a dead process from the observations. A living one is refused; an unknown one is no error."""

    id: str


Action: TypeAlias = StartProcess | StopProcess | ForgetProcess
Changed: TypeAlias = Callable[[ProcessSeen | None], None]


class Engine(Protocol):
    """Where processes live."""

    async def observe(self) -> list[ProcessSeen]:
        """Everything that was started and not forgotten, in the order of starting."""
        ...

    async def perform(self, action: Action) -> ProcessSeen | None:
        """Does one action: of a start the process that runs now, else None. EngineError when it cannot be done."""
        ...

    def on_change(self, callback: Changed) -> None:
        """``callback`` is called on the loop with each process that ended from now on.

        With None it is told that ends may have been missed (the line to the supervisor was lost): observe everything.
        What was observed once and is kept up to date by starts, ends and forgets is as good as a new look; the end of
        a process may be told before the ``perform`` that started it returns.
        """
        ...

    async def close(self) -> None:
        """Lets go of the engine. Inline entries end with it; processes belong to their supervisor and stay."""
        ...


def resolve(entry: str) -> Any:
    """The function that ``module:function`` names."""
    module_name, _, function_name = entry.partition(":")
    if not module_name or not function_name:
        raise EngineError(f"the entry {entry!r} is not of the form 'module:function'")
    module = importlib.import_module(module_name)
    try:
        return getattr(module, function_name)
    except AttributeError:
        raise EngineError(f"the entry {entry!r} does not exist: {module_name} has no {function_name!r}") from None


def exit_code_of(stop: SystemExit) -> int:
    """What the interpreter would make of ``SystemExit``."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    print(stop.code, file=sys.stderr)
    return 1


def print_failure(title: str, error: BaseException) -> None:
    """One block on stderr that says which process ended and why."""
    text = "".join(traceback.format_exception(error))
    print(f"[{title}] ended with an error:\n{text}", end="", file=sys.stderr, flush=True)
