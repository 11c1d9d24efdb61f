"""The proxies: one process for each slot that is wanted. Law: a proxy that ends unasked is started again, slower and
slower, for ever: without it nobody can reach anything, and what was in its way (a port in use) may go away.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from skate.controlplane.decide import restart
from skate.controlplane.decide.survey import OVERDUE_S
from skate.controlplane.decide.values import (
    Action,
    Forget,
    Observed,
    ProxyMemory,
    ProxySeen,
    StartProxy,
    StopProxy,
)

PROXY_GRACE_S = 5.0  # how long open requests may go on when the instance ends


class FleetPlan(msgspec.Struct, frozen=True):
    """What to do about proxies. ``none_left``: no proxy process lives."""

    actions: tuple[Action, ...]
    memory: dict[str, ProxyMemory]
    wake_at: float | None
    none_left: bool


def plan_proxies(wanted: tuple[str, ...], observed: Observed, memory: dict[str, ProxyMemory], now: float) -> FleetPlan:
    """One proxy for each wanted slot, none for others."""
    actions: list[Action] = []
    after: dict[str, ProxyMemory] = {}
    wakes: list[float] = []
    for id in sorted({*wanted, *memory, *observed.proxies}):
        seen = observed.proxies.get(id)
        slot = memory.get(id, ProxyMemory())
        if seen is not None and not seen.alive:
            actions.append(Forget(id, "proxy"))
        if seen is None or not seen.alive:
            slot = _after_end(slot, seen, now)
            if id not in wanted:
                continue
            next_at = restart.next_try_at(slot.failures, 1, now)
            if next_at > now:
                wakes.append(next_at)
            else:
                actions.append(StartProxy(id))
                slot = replace(slot, expected=True)
        else:
            slot = _living(slot, seen, id in wanted, now, actions)
            if slot.stop_by is not None:
                wakes.append(slot.stop_by)
        after[id] = slot
    none_left = not any(seen.alive for seen in observed.proxies.values())
    return FleetPlan(tuple(actions), after, min(wakes, default=None), none_left)


def _after_end(slot: ProxyMemory, seen: ProxySeen | None, now: float) -> ProxyMemory:
    if not slot.expected:
        return slot
    if slot.stop_by is not None:
        return replace(slot, expected=False, stop_by=None)
    error = (seen and seen.message) or "the proxy's process ended unexpectedly"
    return replace(slot, expected=False, failures=restart.noted(slot.failures, 1, False, now, error))


def _living(slot: ProxyMemory, seen: ProxySeen, wanted: bool, now: float, actions: list[Action]) -> ProxyMemory:
    slot = replace(slot, expected=True, address=seen.address or slot.address)
    if slot.stop_by is not None:
        if now < slot.stop_by:
            return slot
        actions.append(StopProxy(seen.id, 0.0))
        return replace(slot, stop_by=now + OVERDUE_S)
    if seen.phase == "failed":  # it has said why and is about to end
        actions.append(StopProxy(seen.id, PROXY_GRACE_S))
        failures = restart.noted(slot.failures, 1, False, now, seen.message)
        return replace(slot, failures=failures, stop_by=now + PROXY_GRACE_S + OVERDUE_S)
    if not wanted:
        actions.append(StopProxy(seen.id, PROXY_GRACE_S))
        return replace(slot, stop_by=now + PROXY_GRACE_S + OVERDUE_S)
    if seen.phase == "ready" and slot.failures.in_a_row:
        return replace(slot, failures=restart.worked(slot.failures))
    return slot
