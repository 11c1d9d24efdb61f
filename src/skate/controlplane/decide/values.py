"""What a decision is made of: what is wanted, what is seen, what is remembered, and the plan.

Law: plain immutable values, kept by deployment, so what did not change is the same object and costs nothing. Everything
that must outlive one decision is in ``Memory``, which the shell stores and hands back; a controller that starts
again with it (or without it) goes on where the last one stopped.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from skate.controlplane.decide.autoscale import Scaling, ScalingMemory
from skate.controlplane.decide.load import Load
from skate.controlplane.decide.policy import Answer
from skate.core.config import AppConfig
from skate.core.specs import AppSpec, Counts, DeploymentSpec, LoopBlocking, ReplicaPhase, Route

RECOVERY_S = 10.0  # how long a new controller waits for living replicas to report before it decides without them,
RECOVERY_KNOWN_S = (
    2.0  # and for those that are remembered; who does not speak computes, on its loop or in a constructor
)
STRIKES_MAX = 3  # failed health checks in a row, as in Ray Serve; then a replica is replaced


# -- wanted -------------------------------------------------------------------------------------


class Goal(msgspec.Struct, frozen=True):
    """One application as wanted. ``revision`` grows with every deploy; ``deleting``: it shall go.

    ``source``: the configuration that it was built from, None when a script deployed it. ``by``: who asked, in words.
    ``retiring``: of former revisions, oldest first, the deployments that this one does not have; they serve until it is
    there (see ``retire``). ``worked``: it was there once, so it answers and is worth a rollback. ``former``: until
    then the last revision that worked; should this one never start, replicas of that one are kept alive.
    """

    spec: AppSpec
    revision: int
    deployed_at: float  # wall time
    deleting: bool = False
    cause: str = "deploy"
    by: str = ""
    source: AppConfig | None = None
    retiring: tuple[AppSpec, ...] = ()
    worked: bool = False
    former: AppSpec | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all deployments that belong to it."""
        return tuple(spec.key for app in (*self.retiring, self.spec) for spec in app.deployments)

    def wanted(self) -> dict[str, Wanted]:
        """Its deployments that shall run, by key."""
        before = {spec.key: spec for spec in (self.former.deployments if self.former is not None else ())}

        def former(spec: DeploymentSpec) -> DeploymentSpec | None:
            known = before.get(spec.key)
            return known if known is not None and known.version != spec.version else None

        return {
            spec.key: Wanted(spec, self, former(spec)) if app is self.spec else Wanted(spec, replace(self, spec=app))
            for app in (() if self.deleting else (self.spec, *self.retiring))
            for spec in app.deployments
        }

    @property
    def ingress(self) -> str:
        """The deployment that answers for the application: a former one until this revision has replaced it."""
        for part in () if self.worked else reversed(self.retiring):
            if any(spec.name == part.ingress for spec in part.deployments):
                return part.ingress
        return self.spec.ingress


class Order(msgspec.Struct, frozen=True):
    """An application that was asked for by configuration and is not built yet. ``error``: it could not be built."""

    config: AppConfig
    number: int
    at: float  # wall time
    by: str = ""
    logging_config: dict[str, Any] | None = None
    sys_path: tuple[str, ...] = ()
    cwd: str | None = None
    error: str = ""


@dataclass(frozen=True)
class Wanted:
    """One deployment that shall run. ``former``: as it last worked, where that is another version."""

    spec: DeploymentSpec
    goal: Goal
    former: DeploymentSpec | None = None


@dataclass(frozen=True)
class Desired:
    """Everything that is wanted: the applications, and a proxy in each slot (in ``ADMIN`` the REST server).

    ``capacity``: percent of all replicas; ``rising``: it was raised last.
    """

    apps: dict[str, Goal] = field(default_factory=dict)
    proxies: tuple[str, ...] = ()
    capacity: float | None = None
    rising: bool = False

    @cached_property
    def wanted(self) -> dict[str, Wanted]:
        """The deployments that shall run, by key."""
        return {key: wanted for goal in self.apps.values() for key, wanted in goal.wanted().items()}

    def with_app(self, name: str, goal: Goal | None) -> Desired:
        """The same with another goal for one application, None: without it. What that does not concern is kept."""
        before = self.apps.get(name)
        apps = {one: it for one, it in self.apps.items() if one != name} if goal is None else {**self.apps, name: goal}
        made = dataclasses.replace(self, apps=apps)
        if "wanted" in self.__dict__:
            news = goal.wanted() if goal is not None else {}
            gone = {key for key in (before.keys if before is not None else ()) if key not in news}
            made.__dict__["wanted"] = {**{key: it for key, it in self.wanted.items() if key not in gone}, **news}
        if "routes" in self.__dict__ and _route_of(before) == _route_of(goal):
            made.__dict__["routes"] = self.routes
        return made

    @cached_property
    def leaving(self) -> tuple[str, ...]:
        """The applications that shall go."""
        return tuple(name for name, goal in self.apps.items() if goal.deleting)

    @cached_property
    def routes(self) -> tuple[Route, ...]:
        """Which path leads to which application."""
        latest_last = sorted(self.apps.values(), key=lambda goal: goal.deployed_at)  # two may be about to change places
        found = {
            goal.spec.route_prefix: Route(goal.spec.route_prefix, goal.spec.name, goal.ingress)
            for goal in latest_last
            if not goal.deleting and goal.spec.route_prefix is not None
        }
        return tuple(found[prefix] for prefix in sorted(found))


