"""The instance as Prometheus text (exposition format 0.0.4). Pure: a status in, text out.

Law: whatever is counted here is counted elsewhere, as plain integers; this only says it. Written by hand instead of
with a client library, because the counts come from other processes: a library would be told them to say them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, get_args

from skate.core.specs import Counts, LedgerReport, ReplicaPhase, ServeStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OUTCOMES = ("ok", "user_error", "refused", "timed_out", "cancelled", "lost")
STAGES = ("queued", "sent", "started")

Labels = Mapping[str, str]


class Family(NamedTuple):
    """One metric with all its samples. ``kind`` is ``counter`` or ``gauge``."""

    name: str
    kind: str
    about: str
    samples: Iterable[tuple[Labels, float]]


def prometheus_text(status: ServeStatus) -> str:
    """Everything that is known of an instance."""
    return "".join(line for family in families(status) for line in lines(family))


def families(status: ServeStatus) -> Iterator[Family]:
    """The metrics; whoever adds one adds it here."""
    yield from of_calls(status.calls_by_deployment)
    yield of_replicas(status)
    yield from of_loops(status)


def of_calls(counts: Counts) -> Iterator[Family]:
    """What became of calls, from the ledgers of all processes. accepted = sum of outcomes + sum of open."""
    told = [(labels_of(key), report) for key, report in counts.items()]
    yield Family(
        "skate_calls_accepted_total",
        "counter",
        "Calls that a router accepted.",
        [(labels, report.accepted) for labels, report in told],
    )
    yield Family("skate_calls_total", "counter", "Calls that ended, by outcome.", _parts(told, "outcome", OUTCOMES))
    yield Family(
        "skate_calls_open",
        "gauge",
        "Calls under way: waiting in a router, on the way to a replica, started by it.",
        _parts(told, "stage", STAGES),
    )
    yield Family(
        "skate_calls_retried_total",
        "counter",
        "Times that a call was sent again because its replica had died.",
        [(labels, report.retried) for labels, report in told],
    )


def _parts(told: Iterable[tuple[Labels, LedgerReport]], label: str, names: Iterable[str]) -> list[tuple[Labels, float]]:
    return [({**labels, label: name}, getattr(report, name)) for labels, report in told for name in names]


def of_replicas(status: ServeStatus) -> Family:
    """How many replicas are in each phase; every phase is said, so that a zero is a zero and no gap."""
    samples: list[tuple[Labels, float]] = []
    for app in status.applications.values():
        for deployment in app.deployments.values():
            phases = [replica.phase for replica in deployment.replicas]
            samples += [
                ({"app": app.name, "deployment": deployment.name, "phase": phase}, phases.count(phase))
                for phase in get_args(ReplicaPhase)
            ]
    return Family("skate_replicas", "gauge", "Replicas, by phase.", samples)


def of_loops(status: ServeStatus) -> Iterator[Family]:
    """What has kept the loops of replicas from turning, by place in the code; a replica's count goes with it."""
    found = [
        ({"app": app.name, "deployment": deployment.name, "replica": replica.id, "place": blocked.place}, blocked)
        for app in status.applications.values()
        for deployment in app.deployments.values()
        for replica in deployment.replicas
        for blocked in replica.loop_blocked
    ]
    yield Family(
        "skate_loop_blocked_total",
        "counter",
        "Times that code kept a replica's event loop from turning for longer than loop_block_warning_s.",
        [(labels, blocked.episodes) for labels, blocked in found],
    )
    yield Family(
        "skate_loop_blocked_seconds_total",
        "counter",
        "Seconds that code kept a replica's event loop from turning, in those times.",
        [(labels, blocked.seconds) for labels, blocked in found],
    )


def labels_of(key: str) -> dict[str, str]:
    """The labels of a deployment's key."""
    app, _, deployment = key.rpartition("/")
    return {"app": app, "deployment": deployment}


def lines(family: Family) -> Iterator[str]:
    """The lines of one metric, each with its end."""
    yield f"# HELP {family.name} {family.about}\n# TYPE {family.name} {family.kind}\n"
    for labels, value in family.samples:
        said = ",".join(f'{name}="{escaped(text)}"' for name, text in labels.items())
        yield f"{family.name}{{{said}}} {value:.17g}\n"


def escaped(text: str) -> str:
    """A label's value as the format wants it."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
