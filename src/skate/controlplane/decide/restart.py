"""When something that failed may be tried again. Law: the first failure is repaired at once, repeated ones ever more
slowly, and a minute of health forgets them; a start that never worked is tried a limited number of times.
"""

from __future__ import annotations

from msgspec.structs import replace

from skate.controlplane.decide.values import Failures

DELAY_FIRST_S = 0.1  # a process starts in about that time, so the second try costs no more than the start itself
DELAY_MAX_S = 10.0
FORGET_S = 60.0  # after this long without a failure the next one counts as the first
TRIES_PER_REPLICA = 3  # Ray Serve's budget of failed starts: three for each wanted replica, but not above the option
CAUSE_MAX = 300  # characters of a cause that callers are shown; the status has all of it
COUNT_MAX = 1_000_000
ERROR_MAX = 20_000  # characters of a traceback that are kept: its beginning and its end


def noted(before: Failures, count: int, started: bool, now: float, error: str) -> Failures:
    """``count`` replicas failed. ``started``: they had been ready, so this says nothing about starting."""
    if not count:
        return before
    fresh = forgotten(before, now)
    return Failures(
        in_a_row=min(COUNT_MAX, before.in_a_row + (0 if started else count)),
        recent=min(COUNT_MAX, fresh.recent + count),
        last_at=now,
        error=clipped(error),
    )


def forgotten(before: Failures, now: float) -> Failures:
    """The same without what is too long ago to slow anything down, or was before the machine's clock began anew."""
    if before.last_at is None or 0 <= now - before.last_at < FORGET_S:
        return before
    return replace(before, recent=0, last_at=None if now < before.last_at else before.last_at)


def worked(before: Failures) -> Failures:
    """A start worked: the failed ones before it no longer count against the budget."""
    return replace(before, in_a_row=0) if before.in_a_row else before


def delay_s(recent: int, width: int) -> float:
    """How long after the last failure to wait. ``width`` replicas may fail once each (a common cause) without delay."""
    rounds = (recent - 1) // max(1, width) if recent else 0
    return min(DELAY_MAX_S, DELAY_FIRST_S * 2.0 ** min(rounds - 1, 30)) if rounds else 0.0


def next_try_at(failures: Failures, width: int, now: float) -> float:
    """When the next start is allowed; ``now`` or earlier means at once."""
    fresh = forgotten(failures, now)
    if fresh.last_at is None:
        return now
    return fresh.last_at + delay_s(fresh.recent, width)


def budget(retries_max: int, target: int) -> int:
    """How many starts may fail in a row before no more are tried. Of what sleeps: of the one that a call wakes."""
    return max(1, min(retries_max, TRIES_PER_REPLICA * max(1, target)))


def clipped(text: str, most: int = ERROR_MAX) -> str:
    """A text short enough to keep: the beginning and, because that is where a traceback says it, the end."""
    if len(text) <= most:
        return text
    return text[: most // 4] + "\n[...]\n" + text[-(most * 3) // 4 :]


def is_loop(failures: Failures, width: int) -> bool:
    """Whether starts are being slowed down because replicas end again and again."""
    return delay_s(failures.recent, width) > 0.0


def last_line(error: str) -> str:
    """The last line of a traceback, which names the exception."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1][:CAUSE_MAX] if lines else "see the status of the application"
