"""What the chaos asserts. Law: pure; what was called, executed, done and said goes in, complaints come out.

An error is excused only by a deed that explains it, and only if it says so: a replica that died must be one that was
killed, and named; a connection may break when its own proxy was killed or told to end; an application may be
missing while it is deleted. Everything else is a fault: also what only takes too long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DEADLINE_S = 5.0  # that every call has
SLACK_S = 2.0  # beyond its deadline and the time that processes were halted, for a call to end: two busy cores
NEAR_S = 0.5  # a deed and what it causes may be seen in this order or the other
IDLE_S = 0.05  # a proxy that ends closes idle connections after twice that; a request may cross that on its way
LAG_S = 2.0  # a status may be that old: what is said after it must be true
TEXT_MAX = 300  # characters of a message that are shown
EXAMPLES_MAX = 5  # complaints of one sort that are shown

OK, DIED, CUT, UNREACHABLE, GONE, LATE = "ok", "died", "cut", "unreachable", "gone", "timed out"


@dataclass(frozen=True)
class Record:
    """One call: its id, how it ended (a word of those above, or the error itself), and on whose connection."""

    id: str
    kind: str
    app: str
    began: float
    ended: float
    word: str
    text: str = ""
    proxy: int = 0  # the pid behind its connection; 0: not known, or no proxy
    again: int = 0  # times that it may be executed beyond the first
    begun: bool = False  # its answer had begun when it broke
    version: int = 0  # who answered: 0 if nobody said


@dataclass(frozen=True)
class Done:
    """Something that was done. ``how``: kill, term, halt, delete, deploy. ``target``: replica, proxy, application."""

    how: str
    role: str
    target: str
    began: float
    ended: float
    pid: int = 0

    def touches(self, began: float, ended: float) -> bool:
        """Whether it was going on, or had just been, in that time."""
        return self.began <= ended and self.ended >= began - NEAR_S


@dataclass
class Story:
    """Everything that happened, in seconds of the monotonic clock."""

    records: list[Record] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    executed: Mapping[str, int] = field(default_factory=dict)  # by id of the call
    made: int = 0  # calls that were begun


def excuse(record: Record, done: Iterable[Done]) -> str:
    """What explains that this call failed; '' if nothing does."""
    near = [one for one in done if one.touches(record.began, record.ended)]
    killed = [one for one in near if one.how == "kill"]
    match record.word:
        case "died":
            return _first(killed, lambda one: one.role == "replica" and _names(record.text, one.target))
        case "cut" | "unreachable":
            return _proxy_ended(record, near) or (
                _first(killed, lambda one: one.role == "replica" and one.target.startswith(f"{record.app}/"))
                if record.begun
                else ""
            )
        case "gone":
            return _first(near, lambda one: one.how == "delete" and one.target in (record.app, *_behind(record.app)))
    return ""


def _names(text: str, replica: str) -> bool:
    """Whether the text says that this replica died: its id as a whole word."""
    return "died" in text and f"{replica} " in f"{text} "


def _behind(app: str) -> tuple[str, ...]:
    """Applications that this one calls."""
    return ("fleeting",) if app == "door" else ()


def _proxy_ended(record: Record, near: list[Done]) -> str:
    def explains(one: Done) -> bool:
        if one.role != "proxy" or record.proxy not in (0, one.pid):
            return False
        if one.how == "term":  # it answers what is under way, then closes what is idle; WebSockets it tells so
            idle = not record.begun and record.ended > one.began + IDLE_S
            return idle or (record.kind == "websocket" and "being stopped" in record.text)
        return one.how == "kill"

    return _first(near, explains)


def _first(done: Iterable[Done], explains: Callable[[Done], bool]) -> str:
    return next((f"{one.how} {one.role} {one.target}" for one in done if explains(one)), "")


def halted_s(record: Record, done: Iterable[Done]) -> float:
    """For how long somebody was halted while the call was under way."""
    return sum(
        max(0.0, min(one.ended, record.ended) - max(one.began, record.began)) for one in done if one.how == "halt"
    )


# -- calls ----------------------------------------------------------------------------------------


def ends(story: Story) -> list[str]:
    """Every call ended, in time, as it may."""
    found = []
    if len(story.records) != story.made:
        found.append(f"{story.made} calls were begun and {len(story.records)} ended")
    for record in story.records:
        took = record.ended - record.began
        if took > DEADLINE_S + SLACK_S + halted_s(record, story.done):
            found.append(f"{_name(record)} took {took:.1f} s; its deadline was {DEADLINE_S:g} s")
        elif record.word != OK and not excuse(record, story.done):
            found.append(f"{_name(record)} ended without an excuse as {record.word!r}: {record.text}")
    return found


def executions(story: Story) -> list[str]:
    """No call was executed twice unless it may be, each that was answered once, and none that nobody made."""
    found = []
    allowed = {record.id: record for record in story.records}
    for id, count in story.executed.items():
        made_by, _, part = id.partition(".")
        record = allowed.get(made_by)
        if record is None:
            found.append(f"call {id} was executed and nobody made it")
        elif count > 1 + (0 if part else record.again):
            found.append(f"{_name(record)}: {id} was executed {count} times")
    for record in story.records:
        if record.word == OK and not story.executed.get(record.id):
            found.append(f"{_name(record)} was answered and never executed")
    return found


def answers(story: Story) -> list[str]:
    """Once a version has taken over, no other one answers a call that is made after that."""
    found = []
    taken = sorted((one for one in story.done if one.how == "running"), key=lambda one: one.began)
    changes = [one for one in story.done if one.how == "deploy"]
    for record in story.records:
        if not record.version:
            continue
        before = [one for one in taken if one.role == record.app and one.ended + LAG_S < record.began]
        if not before or any(one.role == record.app and before[-1].ended < one.began < record.ended for one in changes):
            continue
        if before[-1].target != str(record.version):
            found.append(f"{_name(record)} was answered by version {record.version}, not by {before[-1].target}")
    return found


def _name(record: Record) -> str:
    return f"{record.kind} {record.id}"


# -- statuses -------------------------------------------------------------------------------------


def inconsistent(status: Any) -> list[str]:
    """Where a status contradicts itself: it says that all is well and shows fewer replicas ready than wanted."""
    found = []
    for name, app in status.applications.items():
        for deployment in app.deployments.values():
            ready = sum(replica.phase == "ready" for replica in deployment.replicas)
            if deployment.status == "HEALTHY" and ready < deployment.target_replicas:
                found.append(f"{name}/{deployment.name} is HEALTHY with {ready} of {deployment.target_replicas} ready")
            if app.status == "RUNNING" and deployment.status not in ("HEALTHY", "UPSCALING", "DOWNSCALING"):
                found.append(f"{name} is RUNNING while {deployment.name} is {deployment.status}")
    return found


def said_ready(status: Any) -> dict[str, int]:
    """The replicas that a status shows as ready, with their pids."""
    return {
        replica.id: replica.pid
        for app in status.applications.values()
        for deployment in app.deployments.values()
        for replica in deployment.replicas
        if replica.phase == "ready" and replica.pid
    }


class Lies:
    """Replicas that the status shows as ready though they are dead, and since when."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, int], float] = {}

    def look(self, ready: Mapping[str, int], alive: Callable[[int], bool], now: float) -> list[str]:
        """One more status; what it has said for too long."""
        dead = {(id, pid) for id, pid in ready.items() if not alive(pid)}
        self._since = {key: self._since.get(key, now) for key in dead}
        return [
            f"{id} (pid {pid}) is dead and was shown as ready for {now - since:.1f} s"
            for (id, pid), since in self._since.items()
            if now - since > LAG_S
        ]


