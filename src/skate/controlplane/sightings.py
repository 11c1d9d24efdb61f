"""Puts together what the engine sees and what processes said about themselves. Law: a process is what the engine says
it is; its word only adds the phase. What was said by processes that are gone is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

from skate.controlplane.decide.values import Memory, Observed, ProxySeen, ReplicaSeen
from skate.core.specs import LoopBlocking, LoopReport, ProxyReport, ReplicaReport
from skate.engine.base import ProcessSeen

PROXY_PREFIX = "proxy "  # of a proxy's process id; the rest is the id of its slot


class Sightings:
    """The last word of every process, and how long it is in its phase."""

    def __init__(self, started_at: float) -> None:
        self._started_at = started_at
        self._found: frozenset[str] | None = None
        self._replicas: dict[str, tuple[ReplicaReport, float]] = {}
        self._blocked: dict[str, tuple[LoopBlocking, ...]] = {}  # of replicas
        self._proxies: dict[str, ProxyReport] = {}
        self._since: dict[str, float] = {}  # when a process was first seen
        self._not_started: dict[str, str] = {}  # what the engine refused to start, and why

    def replica_said(self, report: ReplicaReport, now: float) -> None:
        """A replica reported; the latest report counts."""
        before = self._replicas.get(report.id)
        since = before[1] if before is not None and before[0].phase == report.phase else now
        self._replicas[report.id] = (report, since)

    def loop_said(self, report: LoopReport) -> None:
        """A replica's loop was blocked; the latest report counts."""
        self._blocked[report.id] = report.blocked

    def proxy_said(self, report: ProxyReport) -> None:
        """A proxy reported; the latest report counts."""
        self._proxies[report.id] = report

    def not_started(self, process_id: str, error: str) -> None:
        """The engine could not start this: it is seen as dead until it is forgotten."""
        self._not_started[process_id] = error

    def forgotten(self, process_id: str) -> None:
        """The engine was told to forget this dead process: what it said is void for the next one of that id."""
        self._not_started.pop(process_id, None)
        self._proxies.pop(process_id.removeprefix(PROXY_PREFIX), None)
        self._replicas.pop(process_id, None)
        self._blocked.pop(process_id, None)
        self._since.pop(process_id, None)

    def observed(self, processes: Sequence[ProcessSeen], memory: Memory, now: float) -> Observed:
        """Everything seen now."""
        if self._found is None:
            self._found = frozenset(one.id for one in processes if one.alive and one.role == "replica")
        replicas: dict[str, ReplicaSeen] = {}
        proxies: dict[str, ProxySeen] = {}
        for process in processes:
            if process.role == "replica":
                replicas[process.id] = self._replica(process, now)
            elif process.role == "proxy":
                slot = process.id.removeprefix(PROXY_PREFIX)
                proxies[slot] = self._proxy(slot, process)
        for id, error in self._not_started.items():
            if id.startswith(PROXY_PREFIX) and "#" not in id:
                slot = id.removeprefix(PROXY_PREFIX)
                proxies.setdefault(slot, ProxySeen(slot, False, message=error))
            else:
                replicas.setdefault(id, ReplicaSeen(id, False, message=error))
        self._drop_strangers(replicas, memory)
        return Observed(replicas, proxies, self._found, self._started_at)

    def _replica(self, process: ProcessSeen, now: float) -> ReplicaSeen:
        said = self._replicas.get(process.id)
        seen_since = self._since.setdefault(process.id, now)
        if said is None:
            return ReplicaSeen(
                process.id, process.alive, since=seen_since, pid=process.pid, exit_code=process.exit_code
            )
        report, since = said
        return ReplicaSeen(
            id=process.id,
            alive=process.alive,
            phase=report.phase,
            since=since,
            pid=process.pid or report.pid,
            message=report.message,
            exit_code=process.exit_code,
            reported=True,
            blocked=self._blocked.get(process.id, ()),
        )

    def _proxy(self, slot: str, process: ProcessSeen) -> ProxySeen:
        said = self._proxies.get(slot)
        if said is None or (said.pid != process.pid and process.pid):  # the word of the one before it
            return ProxySeen(slot, process.alive, pid=process.pid, exit_code=process.exit_code)
        host = f"[{said.host}]" if ":" in said.host else said.host
        return ProxySeen(
            id=slot,
            alive=process.alive,
            phase=said.phase,
            pid=process.pid,
            address=f"{host}:{said.port}" if said.port else "",
            message=said.message,
            exit_code=process.exit_code,
        )

    def _drop_strangers(self, replicas: dict[str, ReplicaSeen], memory: Memory) -> None:
        known = replicas.keys() | memory.replicas.keys()
        for id in [id for id in self._replicas if id not in known]:
            del self._replicas[id]
        for id in [id for id in self._blocked if id not in known]:
            del self._blocked[id]
        for id in [id for id in self._since if id not in known]:
            del self._since[id]
