"""The plain values that everything exchanges: what is wanted, what is seen, what routers are told.

Law: immutable, comparable, made of plain data (msgspec encodes every one of them as msgpack), no behaviour.
Code and constructor arguments travel inside as opaque bytes that only a replica ever unpickles.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from skate.core.options import DeploymentOptions


class HandleRef(msgspec.Struct, frozen=True):
    """Stands in constructor arguments where the user put a bound deployment; the replica makes a handle of it."""

    app: str
    deployment: str


class CodeRef(msgspec.Struct, frozen=True):
    """Where the user's class or function comes from: exactly one of the two is set.

    ``import_path`` is ``module:qualname`` and leads to the class, the function or the Deployment around it;
    ``pickled`` is a cloudpickle of the class or function itself (``__main__``, notebooks, closures).
    """

    import_path: str | None = None
    pickled: bytes | None = None


class DeploymentSpec(msgspec.Struct, frozen=True):
    """One deployment of an application, as wanted."""

    app: str
    name: str
    code: CodeRef
    init: bytes  # pickle of (args, kwargs), with HandleRef in place of bound deployments
    options: DeploymentOptions
    kind: Literal["class", "function"] = "class"
    ingress: bool = False  # the one that gets HTTP requests
    asgi: bool = False  # made by serve.ingress: speaks ASGI instead of __call__(request)
    version: str = ""  # hash of code, init and the options that need a restart
    config: str = ""  # hash of the options that a running replica takes up in place

    @property
    def key(self) -> str:
        return f"{self.app}/{self.name}"


class Source(msgspec.Struct, frozen=True):
    """The text of a module when it was deployed, compressed (zlib), and where it lay."""

    path: str
    text: bytes


class AppSpec(msgspec.Struct, frozen=True):
    """One application, as wanted. ``route_prefix`` None: not reachable by HTTP.

    ``sources``: the user's own modules that it is made of, by name; empty where they are too many to be kept.
    """

    name: str
    route_prefix: str | None
    ingress: str  # name of the ingress deployment
    deployments: tuple[DeploymentSpec, ...]
    sys_path: tuple[str, ...] = ()  # put in front of the replica's sys.path
    cwd: str | None = None
    sources: dict[str, Source] = {}


class HttpOptions(msgspec.Struct, frozen=True):
    """Where and how HTTP is served. Bounds are declared in ``core.options``."""

    host: str = "127.0.0.1"
    port: int = 8000
    root_path: str = ""
    request_timeout_s: float | None = None
    keep_alive_timeout_s: float = 90.0
    max_body_bytes: int = 100 * 1024 * 1024
    show_traceback: bool = False  # put the traceback of user errors into 500 bodies


class AdminOptions(msgspec.Struct, frozen=True):
    """Where the REST API is served, and the token that each of its requests must bear (None: none, loopback only)."""

    host: str = "127.0.0.1"
    port: int = 8265
    token: str | None = None


# -- processes ----------------------------------------------------------------------------------


class ProcessSpec(msgspec.Struct, frozen=True):
    """A process (or, inline, a task) that an engine shall run.

    ``entry`` is ``module:function``, called with ``config`` (msgpack of the role's own config value) in the
    new process; so no engine imports what it runs. ``title`` is what ``ps`` shows.
    """

    id: str
    role: Literal["controller", "proxy", "replica", "builder", "admin"]
    title: str
    entry: str
    config: bytes


class ReplicaConfig(msgspec.Struct, frozen=True):
    """What a replica is started with (``ProcessSpec.config`` of role replica)."""

    id: str
    deployment: DeploymentSpec
    address: str  # where it listens: unix:/path or memory:name
    controller: str  # address of the controller
    sys_path: tuple[str, ...] = ()
    cwd: str | None = None
    sources: dict[str, Source] = {}


class ProxyConfig(msgspec.Struct, frozen=True):
    """What a proxy is started with (``ProcessSpec.config`` of role proxy)."""

    id: str
    controller: str
    http: HttpOptions
    share_port: bool = False  # other proxies listen on the same port (SO_REUSEPORT)


class AdminConfig(msgspec.Struct, frozen=True):
    """What the REST server is started with (``ProcessSpec.config`` of role admin). ``http``: shown to who asks."""

    id: str
    controller: str
    admin: AdminOptions
    http: HttpOptions | None = None


class ControllerConfig(msgspec.Struct, frozen=True):
    """What the controller is started with (``ProcessSpec.config`` of role controller)."""

    runtime_dir: str
    address: str
    http: HttpOptions | None  # None: no HTTP at all
    proxies: int = 1
    admin: AdminOptions | None = None  # None: no REST API
    state_dir: str = ""  # where the state outlives the instance; "": it does not, and lies in ``runtime_dir``


UNSURE_CONFIG = "?"  # reported by a replica whose reconfiguration failed half-way, until one succeeds
ReplicaPhase = Literal["starting", "importing", "loading", "ready", "draining", "failed"]


class ReplicaReport(msgspec.Struct, frozen=True):
    """What a replica tells the controller about itself, at every change of phase and of load."""

    id: str
    phase: ReplicaPhase
    pid: int
    message: str = ""  # for failed: the cause with its traceback
    config: str = ""  # ``DeploymentSpec.config`` that it runs with
    config_error: str = ""  # why the last reconfiguration failed, with its traceback; "" when it did not


class Reconfiguration(msgspec.Struct, frozen=True):
    """What a running replica is told to take up in place (control call ``reconfigure`` of a replica)."""

    config: str  # of the wanted DeploymentSpec
    options: DeploymentOptions


class HealthReport(msgspec.Struct, frozen=True):
    """What a replica says of its health, at every change. ``strikes``: failures in a row, 0 when it is well."""

    id: str
    strikes: int
    kind: Literal["check", "loop"] = "check"  # the user's check_health; the event loop, seen by the watchdog
    error: str = ""


class LoopBlocking(msgspec.Struct, frozen=True):
    """One place of user code, ``function (file:line)``, that kept a replica's loop from turning, since its start."""

    place: str
    episodes: int
    seconds: float


class LoopReport(msgspec.Struct, frozen=True):
    """What a replica tells when its loop was blocked: all places so far, the worst first."""

    id: str
    blocked: tuple[LoopBlocking, ...]


class ProxyReport(msgspec.Struct, frozen=True):
    """What a proxy, or the REST server, tells the controller: is it listening, or why not."""

    id: str
    phase: Literal["starting", "ready", "failed"]
    pid: int
    host: str = ""
    port: int = 0
    message: str = ""


UNKNOWN_DEPLOYMENT = "(unknown)"  # what calls to no deployment are counted under; no key, for it has no "/"


class LedgerReport(msgspec.Struct, frozen=True):
    """Counts of calls since the start of a process or instance.

    Always ``accepted == open + ok + user_error + refused + timed_out + cancelled + lost`` and
    ``open == queued + sent + started``: waiting in a router, on the way to a replica, in its hands. ``retried``: how
    often a call was sent again because its replica had died.
    """

    accepted: int = 0
    open: int = 0
    ok: int = 0
    user_error: int = 0
    refused: int = 0
    timed_out: int = 0
    cancelled: int = 0
    lost: int = 0
    queued: int = 0
    sent: int = 0
    started: int = 0
    retried: int = 0


Counts = dict[str, LedgerReport]  # by deployment key


# -- what routers are told ----------------------------------------------------------------------


class ReplicaTarget(msgspec.Struct, frozen=True):
    """A replica that may be sent calls."""

    id: str
    address: str
    node: str = ""  # the machine it runs on


class RequestRouterTarget(msgspec.Struct, frozen=True):
    """The class that chooses replicas, and where routers find its module."""

    path: str
    kwargs: dict[str, Any] = {}
    sys_path: tuple[str, ...] = ()
    cwd: str | None = None


class DeploymentTarget(msgspec.Struct, frozen=True):
    """One deployment as routers see it. ``unavailable``: why calls must fail now instead of waiting."""

    app: str
    name: str
    max_ongoing_requests: int
    max_queued_requests: int
    replicas: tuple[ReplicaTarget, ...] = ()
    unavailable: str | None = None
    asgi: bool = False
    backpressure_status: int = 503
    retry_after_s: float | None = None
    ingress: bool = False  # the one that serve.get_app_handle leads to
    request_router: RequestRouterTarget | None = None  # None: two random choices
    asleep: bool = False  # no replica is wanted; a call that waits starts one
    retry: int | dict[str, int] = 0  # times that a started call may be sent again, for all methods or by method

    @property
    def key(self) -> str:
        return f"{self.app}/{self.name}"


class Route(msgspec.Struct, frozen=True):
    """An application that HTTP reaches under a prefix."""

    prefix: str
    app: str
    deployment: str


class Snapshot(msgspec.Struct, frozen=True):
    """Everything a router needs. The last one wins; ``generation`` only grows within one controller.

    With ``whole`` False only the named deployments changed (None: gone) and ``routes`` None means unchanged.
    """

    generation: int
    whole: bool
    deployments: dict[str, DeploymentTarget | None]
    routes: tuple[Route, ...] | None = None


# -- status -------------------------------------------------------------------------------------

ApplicationState = Literal["NOT_STARTED", "DEPLOYING", "DEPLOY_FAILED", "RUNNING", "UNHEALTHY", "DELETING"]
DeploymentState = Literal["UPDATING", "HEALTHY", "UNHEALTHY", "DEPLOY_FAILED", "UPSCALING", "DOWNSCALING"]


StatusTrigger = Literal[
    "UNSPECIFIED",
    "CONFIG_UPDATE_STARTED",
    "CONFIG_UPDATE_COMPLETED",
    "UPSCALE_COMPLETED",
    "DOWNSCALE_COMPLETED",
    "AUTOSCALING",
    "REPLICA_STARTUP_FAILED",
    "HEALTH_CHECK_FAILED",
    "INTERNAL_ERROR",
    "DELETING",
]


class ScalingDecision(msgspec.Struct, frozen=True):
    """One change of the number of replicas by the autoscaler, and what it went by."""

    at: float  # wall time
    before: int
    after: int
    reason: str
    ongoing: float = 0.0  # calls in the hands of replicas, averaged over the look-back
    queued: float = 0.0  # calls that waited, averaged likewise
    desired: float = 0.0  # what the policy said, before factors and bounds


class AutoscalingStatus(msgspec.Struct, frozen=True):
    """How the autoscaler sees a deployment now. ``waiting``: for what a change waits, with the seconds; or ''."""

    min_replicas: int
    max_replicas: int
    policy: str
    ongoing: float = 0.0
    queued: float = 0.0
    desired: float = 0.0
    waiting: str = ""
    error: str = ""  # of the user's policy
    decisions: tuple[ScalingDecision, ...] = ()  # the last few, oldest first


class CrashLoop(msgspec.Struct, frozen=True):
    """Replicas of this deployment end again and again; starts are slowed down.

    ``next_try_in_s``: 0 while one is being tried, None when no more are until the next deploy.
    """

    failures: int  # within the last minute
    next_try_in_s: float | None
    error: str  # of the last one, with its traceback


class ReplicaStatus(msgspec.Struct, frozen=True):
    """One replica: its phase and for how many seconds it has been in it; what has blocked its loop, worst first."""

    id: str
    phase: ReplicaPhase
    pid: int
    phase_s: float
    message: str = ""
    loop_blocked: tuple[LoopBlocking, ...] = ()
    version: str = ""
    strikes: int = 0  # failed health checks in a row


class DeploymentStatus(msgspec.Struct, frozen=True):
    """One deployment."""

    name: str
    status: DeploymentState
    message: str
    target_replicas: int
    replicas: tuple[ReplicaStatus, ...] = ()
    status_trigger: StatusTrigger = "UNSPECIFIED"
    version: str = ""
    autoscaling: AutoscalingStatus | None = None
    crash_loop: CrashLoop | None = None


class ApplicationStatus(msgspec.Struct, frozen=True):
    """One application."""

    name: str
    status: ApplicationState
    message: str
    route_prefix: str | None
    last_deployed_time_s: float
    deployments: dict[str, DeploymentStatus] = {}
    revision: int = 0
    source: Literal["imperative", "declarative"] = "imperative"
    deployed_by: str = ""  # who asked for it, in words: command and process id


class ProxyStatus(msgspec.Struct, frozen=True):
    """One proxy."""

    id: str
    status: Literal["STARTING", "HEALTHY", "UNHEALTHY", "DRAINING"]
    pid: int
    address: str
    message: str = ""


class ServeStatus(msgspec.Struct, frozen=True):
    """The whole instance, as ``serve.status()`` and ``skate status --json`` show it."""

    controller_pid: int = 0
    proxies: dict[str, ProxyStatus] = {}
    applications: dict[str, ApplicationStatus] = {}
    calls: LedgerReport = LedgerReport()  # of all deployments
    calls_by_deployment: Counts = {}  # of those that ever had one, by "<app>/<deployment>"
    target_capacity: float | None = None
    admin: ProxyStatus | None = None  # of the REST server; None: there is none


# -- what is kept of what happened ---------------------------------------------------------------


class Event(msgspec.Struct, frozen=True):
    """One thing that was decided or that happened, in the instance's append-only log."""

    id: int
    at: float  # wall time
    app: str
    deployment: str
    kind: str  # such as deployed, scaled, replica_died, crash_loop, rolled_back, deleted
    message: str
    details: dict[str, Any] = {}


class Revision(msgspec.Struct, frozen=True):
    """One application as it was wanted at some time. ``cause``: deploy, scale, or ``rollback to N``.

    ``worked``: all of its deployments were ready once.
    """

    app: str
    revision: int
    at: float  # wall time
    cause: str
    by: str = ""
    versions: dict[str, str] = {}  # of its deployments
    current: bool = False
    worked: bool = True


ChangeAction = Literal["add", "restart", "reconfigure", "scale", "settings", "leave", "remove"]


class Change(msgspec.Struct, frozen=True):
    """What a deploy does to one deployment, and because of what. ``settings``: only the controller or routers look."""

    deployment: str
    action: ChangeAction
    why: tuple[str, ...] = ()


class AppPlan(msgspec.Struct, frozen=True):
    """What a deploy does to one application. ``error``: it cannot be built, with the cause."""

    app: str
    action: Literal["add", "change", "leave", "remove"]
    changes: tuple[Change, ...] = ()
    error: str = ""
