"""What the engine is told for an action of a plan: which process, with which settings, and how long it may take to end.

Law: translates and decides nothing; what it goes by is the state at the moment of the decision.
"""

from __future__ import annotations

import socket
from typing import assert_never

import msgspec
from msgspec.structs import replace

from skate.controlplane.decide.publish import address_of
from skate.controlplane.decide.survey import key_of
from skate.controlplane.decide.values import (
    ADMIN,
    Desired,
    Forget,
    Memory,
    Observed,
    StartProxy,
    StartReplica,
    StopProxy,
    StopReplica,
)
from skate.controlplane.sightings import PROXY_PREFIX
from skate.core.config import BuildRequest
from skate.core.errors import AddressInUseError
from skate.core.specs import AdminConfig, ControllerConfig, HttpOptions, ProcessSpec, ProxyConfig, ReplicaConfig
from skate.dataplane.proxy.address import reserve
from skate.engine.base import Action, ForgetProcess, StartProcess, StopProcess

REPLICA_ENTRY = "skate.dataplane.replica.worker:run"
PROXY_ENTRY = "skate.dataplane.proxy.server:run"
ADMIN_ENTRY = "skate.admin.server:run"
BUILDER_ENTRY = "skate.controlplane.builder:run"
LOADING_S = 0.5  # for a replica that never had a request; in a slow constructor it does not even hear the stop
CLOSING_S = 4.0  # beyond its grace, for a replica to fail what is unfinished and run its destructor; below OVERDUE_S

Performed = StartReplica | StopReplica | StartProxy | StopProxy | Forget  # by the engine

_encode = msgspec.msgpack.Encoder().encode


class Processes:
    """The processes of one instance, as the engine is told of them."""

    def __init__(self, config: ControllerConfig) -> None:
        self._config = config
        self._reserved: socket.socket | None = None  # a free port for the proxies to share
        unix = config.address.startswith("unix:")
        self.place = f"unix:{config.runtime_dir}" if unix else "memory:"  # where replicas listen

    def close(self) -> None:
        """Gives the reserved port back."""
        if self._reserved is not None:
            self._reserved.close()

    def told(self, action: Performed, desired: Desired, observed: Observed, memory: Memory) -> Action:
        """The engine's form of an action."""
        match action:
            case StartReplica():
                return StartProcess(self._replica(action, desired))
            case StartProxy():
                return StartProcess(self._admin(memory) if action.id == ADMIN else self._proxy(action, memory))
            case StopReplica():
                return StopProcess(action.id, _grace_s(action, observed, memory))
            case StopProxy():
                return StopProcess(PROXY_PREFIX + action.id, action.grace_s)
            case Forget():
                return ForgetProcess(PROXY_PREFIX + action.id if action.role == "proxy" else action.id)
        assert_never(action)

    def builder(self, request: BuildRequest) -> StartProcess:
        """A process that builds an application and ends."""
        title = f"skate: building {request.app.name}"
        return StartProcess(ProcessSpec(request.id, "builder", title, BUILDER_ENTRY, _encode(request)))

    def _replica(self, action: StartReplica, desired: Desired) -> ProcessSpec:
        wanted = desired.wanted[action.key]
        app, spec = wanted.goal.spec, wanted.spec
        if action.former and wanted.former is not None and wanted.goal.former is not None:
            app, spec = wanted.goal.former, wanted.former
        config = ReplicaConfig(
            id=action.id,
            deployment=spec,
            address=address_of(action.id, self.place),
            controller=self._config.address,
            sys_path=app.sys_path,
            cwd=app.cwd,
            sources=app.sources,
        )
        return ProcessSpec(action.id, "replica", f"skate: replica {action.id}", REPLICA_ENTRY, _encode(config))

    def _proxy(self, action: StartProxy, memory: Memory) -> ProcessSpec:
        config = self._config
        assert config.http is not None
        http = replace(config.http, port=self._port(action.id, config.http, memory))
        proxy = ProxyConfig(action.id, config.address, http, share_port=config.proxies > 1)
        name = PROXY_PREFIX + action.id
        return ProcessSpec(name, "proxy", f"skate: {name}", PROXY_ENTRY, _encode(proxy))

    def _admin(self, memory: Memory) -> ProcessSpec:
        config, before = self._config, memory.proxies.get(ADMIN)
        assert config.admin is not None
        port = config.admin.port or (_port_of(before.address) if before is not None else 0)
        told = AdminConfig(ADMIN, config.address, replace(config.admin, port=port), config.http)
        return ProcessSpec(PROXY_PREFIX + ADMIN, "admin", "skate: admin", ADMIN_ENTRY, _encode(told))

    def _port(self, slot: str, http: HttpOptions, memory: Memory) -> int:
        """Where a proxy shall listen. For port 0 where it, or one that shares its port, did before: clients know it."""
        if http.port:
            return http.port
        shared = self._config.proxies > 1
        for id, before in memory.proxies.items():
            if before.address and (id == slot or (shared and id != ADMIN)):
                return _port_of(before.address)
        if not shared:
            return 0
        if self._reserved is None:
            try:
                self._reserved = reserve(http.host)
            except AddressInUseError:
                return 0  # the proxies will say what is wrong with the address
        return int(self._reserved.getsockname()[1])


def _port_of(address: str) -> int:
    return int(address.rpartition(":")[2]) if address else 0


def _grace_s(action: StopReplica, observed: Observed, memory: Memory) -> float:
    key = key_of(action.id)
    seen = observed.replicas.get(key, {}).get(action.id)
    known = memory.deployments.get(key)
    replica = known.replicas.get(action.id) if known is not None else None
    ran = replica is not None and replica.ran  # it may have requests, even if this controller has not heard of it yet
    if seen is not None and not ran and seen.phase in ("starting", "importing", "loading"):
        return min(action.grace_s, LOADING_S)
    return action.grace_s + CLOSING_S if action.grace_s else 0.0
