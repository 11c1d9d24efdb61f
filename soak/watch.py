"""What the processes of an instance hold, sampled from /proc: memory, descriptors, threads; and its ledger.

Law: what is kept of a sample is a few numbers, so that watching does not grow by itself what it watches.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

SHM = Path("/dev/shm")
LENT = "/memfd:skate (deleted)"  # what the kernel calls a segment of shared memory for large values


@dataclass
class Watched:
    """One process over time."""

    pid: int
    title: str
    at_s: array[float] = field(default_factory=lambda: array("d"))
    memory_kb: array[float] = field(default_factory=lambda: array("d"))
    shared_kb: array[float] = field(default_factory=lambda: array("d"))
    files: array[int] = field(default_factory=lambda: array("l"))
    threads: array[int] = field(default_factory=lambda: array("l"))


def processes_of(session: int) -> dict[int, str]:
    """Living processes of a session, with what ``ps`` calls them; every process of an instance is in one."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, of_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(of_session) == session and state not in "ZX":
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(entry.name)] = line.strip()
            except OSError:
                continue  # it ended while we looked
    return found


def memory_kb(pid: int) -> tuple[float, float]:
    """Memory of its own (heap, arenas, stacks: what is no file's), and its share of shared memory.

    The latter is lent for large values, within a budget, and given back after a while: that is no growth.
    Raises OSError when the process is gone.
    """
    sizes = {"Anonymous": 0.0, "Pss_Shmem": 0.0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in sizes:
            sizes[name] = float(rest.split()[0])
    return sizes["Anonymous"], sizes["Pss_Shmem"]


def files_of(pid: int) -> int:
    """Open descriptors, without those of lent memory, which is kept ready for a while. OSError: the process is gone."""
    return sum(_link(f"/proc/{pid}/fd/{number}") != LENT for number in os.listdir(f"/proc/{pid}/fd"))


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:  # closed meanwhile
        return ""


def threads_of(pid: int) -> int:
    """Threads. Raises OSError when the process is gone."""
    return len(os.listdir(f"/proc/{pid}/task"))


class Watch:
    """Samples all processes of an instance, and this one."""

    def __init__(self, session: int) -> None:
        self.session = session
        self.seen: dict[int, Watched] = {}

    def look(self, now_s: float) -> None:
        """One sample of each."""
        found = processes_of(self.session) | {os.getpid(): "the clients (this process)"}
        for pid, title in found.items():
            one = self.seen.setdefault(pid, Watched(pid, title))
            one.title = title
            try:
                numbers = (*memory_kb(pid), files_of(pid), threads_of(pid))
            except OSError:
                continue
            one.at_s.append(now_s)
            one.memory_kb.append(numbers[0])
            one.shared_kb.append(numbers[1])
            one.files.append(numbers[2])
            one.threads.append(numbers[3])

    def idle(self) -> dict[int, int]:
        """Descriptors of each process, now that nothing is under way."""
        found = {}
        for pid in [*processes_of(self.session), os.getpid()]:
            try:
                found[pid] = files_of(pid)
            except OSError:
                continue
        return found


def leftovers(runtime_dir: Path, session: int, shared_before: set[str]) -> list[str]:
    """Processes, sockets, files and shared memory of an instance that has ended."""
    found = [f"process {pid}: {line}" for pid, line in processes_of(session).items()]
    with open("/proc/net/unix", encoding="utf-8") as table:
        found += [f"socket {line.split()[-1]}" for line in table if f"{runtime_dir}/" in line]
    found += [f"file {path.name}" for path in runtime_dir.rglob("*")]
    return found + [f"shared memory {name}" for name in sorted(shared_memory() - shared_before)]


def shared_memory() -> set[str]:
    """Named shared memory of Skate on this machine."""
    return {path.name for path in SHM.glob("*skate*")} if SHM.is_dir() else set()


def unbalanced(status: Any) -> str:
    """What is wrong with the ledger of a status; empty if it balances, for each deployment and in sum."""
    for name, calls in [("all", status.calls), *status.calls_by_deployment.items()]:
        ended = calls.ok + calls.user_error + calls.refused + calls.timed_out + calls.cancelled + calls.lost
        where = calls.queued + calls.sent + calls.started
        if calls.accepted != calls.open + ended or calls.open != where or min(msgspec.structs.astuple(calls)) < 0:
            return f"{name}: {calls}"
    for count in ("accepted", "open", "ok", "lost"):
        parts = sum(getattr(calls, count) for calls in status.calls_by_deployment.values())
        if parts != getattr(status.calls, count):
            return f"{count}: {getattr(status.calls, count)} in all, {parts} in the deployments"
    return ""
