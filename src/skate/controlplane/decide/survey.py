"""What became of every replica that was started: who stands, who ended unasked, who must be told again.

Law: joins memory and observation by id and nothing else; a replica found alive that nobody remembers is adopted as
one of an unknown version, so it serves until the wanted version can take over.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from skate.controlplane.decide.reconcile import Ending
from skate.controlplane.decide.rollout import Stage, Standing
from skate.controlplane.decide.values import Action, Forget, Memory, Observed, ReplicaMemory, ReplicaSeen, StopReplica

OVERDUE_S = 5.0  # how much longer than its grace a stop may take before the kill is asked for again
FAILED_GRACE_S = 2.0  # a replica that reported its failure ends by itself; this is for the case that it does not
ADOPTED_GRACE_S = 20.0  # Ray Serve's default, for a replica whose options nobody remembers


class Survey(msgspec.Struct, frozen=True):
    """Replicas by what became of them, keyed by deployment, and the actions that follow whatever is wanted."""

    replicas: dict[str, ReplicaMemory]
    standing: dict[str, list[Standing]]
    endings: dict[str, list[Ending]]
    actions: list[Action]
    wake_at: float | None


def is_complete(observed: Observed, now: float, recovery_s: float) -> bool:
    """Whether every replica found alive at the start has reported, or has had the time to."""
    if now >= observed.started_at + recovery_s:
        return True
    seen = (observed.replicas.get(one) for one in observed.found)
    return all(one is None or one.reported or not one.alive for one in seen)


def adopted(memory: Memory, observed: Observed) -> Memory:
    """The memory with the living replicas that nobody remembers."""
    strangers = [one for one in observed.replicas.values() if one.alive and one.id not in memory.replicas]
    if not strangers:
        return memory
    replicas = dict(memory.replicas)
    ordinal = memory.next_ordinal
    for stranger in strangers:
        key, _, tag = stranger.id.rpartition("#")
        app, _, deployment = key.partition("/")
        number = int(tag) if tag.isdecimal() else ordinal
        ordinal = max(ordinal, number + 1)
        replicas[stranger.id] = ReplicaMemory(app, deployment, "", number, ADOPTED_GRACE_S)
    return replace(memory, replicas=replicas, next_ordinal=ordinal)


def survey(memory: Memory, observed: Observed, now: float) -> Survey:
    """Looks at every remembered replica once."""
    made = Survey({}, {}, {}, [], None)
    wake_at: list[float] = []
    for id, remembered in memory.replicas.items():
        seen = observed.replicas.get(id)
        if seen is None or not seen.alive:
            _note_end(made, id, remembered, seen)
        else:
            made.replicas[id] = kept = _look_at(made, remembered, seen, now)
            if kept.stop_by is not None:
                wake_at.append(kept.stop_by)
    for id, seen in observed.replicas.items():
        if not seen.alive:
            made.actions.append(Forget(id, "replica"))
    return replace(made, wake_at=min(wake_at, default=None))


def _note_end(made: Survey, id: str, remembered: ReplicaMemory, seen: ReplicaSeen | None) -> None:
    if remembered.stopping or (seen is not None and seen.phase == "draining" and seen.exit_code == 0):
        return
    ran = remembered.ran or (seen is not None and seen.phase in ("ready", "draining"))
    error = f"replica {id} {end_text(seen)}"
    made.endings.setdefault(remembered.key, []).append(Ending(remembered.version, ran, error))


def _look_at(made: Survey, remembered: ReplicaMemory, seen: ReplicaSeen, now: float) -> ReplicaMemory:
    if remembered.stop_by is not None:
        if now < remembered.stop_by:
            return remembered
        made.actions.append(StopReplica(seen.id, 0.0))
        return replace(remembered, stop_by=now + OVERDUE_S)
    if seen.phase == "failed":
        error = f"replica {seen.id} {end_text(seen)}"
        made.endings.setdefault(remembered.key, []).append(Ending(remembered.version, remembered.ran, error))
        made.actions.append(StopReplica(seen.id, FAILED_GRACE_S))
        return replace(remembered, stop_by=now + FAILED_GRACE_S + OVERDUE_S)
    if seen.phase == "draining":  # somebody else told it to end; it is let finish
        return replace(remembered, ran=True, stop_by=now + remembered.grace_s + OVERDUE_S)
    stage: Stage = "ready" if is_ready(remembered, seen) else "starting"
    fresh = stage == "ready" and not remembered.ran
    standing = Standing(seen.id, remembered.version, stage, remembered.ordinal, fresh)
    made.standing.setdefault(remembered.key, []).append(standing)
    return replace(remembered, ran=True) if fresh else remembered


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
