"""The whole decision: ``(desired, observed, memory, now) -> Plan``. Law: looks at the state, never at what happened;
decides nothing before one complete observation; applications disturb each other in nothing.

A caller who knows which deployments changed may name them: of the others the plan says nothing, and a decision about
everything at the same moment would have said nothing about them either. So a tick costs what changed.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from skate.controlplane.decide import restart
from skate.controlplane.decide.autoscale import Capacity, Scaling, adjusted, autoscale
from skate.controlplane.decide.fleet import FleetPlan, plan_proxies
from skate.controlplane.decide.load import Load
from skate.controlplane.decide.reconcile import Target, at_rest, gave_up, reconcile
from skate.controlplane.decide.survey import OVERDUE_S, Survey, adopted, complete_at, ordinal_of, strangers, survey
from skate.controlplane.decide.values import (
    PROXIES,
    Action,
    DeploymentMemory,
    Desired,
    Happening,
    Loaded,
    Memory,
    Observed,
    Plan,
    Reconfigure,
    ReplicaMemory,
    StartReplica,
    StopReplica,
    Wanted,
)
from skate.core.specs import DeploymentSpec

IDLE = Loaded()
NO_LOAD = Load()


def decide(
    desired: Desired,
    observed: Observed,
    memory: Memory,
    now: float,
    only: Collection[str] | None = None,
    loaded: Loaded = IDLE,
) -> Plan:
    """What to do now so that what is seen becomes what is wanted; with ``memory.ending`` nothing is wanted.

    ``only``: the keys of deployments that may need something (``PROXIES`` for the proxies); None: all.
    """
    if now < (at := complete_at(observed, memory)):
        return Plan((), memory, wakes={PROXIES: at}, waiting=True)
    round = _Round(desired, observed, memory, now, loaded)
    if only is None or PROXIES in only or memory.ending:
        round.take_fleet(plan_proxies(() if memory.ending else desired.proxies, observed, memory.proxies, now))
    keys = every_key(desired, observed, memory) if only is None or memory.ending else [key for key in only if key]
    for key in keys:
        round.look_at(key)
    return round.plan()


def every_key(desired: Desired, observed: Observed, memory: Memory) -> list[str]:
    """All deployments that are wanted, seen or remembered: the wanted ones first, in their order."""
    return list(dict.fromkeys((*desired.wanted, *memory.deployments, *observed.replicas)))


def target_of(wanted: Wanted, capacity: float | None) -> Target:
    """How many replicas a deployment shall have."""
    return Target(adjusted(wanted.spec.options.replicas, capacity))


def has_given_up(wanted: Wanted, memory: DeploymentMemory | None) -> bool:
    """Whether this revision of a deployment never started and is not tried any more."""
    if memory is None or memory.revision != wanted.goal.revision or memory.version != wanted.spec.version:
        return False
    return gave_up(wanted.spec, memory)


class _Round:
    """Collects one decision; lives only inside ``decide``."""

    def __init__(self, desired: Desired, observed: Observed, memory: Memory, now: float, loaded: Loaded) -> None:
        self.loaded = loaded
        self.scalings: dict[str, Scaling] = {}
        self.desired = desired
        self.observed = observed
        self.before = memory
        self.now = now
        self.actions: list[Action] = []
        self.events: list[Happening] = []
        self.news: dict[str, DeploymentMemory | None] = {}  # None: nothing is left of it
        self.wakes: dict[str, float | None] = {}
        self.next_ordinal = max(memory.next_ordinal, 1 + max(map(ordinal_of, observed.found), default=0))
        self.proxies = memory.proxies
        self.none_left = not any(seen.alive for seen in observed.proxies.values())

    def take_fleet(self, fleet: FleetPlan) -> None:
        """The proxies' part, whose actions come first."""
        self.actions.extend(fleet.actions)
        if fleet.memory != self.proxies:
            self.proxies = fleet.memory
        self.wakes[PROXIES] = fleet.wake_at

    def look_at(self, key: str) -> None:
        """One deployment."""
        before = self.before.deployments.get(key)
        group = self.observed.replicas.get(key, {})
        wanted = None if self.before.ending else self.desired.wanted.get(key)
        if wanted is not None and before is not None and wanted.spec.options.autoscaling_config is None:
            target = target_of(wanted, self.desired.capacity).replicas
            if at_rest(wanted.spec, wanted.goal.revision, target, before, group):
                self.wakes[key] = None
                return
        remembered = self._with_strangers(key, before.replicas if before is not None else {})
        found = survey(remembered, group, self.now, self.observed.found)
        self.actions.extend(found.actions)
        after: DeploymentMemory | None
        if wanted is not None:
            after = self._settle(key, wanted, found, before)
        else:
            self._clear(found)
            after = (before or DeploymentMemory()) if found.replicas else None
        if after is not None and after.replicas != found.replicas:
            after = replace(after, replicas=found.replicas)
        if after != before:
            self.news[key] = after
        self._wake(key, found.wake_at)

    def _with_strangers(self, key: str, remembered: dict[str, ReplicaMemory]) -> dict[str, ReplicaMemory]:
        """The remembered replicas, and those that were found alive and nobody remembers."""
        found = strangers(remembered, self.observed.replicas.get(key, {}))
        if not found:
            return remembered
        known = dict(remembered)
        for stranger in found:
            known[stranger.id] = replica = adopted(stranger, self.next_ordinal)
            self.next_ordinal = max(self.next_ordinal, replica.ordinal + 1)
        return known

    def _settle(self, key: str, wanted: Wanted, found: Survey, before: DeploymentMemory | None) -> DeploymentMemory:
        """Brings one deployment to what is wanted."""
        spec = wanted.spec
        target = self._target(wanted, found, before)
        former = wanted.former
        standing = found.standing
        if former is not None and has_given_up(wanted, before):
            # Those that take the place of dead ones of the former version are not in vain.
            standing = [one for one in standing if one.stage == "ready" or one.version != former.version]
        plan = reconcile(spec, wanted.goal.revision, target, standing, found.endings, before, self.now)
        self.events.extend(plan.events)
        self._wake(key, plan.wake_at)
        for _ in range(plan.starts):
            self._start(spec, found)
        _take_grace(spec, found)
        for id in plan.stops:
            self._stop(id, found.replicas[id].grace_s, found)
        for id in plan.reconfigures:  # from now on it may have the new grace, too
            replica = found.replicas[id]
            found.replicas[id] = replace(
                replica, grace_s=max(replica.grace_s, spec.options.graceful_shutdown_timeout_s)
            )
            self.actions.append(Reconfigure(id, key))
        scaling = self.scalings.get(key)
        memory = plan.memory
        if former is not None and has_given_up(wanted, memory):
            memory = self._keep_alive(former, memory, found)
        scaled = scaling.memory if scaling is not None else None
        return memory if memory.scaling == scaled else replace(memory, scaling=scaled)

    def _keep_alive(self, former: DeploymentSpec, memory: DeploymentMemory, found: Survey) -> DeploymentMemory:
        """The wanted version never started and is not tried any more: what serves is healed as if it were wanted."""
        dead = [ending for ending in found.endings if ending.version == former.version]
        failures = restart.noted(memory.former_failures, len(dead), True, self.now, dead[-1].error if dead else "")
        left = [one for one in found.standing if not found.replicas[one.id].stopping]
        missing = memory.target - len(left)
        next_at = restart.next_try_at(failures, memory.target, self.now)
        if missing > 0 and next_at > self.now:
            self._wake(former.key, next_at)
        else:
            for _ in range(missing):
                self._start(former, found, former=True)
        return memory if failures == memory.former_failures else replace(memory, former_failures=failures)

    def _target(self, wanted: Wanted, found: Survey, before: DeploymentMemory | None) -> Target:
        """How many replicas it shall have, by wish or by load."""
        spec = wanted.spec
        if spec.options.autoscaling_config is None:
            return target_of(wanted, self.desired.capacity)
        ready = sum(one.stage == "ready" for one in found.standing)
        known = before is not None and bool(before.version)
        scaling = autoscale(
            spec,
            self.loaded.loads.get(spec.key, NO_LOAD),
            ready,
            before.target if known and before is not None else None,
            before.scaling if before is not None else None,
            self.now,
            self.loaded.wall,
            capacity=Capacity(self.desired.capacity, self.desired.rising),
            said=self.loaded.said.get(spec.key),
        )
        self.scalings[spec.key] = scaling
        self._wake(spec.key, scaling.wake_at)
        if (made := scaling.decision) is not None:
            text = f"from {made.before} to {made.after} replicas: {made.reason}"
            details = {"before": made.before, "after": made.after, "ongoing": made.ongoing, "queued": made.queued}
            self.events.append(Happening(spec.app, spec.name, "scaled", text, details))
        return Target(scaling.target, automatic=True)

    def _clear(self, found: Survey) -> None:
        """Stops everything of a deployment that is not wanted; proxies go first, for the requests that they hold."""
        if not self.before.ending or self.none_left:
            for one in found.standing:
                self._stop(one.id, found.replicas[one.id].grace_s, found)

    def _start(self, spec: DeploymentSpec, found: Survey, former: bool = False) -> None:
        ordinal, self.next_ordinal = self.next_ordinal, self.next_ordinal + 1
        id = f"{spec.key}#{ordinal}"
        found.replicas[id] = ReplicaMemory(spec.version, ordinal, spec.options.graceful_shutdown_timeout_s)
        self.actions.append(StartReplica(id, spec.key, former))

    def _stop(self, id: str, grace_s: float, found: Survey) -> None:
        found.replicas[id] = replace(found.replicas[id], stop_by=self.now + grace_s + OVERDUE_S)
        self.actions.append(StopReplica(id, grace_s))

    def _wake(self, key: str, at: float | None) -> None:
        known = self.wakes.get(key)
        self.wakes[key] = known if at is None else at if known is None else min(known, at)

    def plan(self) -> Plan:
        """All of it."""
        before = self.before
        deployments = before.deployments
        if self.news:
            deployments = {**deployments, **{key: one for key, one in self.news.items() if one is not None}}
            for key in [key for key, one in self.news.items() if one is None]:
                deployments.pop(key, None)
        after = replace(before, next_ordinal=self.next_ordinal, deployments=deployments, proxies=self.proxies)
        occupied = any(one.replicas for one in deployments.values()) if before.ending else True
        return Plan(
            actions=tuple(self.actions),
            memory=after,
            changed=tuple(self.news),
            wakes=self.wakes,
            gone=self._gone(deployments),
            events=tuple(self.events),
            scalings=self.scalings,
            ended=before.ending and self.none_left and not occupied,
        )

    def _gone(self, deployments: dict[str, DeploymentMemory]) -> tuple[str, ...]:
        leaving = self.desired.leaving
        if not leaving:
            return ()
        occupied = {key.partition("/")[0] for key, one in deployments.items() if one.replicas}
        return tuple(name for name in leaving if name not in occupied)


def _take_grace(spec: DeploymentSpec, found: Survey) -> None:
    """A replica has the grace of the configuration that it runs with, whatever is wanted of others by now."""
    grace_s = spec.options.graceful_shutdown_timeout_s
    for one in found.standing:
        replica = found.replicas[one.id]
        if one.version == spec.version and one.config == spec.config and replica.grace_s != grace_s:
            found.replicas[one.id] = replace(replica, grace_s=grace_s)
