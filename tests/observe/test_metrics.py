"""The text of the metrics, read back by Prometheus's own parser."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from skate.core.specs import (
    ApplicationStatus,
    Counts,
    DeploymentStatus,
    LedgerReport,
    LoopBlocking,
    ReplicaStatus,
    ServeStatus,
)
from skate.observe.metrics import prometheus_text


def read(status: ServeStatus) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families: Any = text_string_to_metric_families(prometheus_text(status))
    return {
        (sample.name, tuple(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


names = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\#"), min_size=1, max_size=5)
counts = st.integers(0, 2**60)
reports = st.builds(LedgerReport, counts, counts, counts, counts, counts, counts, counts, counts, counts, counts)


@given(st.dictionaries(st.tuples(names, names).map("/".join), reports, max_size=3))
def test_every_count_comes_out_as_it_went_in(told: Counts) -> None:
    found = read(ServeStatus(calls_by_deployment=told))
    for key, report in told.items():
        app, deployment = key.split("/")
        where = (("app", app), ("deployment", deployment))
        assert found["skate_calls_accepted_total", where] == float(report.accepted)
        assert found["skate_calls_total", (*where, ("outcome", "user_error"))] == float(report.user_error)
        assert found["skate_calls_open", (*where, ("stage", "queued"))] == float(report.queued)
        assert found["skate_calls_retried_total", where] == float(report.retried)
    assert len(found) == len(told) * (1 + 6 + 3 + 1)


def test_signs_that_the_format_uses_itself() -> None:
    told = {'a "b"\n/c,d={}': LedgerReport(accepted=3, ok=3)}
    found = read(ServeStatus(calls_by_deployment=told))
    assert found["skate_calls_accepted_total", (("app", 'a "b"\n'), ("deployment", "c,d={}"))] == 3
    assert read(ServeStatus(calls_by_deployment={"(unknown)": LedgerReport(accepted=1, refused=1)}))[
        "skate_calls_total", (("app", ""), ("deployment", "(unknown)"), ("outcome", "refused"))
    ]


def test_replicas_by_phase() -> None:
    replicas = (ReplicaStatus("a/A#1", "ready", 1, 0.0), ReplicaStatus("a/A#2", "ready", 2, 0.0))
    deployment = DeploymentStatus("A", "HEALTHY", "", 2, replicas)
    status = ServeStatus(applications={"a": ApplicationStatus("a", "RUNNING", "", None, 0.0, {"A": deployment})})
    found = read(status)
    where = (("app", "a"), ("deployment", "A"))
    assert found["skate_replicas", (*where, ("phase", "ready"))] == 2
    assert found["skate_replicas", (*where, ("phase", "failed"))] == 0


def test_blocked_loops_by_place() -> None:
    blocked = LoopBlocking("Model.slow (app.py:12)", 3, 1.5)
    replica = ReplicaStatus("a/A#1", "ready", 1, 0.0, loop_blocked=(blocked,))
    deployment = DeploymentStatus("A", "HEALTHY", "", 1, (replica,))
    status = ServeStatus(applications={"a": ApplicationStatus("a", "RUNNING", "", None, 0.0, {"A": deployment})})
    where = (("app", "a"), ("deployment", "A"), ("replica", "a/A#1"), ("place", "Model.slow (app.py:12)"))
    found = read(status)
    assert found["skate_loop_blocked_total", where] == 3
    assert found["skate_loop_blocked_seconds_total", where] == 1.5
