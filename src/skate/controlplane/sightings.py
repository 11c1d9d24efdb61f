"""Puts together what the engine sees and what processes said about themselves, by deployment.

Law: a process is what the engine says it is; its word only adds to that. What was said by processes that are gone is
dropped. What changed is noted by key, and what did not change stays the same object.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from skate.controlplane.decide.survey import key_of
from skate.controlplane.decide.values import PROXIES, Observed, ProxySeen, ReplicaSeen
from skate.core.specs import HealthReport, LoopBlocking, LoopReport, ProxyReport, ReplicaReport
from skate.engine.base import ProcessSeen

PROXY_PREFIX = "proxy "  # of a proxy's process id; the rest is the id of its slot
SPEAKERS_MAX = 20_000  # replicas that are remembered, with or without a process


@dataclass(slots=True)
class _Replica:
    """Everything known of one replica."""

    process: ProcessSeen | None = None
    report: ReplicaReport | None = None
    since: float = 0.0  # when it was first seen, or entered its phase
    blocked: tuple[LoopBlocking, ...] = ()
    check: HealthReport | None = None  # the user's check_health
    loop: HealthReport | None = None
    telling: str = ""
    refused: str = ""
    not_started: str = ""  # why the engine could not start it

    def seen(self, id: str) -> ReplicaSeen | None:
        """As a decision sees it; None while there is no process of that name."""
        if self.process is None:
            return ReplicaSeen(id, False, message=self.not_started) if self.not_started else None
        process, said, health = self.process, self.report, self._worse()
        made = ReplicaSeen(id, process.alive, since=self.since, pid=process.pid, exit_code=process.exit_code)
        if said is None:
            return made
        return ReplicaSeen(
            id=id,
            alive=process.alive,
            phase=said.phase,
            since=self.since,
            pid=process.pid or said.pid,
            message=said.message,
            exit_code=process.exit_code,
            reported=True,
            blocked=self.blocked,
            config=said.config,
            telling=self.telling,
            refused=self.refused,
            config_error=said.config_error,
            strikes=health.strikes if health is not None else 0,
            health_error=health.error if health is not None else "",
            stuck=health is not None and health.kind == "loop",
        )

    def _worse(self) -> HealthReport | None:
        """Of the two kinds of health the one with more strikes."""
        return max((one for one in (self.check, self.loop) if one), key=lambda one: one.strikes, default=None)


class Sightings:
    """The last word of every process, and how long it is in its phase. ``changed``: keys of what became different."""

    def __init__(self, started_at: float) -> None:
        self.changed: set[str] = set()
        self._replicas: dict[str, _Replica] = {}
        self._proxies: dict[str, ProcessSeen] = {}  # by slot
        self._proxy_reports: dict[str, ProxyReport] = {}
        self._proxies_not_started: dict[str, str] = {}
        self.observed = Observed(started_at=started_at)
        self._found: frozenset[str] | None = None

    # -- the engine -----------------------------------------------------------------------------

    def all_processes(self, processes: Iterable[ProcessSeen], now: float) -> None:
        """One complete look; what is not named does not exist."""
        there = {one.id: one for one in processes}
        if self._found is None:
            self._found = frozenset(one.id for one in there.values() if one.alive and one.role == "replica")
            self._show(found=self._found)
        for id in [id for id in self._replicas if id not in there]:
            if self._replicas[id].process is not None:
                self.forgotten(id)
        for slot in [slot for slot in self._proxies if PROXY_PREFIX + slot not in there]:
            self.forgotten(PROXY_PREFIX + slot)
        for process in there.values():
            self.process(process, now)

    def process(self, process: ProcessSeen, now: float) -> None:
        """One process was started, or ended."""
        if process.role == "replica":
            record = self._record(process.id, now)
            before = record.process
            if before is not None and before.pid == process.pid and not before.alive:
                return  # its end was told before the answer to its start
            if before != process:
                record.process, record.not_started = process, ""
                self._changed(process.id)
        elif process.role in ("proxy", "admin"):
            slot = process.id.removeprefix(PROXY_PREFIX)
            known = self._proxies.get(slot)
            if known is not None and known.pid == process.pid and not known.alive:
                return
            if known != process:
                self._proxies[slot] = process
                self._proxies_not_started.pop(slot, None)
                self._proxy_changed(slot)

    def not_started(self, process_id: str, error: str) -> None:
        """The engine could not start this: it is seen as dead until it is forgotten."""
        if process_id.startswith(PROXY_PREFIX):
            slot = process_id.removeprefix(PROXY_PREFIX)
            self._proxies_not_started[slot] = error
            self._proxy_changed(slot)
        else:
            self._record(process_id, 0.0).not_started = error
            self._changed(process_id)

    def forgotten(self, process_id: str) -> None:
        """The engine was told to forget this dead process: what it said is void for the next one of that id."""
        if process_id.startswith(PROXY_PREFIX):
            slot = process_id.removeprefix(PROXY_PREFIX)
            process, said = self._proxies.pop(slot, None), self._proxy_reports.get(slot)
            if said is not None and process is not None and said.pid == process.pid:  # else its successor said it
                del self._proxy_reports[slot]
            self._proxies_not_started.pop(slot, None)
            self._proxy_changed(slot)
        elif self._replicas.pop(process_id, None) is not None:
            self._changed(process_id)

    def all_have_reported(self) -> None:
        """Whoever was found at the start has reported or had the time to."""
        if self.observed.found:
            self._show(found=frozenset())

    # -- what they say --------------------------------------------------------------------------

    def replica_said(self, report: ReplicaReport, now: float) -> None:
        """A replica reported; the latest report counts."""
        record = self._record(report.id, now)
        if record.report is None or record.report.phase != report.phase:
            record.since = now
        record.report = report
        if report.config_error and record.telling:
            record.refused, record.telling = record.telling, ""
        elif report.config and report.config in (record.telling, record.refused):
            record.telling = record.refused = ""
        self._changed(report.id)

    def loop_said(self, report: LoopReport, now: float) -> None:
        """A replica's loop was blocked; the latest report counts."""
        self._record(report.id, now).blocked = report.blocked
        self._changed(report.id)

    def health_said(self, report: HealthReport, now: float) -> None:
        """A replica's health changed; the latest report counts."""
        record = self._record(report.id, now)
        if report.kind == "loop":
            record.loop = report
        else:
            record.check = report
        self._changed(report.id)

    def proxy_said(self, report: ProxyReport) -> None:
        """A proxy reported; the latest report counts."""
        self._proxy_reports[report.id] = report
        self._proxy_changed(report.id)

    def telling(self, id: str, config: str) -> None:
        """A replica is being told a configuration."""
        record = self._replicas.get(id)
        if record is not None and record.telling != config:
            record.telling = config
            self._changed(id)

    def told(self, id: str, config: str) -> None:
        """That is over; it may be told another one by now."""
        record = self._replicas.get(id)
        if record is not None and record.telling == config:
            record.telling = ""
            self._changed(id)

    # -- how it fits together -------------------------------------------------------------------

    def _record(self, id: str, now: float) -> _Replica:
        record = self._replicas.get(id)
        if record is None:
            if len(self._replicas) >= SPEAKERS_MAX:  # strangers that report and have no process
                for one in [one for one, known in self._replicas.items() if known.process is None]:
                    del self._replicas[one]
            record = self._replicas[id] = _Replica(since=now)
        return record

    def _changed(self, id: str) -> None:
        key = key_of(id)
        record = self._replicas.get(id)
        seen = record.seen(id) if record is not None else None
        before = self.observed.replicas.get(key, {})
        if seen == before.get(id):
            return
        group = {**before, id: seen} if seen is not None else {one: it for one, it in before.items() if one != id}
        replicas = {**self.observed.replicas, key: group}
        if not group:
            del replicas[key]
        self._show(replicas=replicas)
        self.changed.add(key)

    def _proxy_changed(self, slot: str) -> None:
        proxies = {one: it for one, it in self.observed.proxies.items() if one != slot}
        if slot in self._proxies:
            proxies[slot] = self._proxy(slot, self._proxies[slot])
        elif slot in self._proxies_not_started:
            proxies[slot] = ProxySeen(slot, False, message=self._proxies_not_started[slot])
        self._show(proxies=proxies)
        self.changed.add(PROXIES)

    def _proxy(self, slot: str, process: ProcessSeen) -> ProxySeen:
        said = self._proxy_reports.get(slot)
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

    def _show(
        self,
        replicas: dict[str, dict[str, ReplicaSeen]] | None = None,
        proxies: dict[str, ProxySeen] | None = None,
        found: frozenset[str] | None = None,
    ) -> None:
        before = self.observed
        self.observed = Observed(
            before.replicas if replicas is None else replicas,
            before.proxies if proxies is None else proxies,
            before.found if found is None else found,
            before.started_at,
        )
