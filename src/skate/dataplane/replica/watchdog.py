"""A thread that asks the loop of a replica now and then whether it is there, and looks who keeps it from answering.

Law: it costs the way of a request nothing but a look at one attribute. It wakes twice within the bound while calls are
under way, sleeps when none has been for ``IDLE_S`` until the next call comes (a wake-up of a thread costs 70 to 100 us
on a virtual machine, too much to do it in a hundred idle replicas), and looks at stacks only when the loop has been
silent for half the bound. What follows from what it sees is decided in ``blocking``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Set
from itertools import takewhile
from pathlib import Path
from types import CodeType, FrameType
from typing import Protocol

from skate.core import context
from skate.core.clock import Clock
from skate.core.specs import LoopBlocking
from skate.dataplane.replica.blocking import Blockings, Ended, LoopWatch, Sample

logger = logging.getLogger("skate.replica")

IDLE_S = 2.0  # without a call, until it sleeps; a call that wakes it pays for that, so not in every pause
TELL_S = 0.5  # after an episode, for the counts to be told; more of them meanwhile go along
FAILED_S = 1.0  # until it tries again after an error of its own
STOP_S = 1.0  # for the thread to end
FILES_MAX = 10_000  # of which it is remembered whose they are

_OWN = str(Path(context.__file__).parents[1]) + os.sep
_CALLS = os.path.join(_OWN, "dataplane") + os.sep
_STANDARD = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

# Whose code a file holds: who is named first, when it is on the stack, has the higher number. NOBODY: the loop itself.
NOBODY, SKATE, PACKAGE, USER = range(4)


class Calls(Protocol):
    """The calls of the replica: how many are under way, and who wants to hear, once, that another one comes."""

    on_call: Callable[[], None] | None

    @property
    def ongoing(self) -> int: ...


class Watchdog:
    """Watches the loop that it is made on while there are ``calls``; ``tell`` gets the counts (on the loop)."""

    def __init__(
        self,
        name: str,
        bound_s: float,
        clock: Clock,
        calls: Calls,
        tell: Callable[[tuple[LoopBlocking, ...]], object],
    ) -> None:
        self._name = name
        self._clock = clock
        self._calls = calls
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._watch = LoopWatch(bound_s)
        self._blockings = Blockings()
        self._answered_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._busy_at = clock.now()  # when calls were last seen
        self._stopped = False
        self._base: frozenset[FrameType] = frozenset()
        self._bell = threading.Lock()  # held; whoever releases it wakes the thread
        self._thread = threading.Thread(target=self._main, name="skate-watchdog", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._bell.acquire()
        self._loop.call_soon(self._see_base)

    def stop(self) -> None:
        """Ends the thread (from the loop)."""
        self._stopped = True
        self._calls.on_call = None
        self._ring()
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def silent_s(self) -> float:
        """For how many seconds the loop has left a question unanswered; 0 when it has not."""
        asked_at = self._watch.pinged_at
        return 0.0 if asked_at is None or self._answered_at is not None else self._clock.now() - asked_at

    # -- the thread -----------------------------------------------------------------------------

    def _main(self) -> None:
        while not self._stopped:
            try:
                if not self._look():
                    return
                self._bell.acquire(timeout=self._pause_s())
            except Exception:  # an alarm that fails must not end the watch
                logger.exception("the watchdog of %s failed to look", self._name)
                self._bell.acquire(timeout=FAILED_S)

    def _pause_s(self) -> float:
        """Seconds until the next look; -1: until somebody rings."""
        if self._watch.pinged_at is not None or self._clock.now() - self._busy_at < IDLE_S:
            return self._watch.period_s
        self._calls.on_call = self._ring
        if self._calls.ongoing == 0:  # none has come before it could ring
            return -1
        self._calls.on_call = None
        return self._watch.period_s

    def _look(self) -> bool:
        """One look; False when the loop is closed."""
        watch, now = self._watch, self._clock.now()
        busy = self._calls.ongoing > 0
        if busy:
            self._busy_at = now
        event = watch.look(now, busy, self._answered_at, self._sample)
        if event is not None:
            line = self._blockings.note(event, now)
            if line is not None:
                logger.warning("%s: %s", self._name, line)
        try:
            if watch.pinged_at == now:
                self._answered_at = None
                self._loop.call_soon_threadsafe(self._answer)
            if isinstance(event, Ended):
                self._loop.call_soon_threadsafe(self._plan_to_tell)
        except RuntimeError:  # closed
            return False
        return True

    def _sample(self) -> Sample | None:
        frame = sys._current_frames().get(self._loop_thread)
        return None if frame is None else sample_of(frame, self._base)

    # -- the loop -------------------------------------------------------------------------------

    def _see_base(self) -> None:
        """Notes what the loop itself stands on, down to the program that started it; then the thread may begin."""
        if not self._stopped:
            self._base = frozenset(_outwards(sys._getframe(1)))
            self._thread.start()

    def _ring(self) -> None:
        """Wakes the thread."""
        if self._bell.locked():
            self._bell.release()

    def _answer(self) -> None:
        self._answered_at = self._clock.now()

    def _plan_to_tell(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(TELL_S, self._tell_counts)

    def _tell_counts(self) -> None:
        self._timer = None
        self._tell(self._blockings.counts())


# -- stacks -------------------------------------------------------------------------------------


def sample_of(frame: FrameType, base: Set[FrameType] = frozenset()) -> Sample | None:
    """What a stack says, given its innermost frame: the innermost function of the user, else of a package, else the
    part of Skate that works for a call; None when nothing is on it but the loop and its ``base``.
    """
    frames = list(takewhile(lambda one: one not in base, _outwards(frame)))
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


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
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
