"""What a decision is made of: what is wanted, what is seen, what is remembered, and the plan.

Law: plain immutable values. Everything that must outlive one decision is in ``Memory``, which the shell stores and
hands back; a controller that starts again with it (or without it) goes on where the last one stopped.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from skate.core.specs import AppSpec, Counts, LoopBlocking, ReplicaPhase

RECOVERY_S = 10.0  # how long a new controller waits for living replicas to report before it decides without them


# -- wanted -------------------------------------------------------------------------------------


class Goal(msgspec.Struct, frozen=True):
    """One application as wanted. ``revision`` grows with every deploy; ``deleting``: it shall go."""

    spec: AppSpec
    revision: int
    deployed_at: float  # wall time
    deleting: bool = False


class Desired(msgspec.Struct, frozen=True):
    """Everything that is wanted: the applications, and a proxy in each slot."""

    apps: dict[str, Goal] = {}
    proxies: tuple[str, ...] = ()


# -- seen ---------------------------------------------------------------------------------------


class ReplicaSeen(msgspec.Struct, frozen=True):
    """A replica's process, and what the replica said last. ``reported``: it has said something at all."""

    id: str
    alive: bool
    phase: ReplicaPhase = "starting"
    since: float = 0.0
    pid: int = 0
    message: str = ""
    exit_code: int | None = None
    reported: bool = False
    blocked: tuple[LoopBlocking, ...] = ()


class ProxySeen(msgspec.Struct, frozen=True):
    """A proxy's process, and what the proxy said last."""

    id: str
    alive: bool
    phase: Literal["starting", "ready", "failed"] = "starting"
    pid: int = 0
    address: str = ""
    message: str = ""
    exit_code: int | None = None


class Observed(msgspec.Struct, frozen=True):
    """One complete look at the engine. ``found``: processes that lived before this controller did."""

    replicas: dict[str, ReplicaSeen] = {}
    proxies: dict[str, ProxySeen] = {}
    found: frozenset[str] = frozenset()
    started_at: float = 0.0  # when this controller started


# -- remembered ---------------------------------------------------------------------------------


class Failures(msgspec.Struct, frozen=True):
    """What went wrong lately. ``in_a_row``: failed starts since the last one that worked; ``recent``: for back-off."""

    in_a_row: int = 0
    recent: int = 0
    last_at: float | None = None
    error: str = ""


class ReplicaMemory(msgspec.Struct, frozen=True):
    """A replica that was started. ``ran``: it was ready once. ``stop_by``: when a stop asked for must be over."""

    app: str
    deployment: str
    version: str
    ordinal: int  # grows with every replica of the instance; the newest leaves first
    grace_s: float
    ran: bool = False
    stop_by: float | None = None

    @property
    def key(self) -> str:
        return f"{self.app}/{self.deployment}"

    @property
    def stopping(self) -> bool:
        return self.stop_by is not None


Course = Literal["UPDATING", "UPSCALING", "DOWNSCALING"]


class DeploymentMemory(msgspec.Struct, frozen=True):
    """How a deployment fares at its present revision. ``ran``: a replica of this version was ready once;
    ``settled``: all wanted replicas were ready at once since the last deploy; ``course``: what the deploy changed."""

    version: str
    revision: int
    target: int
    ran: bool = False
    settled: bool = False
    course: Course = "UPDATING"
    failures: Failures = Failures()


class ProxyMemory(msgspec.Struct, frozen=True):
    """A proxy slot, whether or not a process lives in it. ``expected``: one was started and not yet seen to end."""

    expected: bool = False
    stop_by: float | None = None
    failures: Failures = Failures()
    address: str = ""  # where it listens or tried to


class Memory(msgspec.Struct, frozen=True):
    """Everything remembered between two decisions. ``ending``: the instance was told to end, and a new controller
    must go on with that."""

    next_ordinal: int = 1
    replicas: dict[str, ReplicaMemory] = {}
    deployments: dict[str, DeploymentMemory] = {}
    proxies: dict[str, ProxyMemory] = {}
    ended_calls: Counts = {}  # counts of processes that are gone; kept here to be stored
    ending: bool = False


# -- the plan -----------------------------------------------------------------------------------


class StartReplica(msgspec.Struct, frozen=True, tag=True):
    """Start a replica of the deployment as it is wanted now."""

    id: str
    app: str
    deployment: str


class StopReplica(msgspec.Struct, frozen=True, tag=True):
    """Ask a replica to finish what it has and end; kill it after ``grace_s``."""

    id: str
    grace_s: float


class StartProxy(msgspec.Struct, frozen=True, tag=True):
    """Start a proxy."""

    id: str


class StopProxy(msgspec.Struct, frozen=True, tag=True):
    """Ask a proxy to finish its requests and end; kill it after ``grace_s``."""

    id: str
    grace_s: float


class Forget(msgspec.Struct, frozen=True, tag=True):
    """The engine need not remember this dead process any longer."""

    id: str
    role: Literal["replica", "proxy"]


Action = StartReplica | StopReplica | StartProxy | StopProxy | Forget


class Plan(msgspec.Struct, frozen=True):
    """What to do now. ``gone``: deleted applications of which nothing is left; ``ended``: nothing at all is left,
    as wanted; ``wake_at``: decide again then even if nothing happens; ``waiting``: too early to decide anything."""

    actions: tuple[Action, ...]
    memory: Memory
    wake_at: float | None = None
    gone: tuple[str, ...] = ()
    ended: bool = False
    waiting: bool = False
