"""What the controller knows: what is wanted, seen and remembered, and which deployments must be looked at.

Law: one place, one loop; whoever changes something names the deployments that it concerns (``touch``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from msgspec.structs import replace

from skate.controlplane.broadcast import Signal
from skate.controlplane.decide.autoscale import Scaling
from skate.controlplane.decide.ledger import Accounts
from skate.controlplane.decide.load import Loads
from skate.controlplane.decide.values import ADMIN, Desired, Goal, Order
from skate.controlplane.policies import Policies
from skate.controlplane.publications import Publications
from skate.controlplane.records import Records
from skate.controlplane.sightings import Sightings
from skate.controlplane.store import REST, Rest, Row, Saved
from skate.core.clock import Clock
from skate.core.specs import AutoscalingStatus, ControllerConfig, Counts


class State:
    """Everything that one controller holds in its hands."""

    def __init__(self, config: ControllerConfig, saved: Saved, records: Records, clock: Clock) -> None:
        self.config = config
        self.clock = clock
        self.records = records
        self.goals: dict[str, Goal] = dict(saved.goals)
        self.orders: dict[str, Order] = dict(saved.orders)
        self.capacity, self.rising = saved.capacity, saved.rising
        self.memory = saved.memory
        self.accounts = Accounts(saved.memory.ended_calls)
        self.loads = Loads(clock.now())
        self.policies = Policies(clock, lambda key: self.touch((key,)))
        self.scalings: dict[str, Scaling] = {}  # by deployment
        self.sightings = Sightings(clock.now())
        self.observed = self.sightings.observed  # as of the last decision, so that it and the memory fit together
        self.publications = Publications()
        self.decisions = Signal()  # counts complete decisions
        self.statuses = Signal()  # counts changes of the status
        self.changed = asyncio.Event()
        self.dirty: set[str] | None = None  # keys to look at; None: everything
        self.desired = self._desired()

    def touch(self, keys: Iterable[str] = ()) -> None:
        """Something happened: the loop looks, at these deployments too."""
        if self.dirty is not None:
            self.dirty.update(keys)
        self.changed.set()

    def take_dirty(self) -> set[str] | None:
        """The keys to look at now; None: all of them."""
        dirty, self.dirty = self.dirty, set()
        seen, self.sightings.changed = self.sightings.changed, set()
        return None if dirty is None else dirty | seen

    # -- what is wanted -------------------------------------------------------------------------

    def set_goal(self, goal: Goal) -> None:
        """An application is wanted so from now on. It was stored."""
        before = self.goals.get(goal.spec.name)
        self.goals[goal.spec.name] = goal
        self._wishes_changed(goal.spec.name, goal, before)

    def drop_goal(self, name: str) -> None:
        """Nothing of a deleted application is left."""
        goal = self.goals.pop(name)
        self.records.put(Row("goal", name))
        self._wishes_changed(name, None, goal)

    def set_order(self, order: Order) -> None:
        """An application is being built, or could not be. It was stored, or will be."""
        self.orders[order.config.name] = order
        self.records.put(Row("order", order.config.name, order))
        self.status_changed()

    def drop_order(self, name: str) -> None:
        """It was built, or is not wanted any more."""
        if self.orders.pop(name, None) is not None:
            self.records.put(Row("order", name))
            self.status_changed()

    def set_capacity(self, capacity: float | None) -> None:
        """All numbers of replicas are scaled to this many percent."""
        if capacity != self.capacity:
            self.rising, self.capacity = self._rises(capacity), capacity
            self.records.put(self.rest_row(capacity))
            self.desired = self._desired()
            self.dirty = None
            self.changed.set()

    def _rises(self, capacity: float | None) -> bool:
        """Whether the capacity, once it is this, was raised last."""
        if capacity == self.capacity:
            return self.rising
        return capacity is not None and self.capacity is not None and capacity > self.capacity

    def end(self) -> None:
        """The instance shall end."""
        if not self.memory.ending:
            self.memory = replace(self.memory, ending=True)
            self.records.put(self.rest_row(self.capacity))
            self.dirty = None
            self.changed.set()

    def status_changed(self) -> None:
        """What users see is different, without a decision."""
        self.statuses.bump()
        self.changed.set()  # what is pending is written

    def rest_row(self, capacity: float | None) -> Row:
        """What is stored of no deployment in particular."""
        return Row("rest", REST, Rest(replace(self.memory, deployments={}), capacity, self._rises(capacity)))

    def counts(self) -> Counts:
        """The counts of calls of the whole instance."""
        return self.accounts.counts()

    def autoscaling(self) -> dict[str, AutoscalingStatus]:
        """How the autoscaler sees each deployment that scales."""
        now = self.clock.now()
        return {
            key: made.status_at(now, self.loads.watch(key, made.case.config.look_back_period_s, now))
            for key, made in self.scalings.items()
        }

    def _wishes_changed(self, name: str, goal: Goal | None, before: Goal | None) -> None:
        self.desired = self.desired.with_app(name, goal)
        self.touch(key for one in (goal, before) if one is not None for key in one.keys)
        self.statuses.bump()

    def _desired(self) -> Desired:
        slots = [str(slot) for slot in range(self.config.proxies)] if self.config.http is not None else []
        if self.config.admin is not None:
            slots.append(ADMIN)
        return Desired(dict(self.goals), tuple(slots), self.capacity, self.rising)
