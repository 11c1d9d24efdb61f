"""One deployment, decision by decision: the rules that the simulation only checks the outcome of."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from msgspec.structs import replace

from skate.controlplane.decide import restart
from skate.controlplane.decide.publish import published
from skate.controlplane.decide.reconcile import gave_up
from skate.controlplane.decide.status import serve_status
from skate.controlplane.decide.values import (
    RECOVERY_KNOWN_S,
    RECOVERY_S,
    Action,
    Desired,
    Forget,
    Goal,
    Memory,
    Observed,
    Plan,
    ProxySeen,
    ReplicaSeen,
    StartProxy,
    StartReplica,
    StopReplica,
)
from skate.controlplane.decide.whole import decide
from skate.core.specs import ApplicationStatus
from tests.decide.world import deployment, goal, grouped

FAILED_PROXY = ProxySeen("0", False, "failed", message="port 8000 is in use", exit_code=1)


class Desk:
    """Decides step by step about one application and keeps what is seen."""

    def __init__(self, *deployments: Any) -> None:
        self.desired = Desired({"a": goal("a", *deployments)})
        self.memory = Memory()
        self.seen: dict[str, ReplicaSeen] = {}
        self.now = 0.0
        self.plan: Plan = Plan((), self.memory)

    def decide(self) -> tuple[Action, ...]:
        """One decision; what it starts is seen starting, what it forgets is gone."""
        self.plan = decide(self.desired, Observed(grouped(self.seen)), self.memory, self.now)
        self.memory = self.plan.memory
        for action in self.plan.actions:
            if isinstance(action, StartReplica):
                self.seen[action.id] = ReplicaSeen(action.id, True)
            elif isinstance(action, Forget):
                del self.seen[action.id]
        return self.plan.actions

    def ready(self, *ids: str) -> None:
        for id in ids:
            self.seen[id] = ReplicaSeen(id, True, "ready", reported=True)

    def dead(self, id: str, code: int = 1, phase: Any = "loading", message: str = "") -> None:
        self.seen[id] = ReplicaSeen(id, False, phase, message=message, exit_code=code, reported=True)

    def deploy(self, *deployments: Any) -> Goal:
        revision = self.desired.apps["a"].revision + 1
        made = goal("a", *deployments, revision=revision)
        self.desired = Desired({"a": made}, self.desired.proxies)
        return made

    def starts(self) -> list[str]:
        return [one.id for one in self.plan.actions if isinstance(one, StartReplica)]

    def stops(self) -> list[str]:
        return [one.id for one in self.plan.actions if isinstance(one, StopReplica)]

    def status(self) -> ApplicationStatus:
        shown = serve_status(self.desired, {}, Observed(grouped(self.seen)), self.memory, self.now)
        return shown.applications["a"]


def test_missing_replicas_are_started_and_surplus_ones_stopped_newest_first() -> None:
    desk = Desk(deployment("a", "A", replicas=3, graceful_shutdown_timeout_s=7.0))
    assert desk.decide() == tuple(StartReplica(f"a/A#{n}", "a/A") for n in (1, 2, 3))
    assert desk.status().status == "DEPLOYING"
    desk.ready("a/A#1", "a/A#2", "a/A#3")
    assert desk.decide() == () and desk.status().status == "RUNNING"
    desk.deploy(deployment("a", "A", replicas=1, graceful_shutdown_timeout_s=7.0))
    assert desk.decide() == (StopReplica("a/A#3", 7.0), StopReplica("a/A#2", 7.0))
    assert desk.status().status == "RUNNING"  # the one that is wanted serves; the others only finish


def test_a_crashed_replica_is_replaced_at_once_and_then_ever_more_slowly() -> None:
    desk = Desk(deployment("a", "A"))
    desk.decide()
    waits = []
    for number in range(1, 11):
        desk.ready(f"a/A#{number}")
        desk.decide()
        desk.dead(f"a/A#{number}", -9, "ready")
        desk.decide()
        if not desk.starts():
            assert desk.plan.wake_at is not None
            waits.append(round(desk.plan.wake_at - desk.now, 3))
            desk.now = desk.plan.wake_at
            desk.decide()
        assert desk.starts() == [f"a/A#{number + 1}"]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert desk.status().status == "UNHEALTHY"
    assert "killed by signal 9" in desk.status().message
    desk.ready("a/A#11")
    desk.decide()
    desk.now += restart.FORGET_S
    desk.dead("a/A#11", -9, "ready")
    desk.decide()
    assert desk.starts() == ["a/A#12"]


def test_many_that_crash_together_are_all_replaced_at_once() -> None:
    desk = Desk(deployment("a", "A", replicas=4))
    desk.decide()
    desk.ready(*(f"a/A#{n}" for n in range(1, 5)))
    desk.decide()
    for number in range(1, 5):
        desk.dead(f"a/A#{number}", -9, "ready")
    desk.decide()
    assert len(desk.starts()) == 4


def test_a_constructor_that_always_fails_is_given_up_with_its_traceback() -> None:
    desk = Desk(deployment("a", "A"))
    desk.decide()
    for number in (1, 2, 3):
        desk.dead(f"a/A#{number}", 1, "failed", f"Traceback\nValueError: number {number}")
        desk.decide()
        if desk.plan.wake_at is not None and not desk.starts():
            desk.now = desk.plan.wake_at
            desk.decide()
    assert not desk.starts() and desk.plan.wake_at is None
    shown = desk.status()
    assert shown.status == "DEPLOY_FAILED"
    loop = shown.deployments["A"].crash_loop
    assert loop is not None and (loop.failures, loop.next_try_in_s) == (3, None)  # no more are tried
    assert "3 replicas failed to start in a row" in shown.message and "ValueError: number 3" in shown.message
    desk.deploy(deployment("a", "A"))  # the same version again: somebody has repaired what it needs
    desk.decide()
    assert desk.starts() == ["a/A#4"]
    desk.ready("a/A#4")
    desk.decide()
    assert desk.status().status == "RUNNING" and desk.status().message == ""


def test_the_budget_is_that_of_the_option_when_it_is_smaller() -> None:
    assert restart.budget(20, 1) == 3 and restart.budget(20, 10) == 20 and restart.budget(2, 1) == 2
    desk = Desk(deployment("a", "A", replicas=4, max_constructor_retry_count=2))
    desk.decide()
    assert len(desk.starts()) == 4
    desk.dead("a/A#1")
    assert not [one for one in desk.decide() if isinstance(one, StartReplica)]  # three are under way, one may fail
    desk.dead("a/A#2")
    desk.decide()
    assert not desk.starts() and desk.status().status == "DEPLOY_FAILED"


def test_a_constructor_that_fails_and_then_works_ends_running() -> None:
    desk = Desk(deployment("a", "A"))
    desk.decide()
    desk.dead("a/A#1")
    desk.decide()
    assert desk.starts() == ["a/A#2"]
    assert desk.status().status == "DEPLOYING" and "2 more may fail" in desk.status().message
    desk.ready("a/A#2")
    desk.decide()
    assert desk.status().status == "RUNNING"


def test_one_replica_is_exchanged_start_before_stop() -> None:
    desk = Desk(deployment("a", "A", "v1"))
    desk.decide()
    desk.ready("a/A#1")
    desk.decide()
    desk.deploy(deployment("a", "A", "v2"))
    desk.decide()
    assert desk.starts() == ["a/A#2"] and not desk.stops()
    assert desk.status().status == "DEPLOYING"
    desk.ready("a/A#2")
    desk.decide()
    assert desk.stops() == ["a/A#1"] and not desk.starts()
    assert desk.status().status == "RUNNING"


def test_a_version_that_fails_leaves_the_old_one_serving() -> None:
    desk = Desk(deployment("a", "A", "v1"))
    desk.decide()
    desk.ready("a/A#1")
    desk.decide()
    desk.deploy(deployment("a", "A", "v2"))
    for _ in range(10):
        desk.decide()
        for id in desk.starts():
            desk.dead(id)
        desk.now = desk.plan.wake_at or desk.now
    assert desk.status().status == "DEPLOY_FAILED"
    assert [one.phase for one in desk.status().deployments["A"].replicas] == ["ready"]
    assert gave_up(desk.desired.apps["a"].spec.deployments[0], desk.memory.deployments["a/A"])
    desk.deploy(deployment("a", "A", "v1"))
    desk.decide()
    assert not desk.plan.actions and desk.status().status == "RUNNING"


def test_a_deployment_that_is_no_longer_part_of_the_application_goes() -> None:
    desk = Desk(deployment("a", "A"), deployment("a", "B", graceful_shutdown_timeout_s=3.0))
    desk.decide()
    desk.ready("a/A#1", "a/B#2")
    desk.decide()
    desk.deploy(deployment("a", "A"))
    assert desk.decide() == (StopReplica("a/B#2", 3.0),)
    assert desk.plan.wake_at == 8.0  # if the stop is not over by then, the kill is asked for again
    desk.now = 8.0
    assert desk.decide() == (StopReplica("a/B#2", 0.0),)


def test_a_deleted_application_is_gone_when_its_replicas_are_and_may_come_back_meanwhile() -> None:
    desk = Desk(deployment("a", "A"))
    desk.decide()
    desk.ready("a/A#1")
    desk.decide()
    going = replace(desk.desired.apps["a"], deleting=True)
    desk.desired = dataclasses.replace(desk.desired, apps={"a": going})
    assert desk.decide() == (StopReplica("a/A#1", 20.0),)
    assert not desk.plan.gone and desk.status().status == "DELETING"
    back = desk.deploy(deployment("a", "A"))
    desk.decide()
    assert desk.starts() == ["a/A#2"] and not desk.plan.gone
    desk.desired = dataclasses.replace(desk.desired, apps={"a": replace(back, deleting=True)})
    desk.decide()
    desk.dead("a/A#1", 0, "draining")
    desk.dead("a/A#2", 0, "draining")
    desk.decide()
    assert "a" in desk.plan.gone


def test_only_a_change_of_the_number_is_shown_as_scaling() -> None:
    desk = Desk(deployment("a", "A"))
    desk.decide()
    desk.ready("a/A#1")
    desk.decide()
    desk.deploy(deployment("a", "A", replicas=2))
    desk.decide()
    assert desk.status().deployments["A"].status == "UPSCALING" and desk.status().status == "DEPLOYING"


def test_a_new_deploy_is_never_shown_with_the_status_of_the_one_before() -> None:
    desk = Desk(deployment("a", "A"))
    desk.decide()
    desk.ready("a/A#1")
    desk.decide()
    assert desk.status().status == "RUNNING"
    desk.deploy(deployment("a", "A", "v2"))
    assert desk.status().status == "DEPLOYING"


@pytest.mark.parametrize("known", [True, False])
def test_a_new_controller_adopts_what_lives(known: bool) -> None:
    desk = Desk(deployment("a", "A", replicas=2))
    desk.decide()
    desk.ready("a/A#1", "a/A#2")
    desk.decide()
    memory = desk.memory if known else Memory()
    silent = {id: ReplicaSeen(id, True) for id in desk.seen}
    found = Observed(grouped(silent), found=frozenset(silent), started_at=50.0)
    plan = decide(desk.desired, found, memory, 50.0)
    limit_s = RECOVERY_KNOWN_S if known else RECOVERY_S
    assert plan.waiting and not plan.actions and plan.wake_at == 50.0 + limit_s
    reported = replace(found, replicas=grouped(desk.seen))
    plan = decide(desk.desired, reported, memory, 50.1)
    assert not plan.waiting
    if known:
        assert plan.actions == ()
    else:  # nobody knows their version: they serve until those of the wanted one are ready
        assert plan.actions == (StartReplica("a/A#3", "a/A"),)
    late = decide(desk.desired, found, memory, 50.0 + limit_s)
    assert not late.waiting
    if known:  # whoever was ready once is trusted to be
        assert late.actions == ()
        state = published(desk.desired, found, late.memory, "memory:")
        assert len(state.deployments["a/A"].replicas) == 2


def test_what_still_starts_in_an_old_version_is_stopped_at_once() -> None:
    desk = Desk(deployment("a", "A", "v1", replicas=2))
    desk.decide()
    desk.deploy(deployment("a", "A", "v2", replicas=2))
    desk.decide()
    assert desk.stops() == ["a/A#1", "a/A#2"] and desk.starts() == ["a/A#3", "a/A#4"]


def test_a_proxy_that_cannot_listen_is_tried_again_and_says_why() -> None:
    desired = Desired(proxies=("0",))
    plan = decide(desired, Observed(), Memory(), 0.0)
    assert plan.actions == (StartProxy("0"),)
    now = 0.0
    for _ in range(3):
        ended = Observed(proxies={"0": FAILED_PROXY})
        plan = decide(desired, ended, plan.memory, now)
        now = plan.wake_at or now
        if StartProxy("0") not in plan.actions:
            plan = decide(desired, Observed(), plan.memory, now)
        assert StartProxy("0") in plan.actions
    shown = serve_status(desired, {}, Observed(), plan.memory, now).proxies["0"]
    assert shown.status == "UNHEALTHY" and "in use" in shown.message


def test_a_replica_is_stopped_with_the_grace_of_what_it_runs_with() -> None:
    desk = Desk(deployment("a", "A", config="long", graceful_shutdown_timeout_s=60.0))
    desk.decide()
    desk.seen["a/A#1"] = ReplicaSeen("a/A#1", True, "ready", reported=True, config="long")
    desk.decide()
    desk.deploy(deployment("a", "A", "v2", config="short", graceful_shutdown_timeout_s=0.0))
    desk.decide()
    desk.seen["a/A#2"] = ReplicaSeen("a/A#2", True, "ready", reported=True, config="short")
    assert desk.decide() == (StopReplica("a/A#1", 60.0),)  # the requests that it has were promised this
    desk.deploy(deployment("a", "A", "v2", config="long", graceful_shutdown_timeout_s=60.0))
    desk.decide()
    desk.seen["a/A#2"] = ReplicaSeen("a/A#2", True, "ready", reported=True, config="long")  # taken up in place
    desk.decide()
    desk.desired = Desired({"a": replace(desk.desired.apps["a"], deleting=True)})
    assert StopReplica("a/A#2", 60.0) in desk.decide()


def test_starts_that_a_killed_controller_never_asked_for_are_no_failed_starts() -> None:
    desk = Desk(deployment("a", "A", replicas=30))
    desk.decide()
    desk.seen.clear()  # stored, and killed before the engine was told
    desk.decide()
    assert len(desk.starts()) == 30
    assert desk.status().status == "DEPLOYING" and desk.status().deployments["A"].crash_loop is None
    for _ in range(3):  # should it be the start itself that leaves no trace, it is slowed down
        desk.seen.clear()
        desk.decide()
    assert not desk.starts() and desk.plan.wake_at is not None


def test_a_number_that_a_living_replica_has_is_not_given_again_though_the_memory_is_lost() -> None:
    desired = Desired({"a": goal("a", deployment("a", "A")), "b": goal("b", deployment("b", "B"))})
    living = {"b/B#1": ReplicaSeen("b/B#1", True, "ready", reported=True)}
    plan = decide(desired, Observed(grouped(living), found=frozenset(living)), Memory(), 0.0)
    started = [one.id for one in plan.actions if isinstance(one, StartReplica)]
    assert started == ["a/A#2", "b/B#3"]  # it would listen at the address of b/B#1


def test_a_start_that_failed_once_does_not_end_a_deployment_that_sleeps() -> None:
    desk = Desk(deployment("a", "A"))
    desk.decide()
    desk.dead("a/A#1")
    desk.decide()  # the second one is on its way, and goes: nobody calls any more
    desk.desired = dataclasses.replace(desk.desired, capacity=0.0)
    desk.decide()
    desk.seen.clear()
    desk.decide()
    state = published(desk.desired, Observed(), desk.memory, "memory:")
    assert state.deployments["a/A"].asleep and not state.deployments["a/A"].unavailable
    assert desk.status().status == "RUNNING"


def test_a_deployment_that_gave_up_is_not_called_healthy_while_it_sleeps() -> None:
    desk = Desk(deployment("a", "A"))
    for number in (1, 2, 3):
        desk.decide()
        desk.now += 1.0
        desk.decide()
        desk.dead(f"a/A#{number}")
    desk.decide()
    assert desk.status().status == "DEPLOY_FAILED"
    desk.desired = dataclasses.replace(desk.desired, capacity=0.0)
    desk.decide()
    assert published(desk.desired, Observed(), desk.memory, "memory:").deployments["a/A"].unavailable
    assert desk.status().status == "DEPLOY_FAILED"


def test_while_a_version_cannot_start_the_former_one_is_healed() -> None:
    """Its replicas die one by one otherwise, and in the end nobody serves."""
    desk = Desk(deployment("a", "A", "v1", replicas=2))
    desk.decide()
    desk.ready("a/A#1", "a/A#2")
    desk.decide()
    former = desk.desired.apps["a"].spec
    made = replace(desk.deploy(deployment("a", "A", "bad", replicas=2)), former=former)
    desk.desired = Desired({"a": made})
    desk.decide()
    for number in range(3, 9):  # three tries for each replica
        desk.dead(f"a/A#{number}", 1, "failed", "ValueError: no")
        desk.decide()
        if desk.plan.wake_at is not None and not desk.starts():
            desk.now = desk.plan.wake_at
            desk.decide()
    assert desk.status().status == "DEPLOY_FAILED" and not desk.starts()
    desk.dead("a/A#1", -9, "ready")
    started = [one for one in desk.decide() if isinstance(one, StartReplica)]
    assert started == [StartReplica("a/A#9", "a/A", former=True)]
    desk.dead("a/A#2", -9, "ready")
    desk.decide()
    seen = published(desk.desired, Observed(grouped(desk.seen)), desk.memory, "memory:").deployments["a/A"]
    assert not seen.replicas and seen.unavailable is None, "calls may wait for the former version"
    desk.ready("a/A#10")
    desk.ready("a/A#9")
    assert desk.decide() == () and desk.status().status == "DEPLOY_FAILED"
    shown = [one.version for one in desk.status().deployments["A"].replicas]
    assert shown == ["v1", "v1"]
    desk.deploy(deployment("a", "A", "v3", replicas=2))  # corrected
    desk.decide()
    assert all(not one.former for one in desk.plan.actions if isinstance(one, StartReplica)) and desk.starts()