def unsettled(status: Any, wants: Mapping[str, Any], seen: Mapping[str, Sequence[Any]]) -> list[str]:
    """What is not as it is wanted. ``seen``: by deployment key, the answers ``[id, replica, version, factor]``."""
    found = [text for name, want in wants.items() for text in unsettled_app(status, name, want, seen)]
    found += [f"{name} is there and not wanted" for name in status.applications if name not in wants]
    found += [f"proxy {id} is {proxy.status}" for id, proxy in status.proxies.items() if proxy.status != "HEALTHY"]
    if status.admin is not None and status.admin.status != "HEALTHY":
        found.append(f"the REST API is {status.admin.status}: {status.admin.message[:TEXT_MAX]}")
    return found


def unsettled_app(status: Any, name: str, want: Any, seen: Mapping[str, Sequence[Any]]) -> list[str]:
    """The same for one application."""
    app = status.applications.get(name)
    if app is None or app.status != "RUNNING":
        return [f"{name} is {app.status}: {app.message[:TEXT_MAX]}" if app else f"{name} is not there"]
    found = []
    for deployment in app.deployments.values():
        key = f"{name}/{deployment.name}"
        ready = {replica.id for replica in deployment.replicas if replica.phase == "ready"}
        if want.replicas and len(ready) != want.replicas:
            found.append(f"{key} has {len(ready)} replicas ready, {want.replicas} are wanted")
        told = seen.get(key, ())
        if key in seen and (silent := ready - {answer[1] for answer in told}):
            found.append(f"{key}: {sorted(silent)} are shown as ready and answered nothing")
        if others := {answer[1] for answer in told} - ready:
            found.append(f"{key}: {sorted(others)} answered and are not shown as ready")
        for replica, version, factor in sorted({tuple(answer[1:]) for answer in told}):
            if (version, factor) != (want.version, want.factor):
                found.append(f"{replica} runs version {version}, factor {factor}; wanted is {want}")
    return found


# -- the whole ------------------------------------------------------------------------------------


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def shortened(complaints: Sequence[str]) -> list[str]:
    """The first few of each sort, told by their words, and how many more there are."""
    kept: list[str] = []
    counts: Counter[str] = Counter()
    for one in complaints:
        sort = " ".join(word for word in one.split() if word.isalpha())[:60]
        counts[sort] += 1
        if counts[sort] <= EXAMPLES_MAX:
            kept.append(one)
    kept += [f"... and {count - EXAMPLES_MAX} more: {sort}" for sort, count in counts.items() if count > EXAMPLES_MAX]
    return kept


def verdict(story: Story) -> list[str]:
    """All complaints about the calls."""
    return [*ends(story), *executions(story), *answers(story)]
