"""What becomes of a former instance's state when one is started that has no owner.

Law: done by who starts it, while nobody else has the folder, before anything runs. What was wanted is not lost at a
start: it is taken up, or set aside as one copy, where the next ``--restore`` finds it. A state of which nothing
was ever wanted takes nobody's place. Processes of before do not exist, so nothing of them is kept.
"""

from __future__ import annotations

import contextlib
import os

from msgspec.structs import replace

from skate.controlplane.decide.values import Memory
from skate.controlplane.store import FILE, REST, SIDES, Rest, Row, Saved, SqliteStore, revision_row
from skate.core.specs import Event

BEFORE = f"{FILE}.before"
NAMED_MAX = 5  # applications in a sentence


def take_up(directory: str, at: float) -> list[str]:
    """What was wanted is wanted again; what to tell the user. ``at``: wall time.

    Applications (but those that were being deleted), orders, revisions, events and the capacity stay.
    """
    damaged, used = _looked_at(directory)
    aside = not used and not damaged and os.path.exists(os.path.join(directory, BEFORE))
    if aside:
        _move(directory, BEFORE, FILE)
    elif not os.path.exists(os.path.join(directory, FILE)):
        return ["Nothing was deployed before, so nothing is restored."]
    with contextlib.closing(SqliteStore(directory, durable=True)) as store:
        saved = store.load()
        names = applications(saved)
        going = [Row("goal", name) for name, goal in saved.goals.items() if goal.deleting]
        memory = Memory(next_ordinal=saved.memory.next_ordinal)
        rest = Row("rest", REST, Rest(memory, saved.capacity, saved.rising))
        told = f"after a start with --restore: {named(names)}" if names else "after a start with --restore: none"
        store.drop("deployment")
        served, lines = _what_served(saved, store)
        store.write([*going, *served, rest], [Event(store.last_event() + 1, at, "", "", "restored", told)])
    lines = [*_of_damage((*damaged, *saved.damaged)), *lines]
    if not names:
        why = "could be read" if lines else "was deployed at the end"
        return [*lines, f"No application {why}, so none is restored."]
    whence = ", which a start without --restore had set aside" if aside else ""
    return [*lines, f"Restored: {named(names)}{whence}. See how they start: skate status"]


def _what_served(saved: Saved, store: SqliteStore) -> tuple[list[Row], list[str]]:
    """Where the last revision never worked, the one before it that did and so was serving; and what to say of that."""
    rows: list[Row] = []
    lines: list[str] = []
    for name, goal in saved.goals.items():
        if goal.deleting:
            continue
        kept = [one for one in store.revisions(name) if one.worked and one.revision < goal.revision]
        if goal.worked or not kept:
            rows.append(Row("goal", name, replace(goal, retiring=())))  # former deployments have no processes any more
            continue
        served = kept[-1].revision
        back = replace(kept[-1], revision=goal.revision + 1, cause=f"restore of {served}", retiring=())
        rows += [Row("goal", name, back), revision_row(back)]
        lines.append(
            f"{name}: revision {goal.revision} never worked; revision {served}, which served, is restored. To try the "
            f"other one again: skate rollback {name} --to {goal.revision}"
        )
    return rows, lines


def set_aside(directory: str) -> list[str]:
    """Begins with nothing; what was wanted before is kept for ``take_up``. What to tell the user."""
    damaged, used = _looked_at(directory)
    if used:
        _move(directory, FILE, BEFORE)
    else:
        _remove(directory, FILE)
    if not os.path.exists(os.path.join(directory, BEFORE)):
        return _of_damage(damaged)
    with contextlib.closing(SqliteStore(directory, durable=True, file=BEFORE)) as store:
        saved = store.load()
    names, lines = applications(saved), _of_damage((*damaged, *saved.damaged))
    if names:
        them = "it" if len(names) == 1 else "them"
        lines.append(f"Set aside: {named(names)}. To have {them} back: skate shutdown, then skate start --restore")
    return lines


def applications(saved: Saved) -> list[str]:
    """The applications that were wanted."""
    return sorted({name for name, goal in saved.goals.items() if not goal.deleting} | saved.orders.keys())


def named(names: list[str]) -> str:
    """Applications in a sentence."""
    shown = ", ".join(names[:NAMED_MAX]) + (f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else "")
    return f"{len(names)} application{'s' * (len(names) != 1)} ({shown})"


def _looked_at(directory: str) -> tuple[tuple[str, ...], bool]:
    """What of the last state is damaged, and whether anything was wanted of it. Afterwards it is one file."""
    if not os.path.exists(os.path.join(directory, FILE)):
        return (), False
    with contextlib.closing(SqliteStore(directory, durable=True)) as store:
        return store.load().damaged, store.used()


def _of_damage(damaged: tuple[str, ...]) -> list[str]:
    return [f"The stored {one} is damaged and was left out." for one in dict.fromkeys(damaged)]


def _move(directory: str, source: str, target: str) -> None:
    _remove(directory, target)
    for side in SIDES:
        with contextlib.suppress(FileNotFoundError):
            os.replace(os.path.join(directory, source + side), os.path.join(directory, target + side))


def _remove(directory: str, file: str) -> None:
    for side in SIDES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, file + side))
