"""The control plane against a hostile world, from seeds. A failure names its seed and how to replay that one."""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import msgspec
from msgspec.structs import replace

from skate.controlplane.decide import whole
from skate.controlplane.decide.autoscale import Capacity, adjusted, bounds_of
from skate.controlplane.decide.load import Load
from skate.controlplane.decide.publish import Published, deployment, published
from skate.controlplane.decide.reconcile import gave_up
from skate.controlplane.decide.restart import budget
from skate.controlplane.decide.retire import is_there
from skate.controlplane.decide.rollout import pace_of
from skate.controlplane.decide.status import serve_status
from skate.controlplane.decide.survey import OVERDUE_S, key_of
from skate.controlplane.decide.values import (
    PROXIES,
    STRIKES_MAX,
    DeploymentMemory,
    Desired,
    Goal,
    Loaded,
    Memory,
    Observed,
    Plan,
    ReplicaMemory,
    StartProxy,
    StartReplica,
    StopReplica,
    Wanted,
)
from skate.controlplane.decide.whole import decide, every_key
from skate.controlplane.publications import Publications
from skate.core.specs import DeploymentSpec, DeploymentTarget, Route, Snapshot
from tests.decide.world import BAD, BAD_CONFIG, SHAKY, World, forgotten, random_goal

SEEDS = 2000
PROCESSES = 2
STEPS = 45
APPS = ("a", "b")


