"""A thread that asks the loop of a replica now and then whether it is there, and looks who keeps it from answering.

Law: it costs the way of a request nothing. It wakes twice within ``loop_block_warning_s`` while calls are under way.
When none has been for ``IDLE_S``, it makes sure once more that the loop turns, and sleeps until bytes come for the
replica: a wake-up of a thread costs 70 to 100 us on a virtual machine, too much to do it in a hundred idle replicas.
The kernel tells it of bytes when it tells the loop, so a blocked loop is found out by the first who wants something.
Stacks are looked at only when the loop has been silent for half the bound; what follows is decided in ``blocking``.
A loop that is silent for ``health_check_timeout_s`` is a strike, and the thread itself must tell.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable
from math import inf
from types import FrameType
from typing import NamedTuple, Protocol

from skate.core.clock import Clock
from skate.core.options import DeploymentOptions
from skate.core.specs import LoopBlocking
from skate.dataplane.replica.blocking import Blockings, Ended, LoopWatch, Sample, Silence
from skate.dataplane.replica.doorbell import Doorbell
from skate.dataplane.replica.stacks import outwards, sample_of

logger = logging.getLogger("skate.replica")

IDLE_S = 2.0  # without a call, until it sleeps; a call that wakes it pays for that, so not in every pause
TELL_S = 0.5  # after an episode, for the counts to be told; more of them meanwhile go along
CRY_AGAIN_S = 1.0  # until it tries again to be heard
FAILED_S = 1.0  # until it tries again after an error of its own
STOP_S = 1.0  # for the thread to end
LOOKS_PER_STRIKE = 4  # at least
PAUSE_MIN_S = 0.005  # between two looks


class Calls(Protocol):
    """The calls of the replica: how many are under way."""

    @property
    def ongoing(self) -> int: ...


class Terms(NamedTuple):
    """What it goes by. ``bound_s``: silence that is named, inf: none is; ``timeout_s``: silence that is a strike.

    ``tick_s``: how often something of the loop's own is due while nobody calls; None: nothing is.
    """

    bound_s: float
    timeout_s: float
    tick_s: float | None = None

    @classmethod
    def of(cls, options: DeploymentOptions, checks_health: bool) -> Terms:
        tick_s = options.health_check_period_s if checks_health else None
        return cls(options.loop_block_warning_s or inf, options.health_check_timeout_s, tick_s)


class Watchdog:
    """Watches the loop that it is made on.

    ``tell`` gets the counts of blockings, on the loop. ``cry`` gets strikes and their error, on the thread, which may
    block for a while in it; it says whether somebody heard.
    """

    def __init__(
        self,
        name: str,
        terms: Terms,
        clock: Clock,
        calls: Calls,
        tell: Callable[[tuple[LoopBlocking, ...]], object],
        cry: Callable[[int, str], bool],
    ) -> None:
        self._name = name
        self._terms = terms
        self._clock = clock
        self._calls = calls
        self._tell, self._cry = tell, cry
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._watch = LoopWatch(terms.bound_s)
        self._blockings = Blockings()
        self._silence = Silence()
        self._said = self._cried = 0  # strikes that the log and the controller know of
        self._cry_at = 0.0
        self._answered_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._busy_at = clock.now()  # when calls were last seen, or came
        self._curious = False  # asks the loop at the next look even if there is no call
        self._emptied = False  # the doorbell, and no call was seen since
        self._stopped = False
        self._base: frozenset[FrameType] = frozenset()
        self._bell = threading.Lock()  # held; whoever releases it wakes the thread between two looks
        self._doorbell = Doorbell()
        self._thread = threading.Thread(target=self._main, name="skate-watchdog", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._bell.acquire()
        self._loop.call_soon(self._see_base)

    def hear(self, fd: int) -> None:
        """Bytes that come at this socket are for the loop."""
        self._doorbell.hear(fd)

    def take_up(self, terms: Terms) -> None:
        """Goes by other terms from the next look on (from the loop)."""
        self._terms = terms
        self._ring()

    def stop(self) -> None:
        """Ends the thread (from the loop)."""
        self._stopped = True
        self._ring()
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        if not self._thread.is_alive():
            self._doorbell.close()
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
                self._rest()
            except Exception:  # an alarm that fails must not end the watch
                logger.exception("the watchdog of %s failed to look", self._name)
                self._bell.acquire(timeout=FAILED_S)

    @property
    def _pause_s(self) -> float:
        """Between two looks."""
        return max(PAUSE_MIN_S, min(self._watch.period_s, self._terms.timeout_s / LOOKS_PER_STRIKE))

    def _rest(self) -> None:
        """Waits until the next look is due."""
        if self._watch.pinged_at is not None or self._clock.now() - self._busy_at < IDLE_S:
            self._bell.acquire(timeout=self._pause_s)
        elif not self._emptied:  # and then asks once more: the loop that answers has all in hand that came before
            self._doorbell.empty()
            self._emptied = self._curious = True
        else:
            if self._doorbell.wait(self._terms.tick_s):
                self._busy_at, self._emptied = self._clock.now(), False
            self._curious = True

    def _look(self) -> bool:
        """One look; False when the loop is closed."""
        watch, now = self._watch, self._clock.now()
        watch.bound_s = self._terms.bound_s
        busy = self._calls.ongoing > 0
        if busy:
            self._busy_at, self._emptied = now, False
        silent = watch.pinged_at is not None and self._answered_at is None
        event = watch.look(now, busy or self._curious, self._answered_at, self._sample)
        if event is not None:
            line = self._blockings.note(event, now)
            if line is not None:
                logger.warning("%s: %s", self._name, line)
        try:
            if watch.pinged_at == now:
                self._answered_at, self._curious = None, False
                self._loop.call_soon_threadsafe(self._answer)
            if isinstance(event, Ended):
                self._loop.call_soon_threadsafe(self._plan_to_tell)
        except RuntimeError:  # closed
            return False
        self._judge(self._silence.look(now, silent, self._terms.timeout_s, 2 * self._pause_s), now)
        return True

    def _judge(self, strikes: int, now: float) -> None:
        """Says aloud when the strikes are others than those that were heard."""
        if strikes == self._cried or now < self._cry_at:
            return
        error = self._blame() if strikes else ""
        if strikes > self._said:
            logger.warning("%s: failed liveness, %d in a row: %s", self._name, strikes, error)
        self._said = strikes
        if self._cry(strikes, error):
            self._cried = strikes
        else:
            self._cry_at = now + CRY_AGAIN_S

    def _blame(self) -> str:
        found = self._sample()
        text = f"the event loop has not turned for {self._silence.seconds:.1f} s"
        if found is None:
            return f"{text}; no user code is seen on it"
        inside = f", now inside {found.inside}" if found.inside else ""
        return f"{text}: {found.place} is running{inside}"

    def _sample(self) -> Sample | None:
        frame = sys._current_frames().get(self._loop_thread)
        return None if frame is None else sample_of(frame, self._base)

    # -- the loop -------------------------------------------------------------------------------

    def _see_base(self) -> None:
        """Notes what the loop itself stands on, down to the program that started it; then the thread may begin."""
        if not self._stopped:
            self._base = frozenset(outwards(sys._getframe(1)))
            self._thread.start()

    def _ring(self) -> None:
        """Wakes the thread, wherever it waits."""
        if self._bell.locked():
            self._bell.release()
        self._doorbell.ring()

    def _answer(self) -> None:
        self._answered_at = self._clock.now()

    def _plan_to_tell(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(TELL_S, self._tell_counts)

    def _tell_counts(self) -> None:
        self._timer = None
        self._tell(self._blockings.counts())
