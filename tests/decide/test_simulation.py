"""The control plane against a hostile world, from seeds. A failure names its seed and how to replay that one."""

from __future__ import annotations

import sys

import msgspec
from msgspec.structs import replace

from skate.controlplane.decide.publish import Published, delta, published, whole
from skate.controlplane.decide.restart import budget
from skate.controlplane.decide.rollout import pace_of
from skate.controlplane.decide.status import serve_status
from skate.controlplane.decide.values import Desired, Memory, Plan, StartProxy, StartReplica, StopReplica
from skate.controlplane.decide.whole import decide, wanted_deployments
from skate.core.specs import DeploymentSpec, DeploymentTarget, Route, Snapshot
from tests.decide.world import BAD, SHAKY, World, forgotten, random_goal

SEEDS = 200
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
        self.router_deployments: dict[str, DeploymentTarget] = {}
        self.router_routes: tuple[Route, ...] = ()
        self.wake_at: float | None = None

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
            self.world.new_controller()
        elif drawn < 0.27:
            self.world.new_controller()
            self.memory = forgotten(self.memory)
            self.lossless = False
        self.desired = replace(self.desired, apps=apps)

    def step(self) -> Plan:
        """One decision, checked and performed, sometimes only in part."""
        world, now = self.world, self.world.now
        observed = world.observed()
        plan = decide(self.desired, observed, self.memory, now)
        assert plan == decide(self.desired, observed, self.memory, now), "the same arguments gave another plan"
        self.wake_at = plan.wake_at
        assert plan.wake_at is None or plan.wake_at > now, "the plan wants to be woken in the past"
        if plan.waiting:
            assert not plan.actions and plan.memory == self.memory, "something was decided too early"
            return plan
        self.check_plan(plan)
        stored = msgspec.msgpack.decode(msgspec.msgpack.encode(plan.memory), type=Memory)
        assert stored == plan.memory, "the memory changes when it is stored"
        self.memory = stored
        self.publish()
        apps = {name: goal for name, goal in self.desired.apps.items() if name not in plan.gone}
        before, self.desired = self.desired, replace(self.desired, apps=apps)
        if not world.calm and self.chance.random() < 0.03:  # killed while it performed
            for action in plan.actions[: self.chance.randint(0, len(plan.actions))]:
                world.perform(action, before)
            world.new_controller()
            self.lossless = False
            return plan
        for action in plan.actions:
            world.perform(action, before)
        again = decide(self.desired, world.observed(), self.memory, now)
        assert not again.actions, f"performing the plan did not satisfy it: {again.actions}"
        self.check_status()
        return plan

    def check_plan(self, plan: Plan) -> None:
        """What a plan must never do."""
        ids = [(type(action).__name__, action.id) for action in plan.actions]
        assert len(ids) == len(set(ids)), "an action is there twice"
        stops = {action.id for action in plan.actions if isinstance(action, StopReplica)}
        starts = [action for action in plan.actions if isinstance(action, StartReplica)]
        assert not stops & {action.id for action in starts}
        for spec, revision in wanted_deployments(self.desired):
            mine = [one for one in self.world.replicas.values() if one.alive and one.key == spec.key]
            standing = [one for one in mine if not self.was_leaving(one.id) and one.heard not in ("failed", "draining")]
            ready = [one for one in standing if one.heard == "ready"]
            left = [one for one in ready if one.id not in stops]
            target = spec.options.replicas
            assert len(left) >= min(len(ready), target), f"{spec.key} was made smaller than wanted"
            begun = sum(action.app == spec.app and action.deployment == spec.name for action in starts)
            count = sum(one.id not in stops for one in standing) + begun
            peak = max(target + pace_of(spec.options, target).surge, len(standing))
            assert count <= peak, f"{spec.key} has {count} replicas, {peak} are allowed"
            self.check_budget(spec, revision, begun)

    def was_leaving(self, id: str) -> bool:
        replica = self.memory.replicas.get(id)
        return replica is not None and replica.stopping

    def check_budget(self, spec: DeploymentSpec, revision: int, begun: int) -> None:
        """A constructor that never worked is tried a limited number of times."""
        if not self.lossless or spec.version != BAD:
            return
        tried = self.world.starts.get((spec.key, revision, spec.version), 0) + begun
        target = spec.options.replicas
        limit = max(target, budget(spec.options.max_constructor_retry_count, target))
        inherited = sum(one.version == BAD for one in self.world.replicas.values())
        assert tried <= limit + inherited, f"{spec.key} was tried {tried} times, {limit} are allowed"

    def publish(self) -> None:
        """Routers get what changed, and know exactly the ready ones then."""
        addresses = {id: f"memory:{id}" for id in self.memory.replicas}
        state = published(self.desired, self.world.observed(), self.memory, addresses)
        news = whole(state, 1) if self.chance.random() < 0.1 else delta(self.state, state, 1)
        if news is not None:
            self.apply(news)
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
        status = serve_status(self.desired, observed, self.memory, self.world.now, {}, 1)
        assert status.applications.keys() == self.desired.apps.keys()
        for spec, _ in wanted_deployments(self.desired):
            shown = status.applications[spec.app].deployments[spec.name]
            assert (shown.status == "HEALTHY") == self.is_right(spec), f"{spec.key} is said to be {shown.status}"
            assert shown.status != "DEPLOY_FAILED" or "replicas failed to start" in shown.message

    def is_right(self, spec: DeploymentSpec) -> bool:
        mine = [one for one in self.world.replicas.values() if one.alive and one.key == spec.key]
        standing = [one for one in mine if not self.was_leaving(one.id)]
        known = [self.memory.replicas.get(one.id) for one in standing]
        ready = [
            (one.heard or ("ready" if replica and replica.ran else "")) == "ready"
            for one, replica in zip(standing, known, strict=True)
        ]
        versions = [replica is not None and replica.version == spec.version for replica in known]
        return len(standing) == spec.options.replicas and all(ready) and all(versions)

    # -- afterwards -----------------------------------------------------------------------------

    def settle(self) -> None:
        """Without further misfortune everything becomes as wanted, and then nothing more happens."""
        self.world.calm = True
        serving = {spec.key: self.serving(spec.key) for spec, _ in wanted_deployments(self.desired)}
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
        wanted = {spec.key: spec for spec, _ in wanted_deployments(self.desired)}
        assert all(one.key in wanted for one in alive), "replicas of nothing wanted live on"
        status = serve_status(self.desired, self.world.observed(), self.memory, self.world.now, {}, 1)
        for key, spec in wanted.items():
            shown = status.applications[spec.app].deployments[spec.name].status
            if spec.version == BAD:
                assert shown == "DEPLOY_FAILED", (key, shown)
                assert self.serving(key) or not serving[key], f"{key} lost the old ones"
            else:
                fine = ("HEALTHY", "DEPLOY_FAILED") if spec.version == SHAKY else ("HEALTHY",)
                assert shown in fine, (key, shown)
            target = self.state.deployments[key]
            assert target.replicas or target.unavailable, f"{key} neither serves nor says why not"

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


def test_every_seed() -> None:
    for seed in range(SEEDS):
        simulation = Simulation(seed)
        try:
            simulation.run()
        except AssertionError as error:
            replay = f"PYTHONPATH=src:. python -m tests.decide.test_simulation {seed}"
            raise AssertionError(f"seed {seed} at {simulation.world.now:.2f}: {error}; replay: {replay}") from error


if __name__ == "__main__":
    Simulation(int(sys.argv[1])).run()