class Simulation:
    """One seed: chaos, then calm, then the end."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.chance = self.world.chance
        self.desired = Desired(proxies=("0",))
        self.memory = Memory()
        self.lossless = True  # no memory was lost and no plan was cut short since the start
        self.state = Published()
        self.publications = Publications()
        self.heard = 0
        self.wakes: dict[str, float] = {}
        self.touched: set[str] = set()  # keys of what was performed since
        self.before: tuple[Desired, Observed] | None = None  # at the last look; None: everything must be looked at
        self.router_deployments: dict[str, DeploymentTarget] = {}
        self.router_routes: tuple[Route, ...] = ()
        self.wake_at: float | None = None
        self.loads: dict[str, Load] = {}
        self.heavy: set[str] = set()  # keys whose load changed since the last look

    def run(self) -> None:
        """Raises AssertionError when an invariant does not hold."""
        for _ in range(STEPS):
            self.disturb()
            self.step()
            self.world.pass_time()
        self.settle()
        self.end()

    # -- one step -------------------------------------------------------------------------------

    def disturb(self) -> None:
        """Users and misfortune."""
        drawn, name = self.chance.random(), self.chance.choice(APPS)
        apps = dict(self.desired.apps)
        if drawn < 0.15:
            apps[name] = random_goal(self.chance, name, apps.get(name), self.world.now, calm=False)
        elif drawn < 0.2 and name in apps:
            apps[name] = replace(apps[name], deleting=True)
        elif drawn < 0.25:
            self.new_controller()
        elif drawn < 0.27:
            self.new_controller()
            self.memory = forgotten(self.memory)
            self.lossless = False
        capacity = self.desired.capacity
        if self.chance.random() < 0.03:
            capacity = self.chance.choice((None, 0.0, 40.0, 100.0))
        self.desired = dataclasses.replace(self.desired, apps=apps, capacity=capacity)
        self.change_load()

    def change_load(self) -> None:
        """Calls come and go."""
        for key, wanted in self.desired.wanted.items():
            if wanted.spec.options.autoscaling_config is not None and (key not in self.loads or not self.calm_load()):
                total, now = self.chance.choice((0, 0, 1, 3, 8)), self.world.now
                self.loads[key] = self.loads.get(key, Load()).seen(now, total, 0, 0, 2.0)
                self.heavy.add(key)

    def calm_load(self) -> bool:
        return self.world.calm or self.chance.random() < 0.7

    def loaded(self) -> Loaded:
        return Loaded(self.loads, {}, self.world.now)

    def target(self, spec: DeploymentSpec, memory: Memory) -> int:
        """How many are wanted: a fixed number, or what the autoscaler said."""
        config = spec.options.autoscaling_config
        percent = self.desired.capacity
        if config is None:
            return adjusted(spec.options.replicas, percent)
        target, bounds = memory.deployments[spec.key].target, bounds_of(config, Capacity(percent))
        assert bounds.least <= target <= bounds.most, f"{spec.key} scales to {target}"
        total = self.loads[spec.key].total if spec.key in self.loads else 0
        assert target or not total or percent == 0, f"{spec.key} sleeps while a call waits"
        return target

    def arrived(self, goal: Goal) -> Goal:
        """A revision that is there has worked; nothing of a former one is needed any more."""
        there = not goal.deleting and not goal.worked and is_there(goal, self.memory)
        return replace(goal, worked=True, former=None) if there else goal

    def new_controller(self) -> None:
        """What the old one heard is lost; the new one must look at everything."""
        now = self.world.now
        self.loads = {
            key: Load(complete_at=now + 2.0).seen(now, load.total, 0, 0, 2.0) for key, load in self.loads.items()
        }
        self.world.new_controller()
        self.before = None
        self.publications, self.heard = Publications(), 0

    def step(self) -> Plan:
        """One decision, checked and performed, sometimes only in part."""
        world, now = self.world, self.world.now
        observed = world.observed()
        loaded = self.loaded()
        plan = decide(self.desired, observed, self.memory, now, None, loaded)
        with mock.patch.object(whole, "at_rest", new=_never):
            slow = decide(self.desired, observed, self.memory, now, None, loaded)
        assert slow == plan, "the same arguments gave another plan, or what seemed to be at rest was not"
        dirty = self.dirty(observed)
        self.check_part(plan, dirty, observed)
        self.before = (self.desired, observed) if not plan.waiting else None
        self.heavy = set()
        self.touched = {key_of(action.id) for action in plan.actions}  # of a proxy: PROXIES
        self.wakes = {key: at for key, at in plan.wakes.items() if at is not None}
        self.wake_at = plan.wake_at
        assert plan.wake_at is None or plan.wake_at > now, "the plan wants to be woken in the past"
        if plan.waiting:
            assert not plan.actions and plan.memory == self.memory, "something was decided too early"
            return plan
        self.check_plan(plan)
        world.found = frozenset()
        stored = msgspec.msgpack.decode(msgspec.msgpack.encode(plan.memory), type=Memory)
        assert stored == plan.memory, "the memory changes when it is stored"
        self.memory = stored
        self.publish(dirty)
        apps = {name: self.arrived(goal) for name, goal in self.desired.apps.items() if name not in plan.gone}
        before, self.desired = self.desired, dataclasses.replace(self.desired, apps=apps)
        if not world.calm and self.chance.random() < 0.03:  # killed while it performed
            for action in plan.actions[: self.chance.randint(0, len(plan.actions))]:
                world.perform(action, before)
            self.new_controller()
            self.lossless = False
            return plan
        for action in plan.actions:
            world.perform(action, before)
        again = decide(self.desired, world.observed(), self.memory, now, None, loaded)
        assert not again.actions, f"performing the plan did not satisfy it: {again.actions}"
        self.check_status()
        return plan

    def dirty(self, observed: Observed) -> list[str]:
        """The keys that a controller would look at: what differs from the last look, and what is due."""
        if self.before is None:
            return [PROXIES, *every_key(self.desired, observed, self.memory)]
        desired, seen = self.before
        keys = every_key(self.desired, observed, self.memory)
        changed = [
            key
            for key in dict.fromkeys((*keys, *desired.wanted, *seen.replicas))
            if observed.replicas.get(key) != seen.replicas.get(key)
            or self.desired.wanted.get(key) != desired.wanted.get(key)
            or self.desired.capacity != desired.capacity
            or self.wakes.get(key, 1e12) <= self.world.now
            or key in self.touched
            or key in self.heavy
        ]
        due = self.wakes.get(PROXIES, 1e12) <= self.world.now
        proxies = due or PROXIES in self.touched or observed.proxies != seen.proxies
        return [PROXIES] * proxies + changed

    def check_part(self, plan: Plan, dirty: list[str], observed: Observed) -> None:
        """A decision about what changed is the decision about everything."""
        part = decide(self.desired, observed, self.memory, self.world.now, dirty, self.loaded())
        assert (part.actions, part.memory, part.gone) == (plan.actions, plan.memory, plan.gone), (
            f"looking at {dirty} alone is not enough: {part.actions} instead of {plan.actions}"
        )
        assert part.events == plan.events and part.waiting == plan.waiting

    def check_plan(self, plan: Plan) -> None:
        """What a plan must never do."""
        ids = [(type(action).__name__, action.id) for action in plan.actions]
        assert len(ids) == len(set(ids)), "an action is there twice"
        stops = {action.id for action in plan.actions if isinstance(action, StopReplica)}
        starts = [action for action in plan.actions if isinstance(action, StartReplica)]
        assert not stops & {action.id for action in starts}
        for wanted in self.desired.wanted.values():
            spec, revision = wanted.spec, wanted.goal.revision
            mine = [one for one in self.world.replicas.values() if one.alive and one.key == spec.key]
            staying = [one for one in mine if not self.was_leaving(one.id) and one.strikes < STRIKES_MAX]
            standing = [one for one in staying if one.heard not in ("failed", "draining")]
            ready = [one for one in standing if one.heard == "ready" or (one.heard is None and self.ran_before(one.id))]
            left = [one for one in ready if one.id not in stops]
            target = self.target(spec, plan.memory)
            assert len(left) >= min(len(ready), target), f"{spec.key} was made smaller than wanted"
            begun = sum(action.key == spec.key for action in starts)
            count = sum(one.id not in stops for one in standing) + begun
            peak = max(target + pace_of(spec.options, target).surge, len(standing))
            assert count <= peak, f"{spec.key} has {count} replicas, {peak} are allowed"
            self.check_budget(spec, revision, sum(one.key == spec.key and not one.former for one in starts))
        for stop in (action for action in plan.actions if isinstance(action, StopReplica)):
            self.check_stop(stop)
        self.check_events(plan)

    def check_stop(self, action: StopReplica) -> None:
        """Who may have requests is stopped with its whole grace, and killed when that is over."""
        one, now = self.world.replicas.get(action.id), self.world.now
        remembered = self.remembered(action.id)
        if one is None or one.heard == "failed" or not (one.ran and (remembered is None or remembered.ran)):
            return
        promised = one.grace
        if remembered is not None and remembered.stop_by is not None:  # told again by a new controller
            promised = min(promised, remembered.stop_by - OVERDUE_S - now)
        over = remembered is not None and remembered.stop_by is not None and now >= remembered.stop_by
        assert over or action.grace_s >= promised, f"{one.id} gets {action.grace_s} s and was promised {promised}"
        assert not over or one.asked_at is None or now >= one.asked_at + one.grace, f"{one.id} is killed too early"

    def check_events(self, plan: Plan) -> None:
        """The log tells each change of a number once, as it was."""
        for key in plan.memory.deployments:
            before, after = self.memory.deployments.get(key), plan.memory.deployments[key]
            told = [
                (one.details["before"], one.details["after"])
                for one in plan.events
                if one.kind == "scaled" and f"{one.app}/{one.deployment}" == key
            ]
            changed = before is not None and before.version and before.target != after.target
            assert told == ([(before.target, after.target)] if before is not None and changed else []), (key, told)

    def was_leaving(self, id: str) -> bool:
        replica = self.remembered(id)
        return replica is not None and replica.stopping

    def ran_before(self, id: str) -> bool:
        replica = self.remembered(id)
        return replica is not None and replica.ran

    def remembered(self, id: str) -> ReplicaMemory | None:
        known = self.memory.deployments.get(key_of(id))
        return known.replicas.get(id) if known is not None else None

    def check_budget(self, spec: DeploymentSpec, revision: int, begun: int) -> None:
        """A constructor that never worked is tried a limited number of times."""
        if not self.lossless or spec.version != BAD or spec.options.autoscaling_config is not None:
            return
        tried = self.world.starts.get((spec.key, revision, spec.version), 0) + begun
        target = spec.options.replicas  # the most that was wanted, whatever the capacity is by now
        limit = max(target, budget(spec.options.max_constructor_retry_count, target))
        inherited = sum(one.version == BAD for one in self.world.replicas.values())
        assert tried <= limit + inherited, f"{spec.key} was tried {tried} times, {limit} are allowed"

    def publish(self, keys: list[str]) -> None:
        """Routers get what changed, and know exactly the ready ones then."""
        observed, wanted = self.world.observed(), self.desired.wanted
        state = published(self.desired, observed, self.memory, "memory:")
        news = {
            key: deployment(key, wanted[key], observed, self.memory, "memory:") if key in wanted else None
            for key in keys
            if key != PROXIES
        }
        self.publications.put(news, self.desired.routes)
        assert self.publications.state == state, "a change was not published"
        told = self.publications.since(0 if self.chance.random() < 0.1 else self.heard)
        self.heard = self.publications.generation
        if told is not None:
            self.apply(msgspec.msgpack.decode(told, type=Snapshot))
        self.state = state
        assert self.router_deployments == state.deployments and self.router_routes == state.routes
        for target in state.deployments.values():
            for replica in target.replicas:
                process = self.world.replicas[replica.id]
                assert process.alive and process.ran, f"{replica.id} is published and was never ready"
                assert not self.was_leaving(replica.id), f"{replica.id} is published and was told to stop"
            assert not (target.unavailable and target.replicas)

    def apply(self, news: Snapshot) -> None:
        if news.whole:
            self.router_deployments = {}
        for key, target in news.deployments.items():
            if target is None:
                del self.router_deployments[key]
            else:
                self.router_deployments[key] = target
        if news.routes is not None:
            self.router_routes = news.routes

    def check_status(self) -> None:
        """RUNNING is said when it is so, and only then."""
        observed = self.world.observed()
        status = serve_status(self.desired, {}, observed, self.memory, self.world.now)
        assert status.applications.keys() == self.desired.apps.keys()
        for spec in map(_spec, self.desired.wanted.values()):
            shown = status.applications[spec.app].deployments[spec.name]
            assert (shown.status == "HEALTHY") == self.is_right(spec), f"{spec.key} is said to be {shown.status}"
            said = ("replicas failed to start", "could not take up")
            assert shown.status != "DEPLOY_FAILED" or any(one in shown.message for one in said)

    def is_right(self, spec: DeploymentSpec) -> bool:
        mine = [one for one in self.world.replicas.values() if one.alive and one.key == spec.key]
        standing = [one for one in mine if not self.was_leaving(one.id)]
        memory = self.memory.deployments.get(spec.key, DeploymentMemory())
        known = [memory.replicas.get(one.id) for one in standing]
        ready = [
            (one.heard or ("ready" if replica and replica.ran else "")) == "ready"
            for one, replica in zip(standing, known, strict=True)
        ]
        configs = [one.heard is None or one.heard_config == spec.config for one in standing]
        versions = [replica is not None and replica.version == spec.version for replica in known]
        tries = not gave_up(spec, memory)
        return len(standing) == self.target(spec, self.memory) and tries and all(ready + versions + configs)

    # -- afterwards -----------------------------------------------------------------------------

    def settle(self) -> None:
        """Without further misfortune everything becomes as wanted, and then nothing more happens."""
        self.world.calm = True
        serving = {spec.key: self.serving(spec.key) for spec in map(_spec, self.desired.wanted.values())}
        for _ in range(400):
            plan = self.step()
            if not plan.actions and self.is_still() and plan.wake_at is None:
                break
            self.world.pass_time(plan.wake_at if plan.wake_at is not None and self.is_still() else None)
        assert self.is_still() and not plan.actions, "it never came to rest"
        assert self.wake_at is None, "at rest, and a timer is still set"
        assert not any(goal.deleting for goal in self.desired.apps.values())
        assert self.world.proxies["0"].alive
        alive = [one for one in self.world.replicas.values() if one.alive]
        wanted = {spec.key: spec for spec in map(_spec, self.desired.wanted.values())}
        assert all(one.key in wanted for one in alive), "replicas of nothing wanted live on"
        status = serve_status(self.desired, {}, self.world.observed(), self.memory, self.world.now)
        for key, spec in wanted.items():
            shown = status.applications[spec.app].deployments[spec.name].status
            if spec.version == BAD and self.target(spec, self.memory):
                assert shown == "DEPLOY_FAILED", (key, shown)
                former = self.desired.wanted[key].former
                if former is not None and former.version not in (BAD, SHAKY):
                    assert self.serving(key) == self.target(spec, self.memory), f"{key} is not kept alive"
                assert self.serving(key) or not serving[key], f"{key} lost the old ones"
            else:
                shaky = spec.version in (BAD, SHAKY) or spec.config == BAD_CONFIG
                fine = ("HEALTHY", "DEPLOY_FAILED") if shaky else ("HEALTHY",)
                assert shown in fine, (key, shown)
            config = spec.options.autoscaling_config
            if config is not None and spec.version not in (BAD, SHAKY):
                total = self.loads[key].total if key in self.loads else 0  # one replica for each call
                needed = bounds_of(config, Capacity(self.desired.capacity)).clip(int(total))
                assert self.target(spec, self.memory) == needed, f"{key} rests at {self.memory.deployments[key].target}"
            target = self.state.deployments[key]
            serves = target.replicas or target.unavailable or target.asleep
            assert serves, f"{key} neither serves nor says why not"

    def serving(self, key: str) -> int:
        mine = [one for one in self.world.replicas.values() if one.alive and one.key == key and one.phase == "ready"]
        return sum(one.stop_at is None and not self.was_leaving(one.id) for one in mine)

    def is_still(self) -> bool:
        processes = [*self.world.replicas.values(), *self.world.proxies.values()]
        return all(one.alive and one.phase == "ready" and one.stop_at is None for one in processes) and all(
            one.heard == "ready" for one in self.world.replicas.values()
        )

    def end(self) -> None:
        """Told to end, everything goes, proxies first."""
        self.memory = replace(self.memory, ending=True)
        for _ in range(200):
            proxies = any(one.alive for one in self.world.proxies.values())
            plan = self.step_to_end()
            assert not (proxies and any(isinstance(one, StopReplica) for one in plan.actions)), "replicas went first"
            if plan.ended:
                break
            self.world.pass_time()
        assert plan.ended and not self.world.replicas and not self.world.proxies

    def step_to_end(self) -> Plan:
        plan = decide(self.desired, self.world.observed(), self.memory, self.world.now)
        assert not any(isinstance(action, StartReplica | StartProxy) for action in plan.actions)
        self.memory = plan.memory
        for action in plan.actions:
            self.world.perform(action, self.desired)
        return plan


def _spec(wanted: Wanted) -> DeploymentSpec:
    return wanted.spec


def _never(*of: object) -> bool:
    return False


def failure_of(seed: int) -> str:
    """What went wrong in that world, and how to see it again; nothing if all went well."""
    simulation = Simulation(seed)
    try:
        simulation.run()
    except AssertionError as error:
        replay = f"PYTHONPATH=src:. python -m tests.decide.test_simulation {seed}"
        return f"seed {seed} at {simulation.world.now:.2f}: {error}; replay: {replay}"
    return ""


def test_every_seed() -> None:
    """In two processes, so that thousands take less than a minute."""
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        failures = [one for one in pool.map(failure_of, range(SEEDS), chunksize=25) if one]
    assert not failures, "\n".join(failures)


if __name__ == "__main__":
    Simulation(int(sys.argv[1])).run()
