"""What became of every replica of a deployment: who stands, who ended unasked, who must be told again.

Law: joins memory and observation by id and nothing else; a replica found alive that nobody remembers is adopted as
one of an unknown version, so it serves until the wanted version can take over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from msgspec.structs import replace

from skate.controlplane.decide.reconcile import Ending
from skate.controlplane.decide.rollout import Stage, Standing
from skate.controlplane.decide.values import (
    RECOVERY_KNOWN_S,
    RECOVERY_S,
    STRIKES_MAX,
    Action,
    Forget,
    Group,
    Memory,
    Observed,
    ReplicaMemory,
    ReplicaSeen,
    StopReplica,
)

OVERDUE_S = 5.0  # how much longer than its grace a stop may take before the kill is asked for again
FAILED_GRACE_S = 2.0  # a replica that reported its failure ends by itself; this is for the case that it does not
STUCK_GRACE_S = 0.0  # a loop that does not turn hears nothing and answers nobody
ADOPTED_GRACE_S = 20.0  # Ray Serve's default, for a replica whose options nobody remembers


@dataclass
class Survey:
    """The replicas of one deployment by what became of them, and the actions that follow whatever is wanted."""

    replicas: dict[str, ReplicaMemory] = field(default_factory=dict)
    standing: list[Standing] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)

    @property
    def wake_at(self) -> float | None:
        """When a stop that was asked for must be over."""
        return min((one.stop_by for one in self.replicas.values() if one.stop_by is not None), default=None)


def complete_at(observed: Observed, memory: Memory) -> float:
    """When every replica found alive at the start has reported, or has had the time to: whoever is remembered can be
    done without, as it is known from before."""
    at = -inf
    for id in observed.found:
        key = key_of(id)
        seen = observed.replicas.get(key, {}).get(id)
        if seen is not None and seen.alive and not seen.reported:
            known = memory.deployments.get(key)
            is_known = known is not None and id in known.replicas
            at = max(at, observed.started_at + (RECOVERY_KNOWN_S if is_known else RECOVERY_S))
    return at


def key_of(id: str) -> str:
    """The deployment of a replica, which its id names."""
    return id.rpartition("#")[0]


def strangers(remembered: dict[str, ReplicaMemory], group: Group) -> list[ReplicaSeen]:
    """The living replicas that nobody remembers."""
    return [one for one in group.values() if one.alive and one.id not in remembered]


def ordinal_of(id: str) -> int:
    """The number of a replica, which no other one of the instance has: where it listens is named by it."""
    tag = id.rpartition("#")[2]
    return int(tag) if tag.isdecimal() else 0


def adopted(stranger: ReplicaSeen, ordinal: int) -> ReplicaMemory:
    """What can be known of such a replica; ``ordinal`` for an id without a number."""
    return ReplicaMemory("", ordinal_of(stranger.id) or ordinal, ADOPTED_GRACE_S)


def survey(
    remembered: dict[str, ReplicaMemory], group: Group, now: float, found: frozenset[str] = frozenset()
) -> Survey:
    """Looks at every remembered replica of a deployment once. ``found``: those that a controller before this one had,
    which may have been killed before it told them to stop."""
    made = Survey()
    for id, replica in remembered.items():
        seen = group.get(id)
        if seen is None or not seen.alive:
            _note_end(made, id, replica, seen)
        else:
            made.replicas[id] = _look_at(made, replica, seen, now)
            if id in found and replica.stop_by is not None and now < replica.stop_by and seen.phase != "draining":
                made.actions.append(StopReplica(id, max(FAILED_GRACE_S, replica.stop_by - OVERDUE_S - now)))
    made.actions.extend(Forget(id, "replica") for id, seen in group.items() if not seen.alive)
    return made


def _note_end(made: Survey, id: str, remembered: ReplicaMemory, seen: ReplicaSeen | None) -> None:
    if remembered.stopping or (seen is not None and seen.phase == "draining" and seen.exit_code in (0, None)):
        return
    ran = remembered.ran or (seen is not None and seen.phase in ("ready", "draining"))
    made.endings.append(Ending(id, remembered.version, ran, f"replica {id} {end_text(seen)}", seen is None))


def _look_at(made: Survey, remembered: ReplicaMemory, seen: ReplicaSeen, now: float) -> ReplicaMemory:
    if remembered.stop_by is not None:
        if now < remembered.stop_by:
            return remembered
        made.actions.append(StopReplica(seen.id, 0.0))
        return replace(remembered, stop_by=now + OVERDUE_S)
    if seen.phase == "failed":
        return _give_up(made, remembered, seen, end_text(seen), FAILED_GRACE_S, now)
    if seen.strikes >= STRIKES_MAX:
        why = f"is unhealthy: {seen.strikes} health checks failed in a row: {seen.health_error}"
        grace_s = STUCK_GRACE_S if seen.stuck else remembered.grace_s
        return _give_up(made, replace(remembered, ran=True), seen, why, grace_s, now)
    if seen.phase == "draining":  # somebody else told it to end; it is let finish
        return replace(remembered, ran=True, stop_by=now + remembered.grace_s + OVERDUE_S)
    stage: Stage = "ready" if is_ready(remembered, seen) else "starting"
    fresh = stage == "ready" and not remembered.ran
    made.standing.append(
        Standing(
            seen.id,
            remembered.version,
            stage,
            remembered.ordinal,
            fresh,
            seen.config if seen.reported else None,
            seen.telling,
            seen.refused,
            seen.config_error,
        )
    )
    return replace(remembered, ran=True) if fresh else remembered


def _give_up(
    made: Survey, remembered: ReplicaMemory, seen: ReplicaSeen, why: str, grace_s: float, now: float
) -> ReplicaMemory:
    """It is told to end; what it has in hand it may finish within ``grace_s``."""
    made.endings.append(Ending(seen.id, remembered.version, remembered.ran, f"replica {seen.id} {why}"))
    made.actions.append(StopReplica(seen.id, grace_s))
    return replace(remembered, stop_by=now + grace_s + OVERDUE_S)


def is_ready(replica: ReplicaMemory, seen: ReplicaSeen) -> bool:
    """Whether this replica may be sent calls: it said so (to this controller or the one before) and is not leaving."""
    if replica.stopping or not seen.alive:
        return False
    return seen.phase == "ready" or (replica.ran and not seen.reported)


def end_text(seen: ReplicaSeen | None) -> str:
    """How a replica ended, for people."""
    if seen is None:
        return "is gone without a trace"
    if seen.message:
        return f"failed: {seen.message}"
    doing = "while it was " + seen.phase if seen.phase in ("starting", "importing", "loading") else ""
    code = seen.exit_code
    how = "ended" if code is None else f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"{how} {doing}".rstrip()
