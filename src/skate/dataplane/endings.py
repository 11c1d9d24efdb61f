"""What callers are told of calls that ended without an answer. Law: it says where the call was, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skate.core.errors import CallTimeoutError, NotRunningError, ReplicaDiedError

if TYPE_CHECKING:
    from skate.dataplane.call import Call

REASON_MAX = 300  # characters of a reason in the log


def died(call: Call, replica: str) -> ReplicaDiedError:
    """The error of a call that its replica had started; says how to have such calls sent again."""
    again = f", the last of {call.losses + 1} that died so" if call.losses else ""
    return ReplicaDiedError(
        f"replica {replica} died while it had request {call.request_id} in hand{again}; it may or may not have been "
        "executed. Calls that may be executed twice are sent again where the deployment or the handle says retry="
    )


def where_is(call: Call) -> str:
    """Where a call is that has not ended yet."""
    link = call.link
    if link is None:
        return "waiting for a replica"
    return f"{'running in' if call.running else 'waiting for a slot of'} {link.target.id}"


def instance_gone() -> NotRunningError:
    """The error of calls to an instance that has ended."""
    return NotRunningError("the Skate instance that this process was connected to has ended: start it again")


def timed_out(call: Call, now: float) -> CallTimeoutError:
    """The error of a call whose deadline has passed; says where it was by then."""
    where = "running" if call.running else "waiting for a slot of a replica"
    # uvloop's timers count in milliseconds and may be early by a part of one: what is over is the limit, at least
    seconds = max(0.0, now - call.accepted_at, (call.deadline or now) - call.accepted_at)
    return CallTimeoutError(
        f"request {call.request_id} to {call.deployment_key!r} timed out after {seconds:.3g} s while {where}"
    )
