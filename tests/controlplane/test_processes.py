"""What the engine is told for an action of a plan."""

from __future__ import annotations

import pytest

from skate.controlplane.decide.values import (
    DeploymentMemory,
    Desired,
    Memory,
    Observed,
    ReplicaMemory,
    ReplicaSeen,
    StopReplica,
)
from skate.controlplane.processes import CLOSING_S, LOADING_S, Processes
from skate.core.specs import ControllerConfig
from skate.engine.base import StopProcess


@pytest.mark.parametrize(("ran", "grace_s"), [(True, 20.0 + CLOSING_S), (False, LOADING_S)])
def test_a_replica_that_may_have_requests_keeps_its_grace_though_a_new_controller_has_not_heard_of_it(
    ran: bool, grace_s: float
) -> None:
    remembered = DeploymentMemory("v1", replicas={"a/A#1": ReplicaMemory("v1", 1, 20.0, ran=ran)})
    silent = Observed(replicas={"a/A": {"a/A#1": ReplicaSeen("a/A#1", True)}})
    told = Processes(ControllerConfig("/none", "memory:c", None)).told(
        StopReplica("a/A#1", 20.0), Desired(), silent, Memory(deployments={"a/A": remembered})
    )
    assert told == StopProcess("a/A#1", grace_s)