def _route_of(goal: Goal | None) -> tuple[object, ...]:
    """All that the routes go by."""
    if goal is None or goal.deleting or goal.spec.route_prefix is None:
        return ()
    return goal.spec.route_prefix, goal.spec.name, goal.ingress, goal.deployed_at


# -- seen ---------------------------------------------------------------------------------------


class ReplicaSeen(msgspec.Struct, frozen=True):
    """A replica's process, and what the replica said last. ``reported``: it has said something at all.

    ``config``: the configuration it runs with; ``telling``: the one it is being told now; ``refused``: the one that it
    could not take up, because of ``config_error``. ``strikes``: failed health checks in a row; ``stuck``: those
    of its event loop, which does not turn.
    """

    id: str
    alive: bool
    phase: ReplicaPhase = "starting"
    since: float = 0.0
    pid: int = 0
    message: str = ""
    exit_code: int | None = None
    reported: bool = False
    blocked: tuple[LoopBlocking, ...] = ()
    config: str = ""
    telling: str = ""
    refused: str = ""
    config_error: str = ""
    strikes: int = 0
    health_error: str = ""
    stuck: bool = False


class ProxySeen(msgspec.Struct, frozen=True):
    """A proxy's process, and what the proxy said last."""

    id: str
    alive: bool
    phase: Literal["starting", "ready", "failed"] = "starting"
    pid: int = 0
    address: str = ""
    message: str = ""
    exit_code: int | None = None


Group = dict[str, ReplicaSeen]  # the replicas of one deployment, by id


class Observed(msgspec.Struct, frozen=True):
    """One complete picture. ``replicas`` by deployment key; ``found``: processes that lived before this controller did
    and have not reported yet."""

    replicas: dict[str, Group] = {}
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

    version: str
    ordinal: int  # grows with every replica of the instance; the newest leaves first
    grace_s: float
    ran: bool = False
    stop_by: float | None = None

    @property
    def stopping(self) -> bool:
        return self.stop_by is not None


Course = Literal["UPDATING", "UPSCALING", "DOWNSCALING"]


class Loaded(msgspec.Struct, frozen=True):
    """What the autoscaler goes by: the load of the deployments that scale, the last word of users' own policies, the
    wall time."""

    loads: dict[str, Load] = {}
    said: dict[str, Answer] = {}
    wall: float = 0.0


class DeploymentMemory(msgspec.Struct, frozen=True):
    """How a deployment fares at its present revision, and its replicas.

    ``ran``: a replica of this version was ready once; ``settled``: all wanted replicas were ready at once since the
    last change; ``course``: what that changed. Of a deployment that is not wanted any more only ``replicas`` counts.
    """

    version: str = ""
    revision: int = 0
    target: int = 0
    config: str = ""
    ran: bool = False
    settled: bool = False
    course: Course = "UPDATING"
    automatic: bool = False  # the last change of the target was the autoscaler's
    failures: Failures = Failures()
    former_failures: Failures = Failures()  # of the version that goes on because this one never started
    replicas: dict[str, ReplicaMemory] = {}
    scaling: ScalingMemory | None = None  # of one that scales with its load


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
    deployments: dict[str, DeploymentMemory] = {}
    proxies: dict[str, ProxyMemory] = {}
    ended_calls: Counts = {}  # counts of processes that are gone; kept here to be stored
    ending: bool = False


# -- the plan -----------------------------------------------------------------------------------


class StartReplica(msgspec.Struct, frozen=True, tag=True):
    """Start a replica of the deployment as it is wanted now; ``former``: as it was when it last worked."""

    id: str
    key: str
    former: bool = False


class StopReplica(msgspec.Struct, frozen=True, tag=True):
    """Ask a replica to finish what it has and end; kill it after ``grace_s``."""

    id: str
    grace_s: float


class Reconfigure(msgspec.Struct, frozen=True, tag=True):
    """Tell a running replica the configuration that is wanted now."""

    id: str
    key: str


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


Action = StartReplica | StopReplica | Reconfigure | StartProxy | StopProxy | Forget


class Happening(msgspec.Struct, frozen=True):
    """Something for the log of events. ``key`` "": of the application as a whole."""

    app: str
    deployment: str
    kind: str
    message: str
    details: dict[str, Any] = {}


ADMIN = "admin"  # the slot of the REST server, which is kept as a proxy is
PROXIES = ""  # the key under which the proxies' timer stands


class Plan(msgspec.Struct, frozen=True):
    """What to do now. ``changed``: keys whose memory is another one. ``wakes``: of each key that was looked at, when to
    look again even if nothing happens. ``gone``: deleted applications of which nothing is left; ``ended``: nothing at
    all is left, as wanted; ``waiting``: too early to decide anything."""

    actions: tuple[Action, ...]
    memory: Memory
    changed: tuple[str, ...] = ()
    wakes: dict[str, float | None] = {}
    gone: tuple[str, ...] = ()
    events: tuple[Happening, ...] = ()
    scalings: dict[str, Scaling] = {}  # of the deployments that scale and were looked at
    ended: bool = False
    waiting: bool = False

    @property
    def wake_at(self) -> float | None:
        """The earliest of ``wakes``."""
        return min((at for at in self.wakes.values() if at is not None), default=None)
