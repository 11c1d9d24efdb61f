"""What becomes of deployments that a new revision of their application does not have: they were renamed or dropped.

Law: an application loses nothing before its new revision is there. Until then the replicas of the former one may still
call what was dropped, and its ingress still answers; if the new revision never starts, this goes on.
"""

from __future__ import annotations

from msgspec.structs import replace

from skate.controlplane.decide.values import Goal, Memory
from skate.core.specs import AppSpec


def retiring(before: Goal | None, app: AppSpec, memory: Memory) -> tuple[AppSpec, ...]:
    """What of ``before`` goes on beside ``app`` for now: deployments of other names that have worked."""
    if before is None or before.deleting:
        return ()
    names = {spec.name for spec in app.deployments}
    found = []
    for part in (*before.retiring, before.spec):
        left = tuple(spec for spec in part.deployments if spec.name not in names and _serves(spec.key, memory))
        if left:
            found.append(replace(part, deployments=left))
    return tuple(found)


def last_that_worked(before: Goal | None) -> AppSpec | None:
    """What is kept alive should the next revision never start."""
    if before is None or before.deleting:
        return None
    return before.spec if before.worked else before.former


def is_there(goal: Goal, memory: Memory) -> bool:
    """Whether all deployments of this revision have come to what is wanted, so that former ones may go."""
    known = [memory.deployments.get(spec.key) for spec in goal.spec.deployments]
    return all(one is not None and one.revision == goal.revision and one.settled for one in known)


def _serves(key: str, memory: Memory) -> bool:
    known = memory.deployments.get(key)
    return known is not None and any(one.ran and not one.stopping for one in known.replicas.values())
