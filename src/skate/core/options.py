"""Every option that a user can set, declared once: type, bounds, unit, default, one sentence, what a change does.

Law: an option exists only here, as an annotated field; the decorator, ``.options()``, files, commands and the
reference page read these declarations. A wrong name, type or value, and two options that contradict each other, are
an ``OptionError`` at the moment they are written down. Why: a typo that is silently ignored costs a night. Options
that have no effect yet (``since="later"``) are checked like all others and say so in one ``NotYetWarning``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated as A
from typing import Any, Literal

import msgspec

from skate.core.checks import (
    NAME,
    PLAIN,
    TRUTH,
    Change,
    Check,
    Option,
    Refused,
    either,
    listing,
    mapping,
    number,
    one_of,
    options_of,
    read_option,
    refuse_contradictions,
    shown,
    struct,
    target,
    text,
    unknown_hint,
    whole,
    without_defaults,
)
from skate.core.errors import OptionError
from skate.core.ids import name_problem
from skate.core.scaling import AUTO_MAX_REPLICAS, AutoscalingConfig, AutoscalingPolicy

__all__ = [
    "ADMIN_OPTIONS",
    "HTTP_OPTIONS",
    "AutoscalingConfig",
    "AutoscalingPolicy",
    "BackpressureConfig",
    "DeploymentOptions",
    "NotYetWarning",
    "RayActorOptions",
    "RequestRouterConfig",
    "check_http_options",
    "check_name",
    "check_route_prefix",
    "deployment_options",
    "options_of",
    "reconfigure_options",
    "restart_options",
]


RETRIES_MAX = 10  # times that one call may be executed again


class NotYetWarning(UserWarning):
    """An option was accepted and checked, but has no effect in this version."""


# -- options that are groups of options -------------------------------------------------------------


class BackpressureConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an HTTP client is told while the queue is full."""

    status_code: A[int, Option(one_of(503, 429), "HTTP status of the refusal.")] = 503
    retry_after_s: A[
        float | None,
        Option(number(0, none=True), "Retry-After, rounded up; None: estimated from the queue and its pace.", "s"),
    ] = None


class RuntimeEnv(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the replica's process finds around it."""

    env_vars: A[dict[str, str], Option(mapping(text()), "Environment variables of the replica.", change="restart")] = {}
    pip: A[Any, Option(PLAIN, "Packages to install.", change="restart", since="later")] = None
    uv: A[Any, Option(PLAIN, "Packages to install with uv.", change="restart", since="later")] = None
    conda: A[Any, Option(PLAIN, "A conda environment.", change="restart", since="later")] = None
    working_dir: A[Any, Option(text(none=True), "Folder or archive to run in.", change="restart", since="later")] = None
    py_modules: A[Any, Option(PLAIN, "Modules to send along.", change="restart", since="later")] = None
    excludes: A[Any, Option(PLAIN, "Files not to send along.", change="restart", since="later")] = None
    py_executable: A[Any, Option(PLAIN, "The interpreter to use.", change="restart", since="later")] = None
    container: A[Any, Option(PLAIN, "A container to run in.", change="restart", since="later")] = None
    image_uri: A[Any, Option(PLAIN, "An image to run in.", change="restart", since="later")] = None
    nsight: A[Any, Option(PLAIN, "Profile with Nsight.", change="restart", since="later")] = None
    worker_process_setup_hook: A[
        Any, Option(target(none=True), "Called when the process starts.", change="restart", since="later")
    ] = None
    config: A[Any, Option(PLAIN, "Options of the set-up itself.", change="restart", since="later")] = None


class RayActorOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Resources of one replica. On one machine they are recorded, and no application ever waits for them."""

    num_cpus: A[
        float | None,
        Option(number(0, none=True), "CPUs of one replica; OMP_NUM_THREADS follows it.", "CPUs", "restart"),
    ] = None
    num_gpus: A[float | None, Option(number(0, none=True), "GPUs of one replica.", "GPUs", "restart")] = None
    memory: A[float | None, Option(number(0, none=True), "Memory of one replica.", "bytes", "restart")] = None
    resources: A[
        dict[str, float], Option(mapping(number(0)), "Own resources of one replica, by name.", change="restart")
    ] = {}
    runtime_env: A[
        RuntimeEnv, Option(struct(RuntimeEnv), "Surroundings of the replica's process.", change="restart")
    ] = RuntimeEnv()
    accelerator_type: A[str | None, Option(text(none=True), "Kind of GPU needed.", change="restart", since="later")] = (
        None
    )
    label_selector: A[
        dict[str, str], Option(mapping(text()), "Labels a node must have.", change="restart", since="later")
    ] = {}
    fallback_strategy: A[
        list[Any], Option(listing(PLAIN), "Other selectors to try.", change="restart", since="later")
    ] = []


_NAMED_ROUTER = target(none=True)
_TWO_CHOICES = (
    "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter"  # a file of Ray Serve may spell it out
)


def _read_router(value: Any) -> Any:
    is_default = isinstance(value, str) and value.replace(":", ".") == _TWO_CHOICES.replace(":", ".")
    return None if is_default else _NAMED_ROUTER.read(value)


class RequestRouterConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who chooses the replica of a request."""

    request_router_class: A[
        str | None,
        Option(
            replace(_NAMED_ROUTER, read=_read_router),
            "Class with a method choose(); None: two random choices, by load.",
        ),
    ] = None
    request_router_kwargs: A[dict[str, Any], Option(mapping(PLAIN), "Its keyword arguments.")] = {}
    request_routing_stats_period_s: A[
        float, Option(number(0, above=True), "How often replicas are asked for statistics.", "s", since="later")
    ] = 10.0
    request_routing_stats_timeout_s: A[
        float, Option(number(0, above=True), "How long such a question may take.", "s", since="later")
    ] = 30.0
    initial_backoff_s: A[float, Option(number(0), "First pause between tries.", "s", since="later")] = 0.025
    backoff_multiplier: A[float, Option(number(1), "Growth of the pause.", since="later")] = 2.0
    max_backoff_s: A[float, Option(number(0), "Longest pause.", "s", since="later")] = 0.5

    def contradictions(self) -> Iterator[tuple[str, str]]:
        if self.max_backoff_s < self.initial_backoff_s:
            yield "max_backoff_s", f"a number >= initial_backoff_s, which is {self.initial_backoff_s:g}"


class GangSchedulingConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """Replicas that start and fail in groups."""

    gang_size: A[int, Option(whole(1), "Replicas of one group.", "replicas", "restart", "later")] = 1
    gang_placement_strategy: A[
        Literal["PACK", "SPREAD"], Option(one_of("PACK", "SPREAD"), "Near or apart.", change="restart", since="later")
    ] = "PACK"
    runtime_failure_policy: A[
        Literal["RESTART_GANG"], Option(one_of("RESTART_GANG"), "What a failure does.", change="restart", since="later")
    ] = "RESTART_GANG"


class LoggingConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """Logs of one deployment."""

    encoding: A[
        Literal["TEXT", "JSON"], Option(one_of("TEXT", "JSON"), "Form of a line.", change="reconfigure", since="later")
    ] = "TEXT"
    log_level: A[
        str | int,
        Option(
            one_of("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG", 10, 20, 30, 40, 50),
            "Least level that is written.",
            change="reconfigure",
            since="later",
        ),
    ] = "INFO"
    logs_dir: A[str | None, Option(text(none=True), "Folder of the files.", change="reconfigure", since="later")] = None
    enable_access_log: A[bool, Option(TRUTH, "A line per request.", change="reconfigure", since="later")] = True
    additional_log_standard_attrs: A[
        list[str], Option(listing(text()), "More attributes of a record.", change="reconfigure", since="later")
    ] = []


class DeploymentActor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A companion of a deployment that all its replicas share."""

    name: A[str, Option(text(empty=False), "Its name, unique in the deployment.", change="restart", since="later")]
    actor_class: A[str, Option(target(), "Its class.", change="restart", since="later")]
    init_args: A[list[Any], Option(listing(PLAIN), "Its arguments.", change="restart", since="later")] = []
    init_kwargs: A[dict[str, Any], Option(mapping(PLAIN), "Its arguments.", change="restart", since="later")] = {}
    actor_options: A[dict[str, Any], Option(mapping(PLAIN), "Its resources.", change="restart", since="later")] = {}


# -- the options of a deployment --------------------------------------------------------------------


class DeploymentOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """All options of one deployment, checked; made by ``deployment_options`` only."""

    name: A[str | None, Option(NAME, "Name in the application; None: that of the class or function.")] = None
    num_replicas: A[
        int | Literal["auto"],
        Option(whole(1, also=("auto", None)), "How many replicas run; 'auto' scales with the load.", "replicas"),
    ] = 1
    max_ongoing_requests: A[
        int, Option(whole(1), "Requests that one replica works on at a time; others wait.", "requests", "reconfigure")
    ] = 5
    max_queued_requests: A[
        int, Option(whole(1, also=(-1,)), "Requests that may wait in one proxy or caller; -1: no limit.", "requests")
    ] = -1
    backpressure_config: A[
        BackpressureConfig, Option(struct(BackpressureConfig), "What a client is told when the queue is full.")
    ] = BackpressureConfig()
    retry: A[
        int | dict[str, int],
        Option(
            either(whole(0, RETRIES_MAX), mapping(whole(0, RETRIES_MAX))),
            "How often a call whose replica died under it may be executed again; for all methods, or by method.",
            "times",
        ),
    ] = 0
    user_config: A[
        Any, Option(PLAIN, "Passed to the class's reconfigure() at start and on change.", change="reconfigure")
    ] = None
    max_threads: A[
        int,
        Option(whole(1, 1024), "Threads for `def` handlers; 1: one at a time per replica.", "threads", "reconfigure"),
    ] = 1
    loop_block_warning_s: A[
        float | None,
        Option(
            number(0, none=True),
            "A handler that keeps the event loop from turning for longer is named in log and status; None or 0: off.",
            "s",
            "reconfigure",
        ),
    ] = 0.25
    graceful_shutdown_timeout_s: A[
        float,
        Option(number(0), "Time for ongoing requests before a stopping replica is killed.", "s", "reconfigure"),
    ] = 20.0
    graceful_shutdown_wait_loop_s: A[
        float, Option(number(0), "Accepted and not needed: a replica ends when its last request does.", "s")
    ] = 2.0
    health_check_period_s: A[
        float, Option(number(0, above=True), "How often the class's check_health() is called.", "s", "reconfigure")
    ] = 10.0
    health_check_timeout_s: A[
        float,
        Option(
            number(0, above=True),
            "A strike: check_health() did not end, or the event loop did not turn, for this long. "
            "Three in a row, and the replica is replaced.",
            "s",
            "reconfigure",
        ),
    ] = 30.0
    max_constructor_retry_count: A[
        int, Option(whole(1), "Failed starts in a row until it is given up; at most 3 per replica.", "starts")
    ] = 20
    ray_actor_options: A[
        RayActorOptions, Option(struct(RayActorOptions), "Resources and environment of a replica.", change="restart")
    ] = RayActorOptions()
    autoscaling_config: A[
        AutoscalingConfig | None, Option(struct(AutoscalingConfig, none=True), "Scale with the load.")
    ] = None
    placement_group_bundles: A[
        list[dict[str, float]] | None,
        Option(listing(mapping(number(0)), none=True, least=1), "Resources per replica.", "", "restart", "later"),
    ] = None
    placement_group_strategy: A[
        str | None,
        Option(
            one_of("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD", None),
            "How the bundles are placed.",
            change="restart",
            since="later",
        ),
    ] = None
    placement_group_bundle_label_selector: A[
        list[dict[str, str]] | None,
        Option(listing(mapping(text()), none=True, least=1), "Labels per bundle, or for all.", "", "restart", "later"),
    ] = None
    max_replicas_per_node: A[
        int | None, Option(whole(1, 100, also=(None,)), "Replicas on one node at most.", "replicas", "restart", "later")
    ] = None
    gang_scheduling_config: A[
        GangSchedulingConfig | None,
        Option(struct(GangSchedulingConfig, none=True), "Replicas in groups.", change="restart", since="later"),
    ] = None
    deployment_actors: A[
        list[DeploymentActor] | None,
        Option(listing(struct(DeploymentActor), none=True), "Companions.", change="restart", since="later"),
    ] = None
    request_router_config: A[
        RequestRouterConfig | None,
        Option(struct(RequestRouterConfig, none=True), "Who chooses the replica of a request."),
    ] = None
    logging_config: A[
        LoggingConfig | None, Option(struct(LoggingConfig, none=True), "Logs.", change="reconfigure", since="later")
    ] = None
    rolling_update_percentage: A[float, Option(number(0, 1, above=True), "Share of replicas replaced at a time.")] = 0.2
    max_surge_percent: A[int, Option(whole(0, 100), "Replicas above the wanted number during an update.", "%")] = 0

    @property
    def env_vars(self) -> dict[str, str]:
        """Environment variables that the replica sets before it imports user code."""
        return self.ray_actor_options.runtime_env.env_vars

    @property
    def replicas(self) -> int:
        """How many replicas this version runs; where it scales with the load: at its first deploy."""
        if self.autoscaling_config is not None:
            return self.autoscaling_config.first
        return 1 if self.num_replicas == "auto" else self.num_replicas

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Pairs (option, what it takes beside the others), for options that cannot stand together."""
        bundles, selectors = self.placement_group_bundles, self.placement_group_bundle_label_selector
        gang, scaling = self.gang_scheduling_config, self.autoscaling_config
        aim = scaling.aim if scaling is not None else None
        if aim is not None and aim > self.max_ongoing_requests:
            takes = f"a number of at most max_ongoing_requests, which is {self.max_ongoing_requests}"
            yield "autoscaling_config.target_ongoing_requests", f"{takes}: full replicas would count as few requests"
        if self.placement_group_strategy and not bundles:
            yield "placement_group_strategy", "None without placement_group_bundles"
        if selectors and not bundles:
            yield "placement_group_bundle_label_selector", "None without placement_group_bundles"
        if selectors and bundles and len(selectors) not in (1, len(bundles)):
            yield "placement_group_bundle_label_selector", f"one entry, or one for each of {len(bundles)} bundles"
        if self.max_replicas_per_node is not None and bundles:
            yield "max_replicas_per_node", "None together with placement_group_bundles"
        if gang and self.max_replicas_per_node is not None:
            yield "max_replicas_per_node", "None together with gang_scheduling_config"
        if gang and self.placement_group_strategy:
            yield "placement_group_strategy", "None together with gang_scheduling_config"
        if gang and self.replicas % gang.gang_size and self.num_replicas != "auto":
            yield "num_replicas", f"a multiple of gang_size, which is {gang.gang_size}"
        names = [actor.name for actor in self.deployment_actors or ()]
        if len(set(names)) < len(names):
            yield "deployment_actors", "companions with different names"


_INSTEAD = {  # names of earlier days, and what to do today
    "version": "leave it out; Skate sees for itself what has changed",
    "max_concurrent_queries": "use max_ongoing_requests",
    "route_prefix": "pass route_prefix to serve.run, or write it into the application's entry of the file",
    "init_args": "pass the arguments to .bind()",
    "init_kwargs": "pass the arguments to .bind()",
    "prev_version": "leave it out; Skate sees for itself what has changed",
    "_autoscaling_config": "use autoscaling_config",
    "num_cpus": "put it into ray_actor_options={'num_cpus': ...}",
    "num_gpus": "put it into ray_actor_options={'num_gpus': ...}",
    "runtime_env": "put it into ray_actor_options={'runtime_env': ...}",
    "target_num_ongoing_requests_per_replica": "use autoscaling_config={'target_ongoing_requests': ...}",
}


def deployment_options(
    given: Mapping[str, Any],
    base: DeploymentOptions | None = None,
    where: str = "@serve.deployment",
    stacklevel: int = 2,
) -> DeploymentOptions:
    """Check keyword options and lay them over ``base``.

    ``where`` names the place in messages; ``stacklevel`` leads warnings to the user's line (2: the caller of this;
    0: no warnings).
    Raises ``OptionError``; warns with ``NotYetWarning`` once for all given options that have no effect yet.
    """
    declared = options_of(DeploymentOptions)
    for key in given:
        if key in _INSTEAD:
            raise OptionError(f"{where}: there is no option {key!r} today; {_INSTEAD[key]}.")
        if key not in declared:
            raise OptionError(f"{where}: {key}={shown(given[key])}: {unknown_hint(key, declared)}.")
    read = {key: read_option(where, key, declared[key].check, value) for key, value in given.items()}
    _settle_number(read, given, where)
    made = msgspec.structs.replace(base or DeploymentOptions(), **read)
    if made.num_replicas == "auto" and made.autoscaling_config is None:  # it was taken away
        made = msgspec.structs.replace(made, num_replicas=1)
    try:
        refuse_contradictions(made)
    except Refused as refused:
        raise OptionError(f"{where}: {refused.path}={shown(refused.value)}: {refused.sentence}.") from None
    idle = list(_without_effect(read)) if stacklevel else []
    if idle:
        warnings.warn(
            f"{where}: {', '.join(idle)}: accepted and checked, but without effect in this version of Skate.",
            NotYetWarning,
            stacklevel=stacklevel,
        )
    return made


def _settle_number(read: dict[str, Any], given: Mapping[str, Any], where: str) -> None:
    """num_replicas and autoscaling_config exclude each other in one place; the later place wins over the earlier."""
    scaling = read.get("autoscaling_config")
    if isinstance(given.get("num_replicas"), int) and scaling is not None:
        raise OptionError(
            f"{where}: num_replicas={given['num_replicas']} contradicts autoscaling_config; give one of the two, "
            "or num_replicas='auto' with autoscaling_config."
        )
    automatic = read.get("num_replicas") == "auto"
    if "num_replicas" in read and read["num_replicas"] is None:
        read["num_replicas"] = 1
    if automatic and scaling is None:
        scaling = AutoscalingConfig()
    if scaling is None:
        if "num_replicas" in read:
            read.setdefault("autoscaling_config", None)
        return
    if scaling.max_replicas is None:
        scaling = msgspec.structs.replace(scaling, max_replicas=AUTO_MAX_REPLICAS if automatic else 1)
        try:
            refuse_contradictions(scaling, "autoscaling_config.")
        except Refused as refused:
            raise OptionError(f"{where}: {refused.path}={shown(refused.value)}: {refused.sentence}.") from None
    read.update(num_replicas="auto", autoscaling_config=scaling)


def _without_effect(read: Mapping[str, Any]) -> Iterator[str]:
    declared = options_of(DeploymentOptions)
    for key, value in read.items():
        if value == declared[key].default:
            continue
        elif declared[key].since == "later":
            yield key
        elif isinstance(value, RayActorOptions | RequestRouterConfig):
            yield from _groups_without_effect(key, value)


def _groups_without_effect(path: str, group: msgspec.Struct) -> Iterator[str]:
    for name, option in options_of(type(group)).items():
        value = getattr(group, name)
        if option.since == "later" and value != option.default:
            yield f"{path}[{name!r}]"
        elif isinstance(value, msgspec.Struct):
            yield from _groups_without_effect(f"{path}[{name!r}]", value)


def restart_options(options: DeploymentOptions) -> dict[str, Any]:
    """Options whose change only a new process sees, as far as they differ from their default (part of ``version``)."""
    return _that(options, "restart")


def reconfigure_options(options: DeploymentOptions) -> dict[str, Any]:
    """Options that a running replica takes up, as far as they differ from their default (``config`` is their hash)."""
    return _that(options, "reconfigure")


def _that(options: DeploymentOptions, change: Change) -> dict[str, Any]:
    """As plain data. Defaults are left out, so that an option added to Skate later changes no hash."""
    declared = options_of(DeploymentOptions)
    plain = without_defaults(options)
    return {name: plain[name] for name in sorted(plain) if declared[name].change == change}


# -- the options of an instance, and of an application ----------------------------------------------


def _read_root_path(value: Any) -> Any:
    if isinstance(value, str) and (not value or (value.startswith("/") and not value.endswith("/"))):
        return value
    raise Refused("'' or a path that begins with '/' and does not end with it, such as '/models'")


HTTP_OPTIONS: dict[str, Option] = {  # defaults stand in core.specs.HttpOptions
    "host": Option(text(empty=False), "Address to listen on; '0.0.0.0' for all.", change="restart"),
    "port": Option(whole(0, 65535), "Port to listen on; 0 takes a free one.", change="restart"),
    "root_path": Option(
        Check("a path such as '/models', or ''", _read_root_path), "Prefix that a proxy in front has cut off."
    ),
    "request_timeout_s": Option(number(0, above=True, none=True), "Longest time for one request; None: no limit.", "s"),
    "keep_alive_timeout_s": Option(number(0, above=True), "Idle connections are closed after this.", "s"),
    "max_body_bytes": Option(whole(1), "Larger request bodies are refused with 413.", "bytes"),
    "show_traceback": Option(TRUTH, "Put the traceback of user errors into the body of a 500."),
}
ADMIN_OPTIONS: dict[str, Option] = {  # of the REST API; read by core.admin_options, defaults stand in AdminOptions
    "host": Option(text(empty=False), "Address of the REST API; any but the loopback needs a token."),
    "port": Option(whole(0, 65535), "Its port; 0 takes a free one."),
    "token_file": Option(text(none=True), "File with the token that its requests must bear; else SKATE_ADMIN_TOKEN."),
}
_HTTP_INSTEAD = {
    "location": "on one machine there is one proxy; leave it out",
    "num_cpus": "leave it out; proxies reserve nothing",
    "middlewares": "add middleware to the FastAPI or Starlette app given to serve.ingress",
    "root_url": "leave it out; it follows from host, port and root_path",
    **dict.fromkeys(
        ("ssl_keyfile", "ssl_certfile", "ssl_keyfile_password", "ssl_ca_certs"),
        "TLS comes with a later version; until then put a proxy that ends TLS in front",
    ),
}


def check_http_options(given: Mapping[str, Any], where: str = "http_options") -> dict[str, Any]:
    """Check options of the HTTP server; what comes back fits ``specs.HttpOptions(**...)``. Raises ``OptionError``."""
    for key, value in given.items():
        if key in _HTTP_INSTEAD:
            raise OptionError(f"{where}: there is no option {key!r} here; {_HTTP_INSTEAD[key]}.")
        if key not in HTTP_OPTIONS:
            raise OptionError(f"{where}: {key}={shown(value)}: {unknown_hint(key, HTTP_OPTIONS)}.")
    return {key: read_option(where, key, HTTP_OPTIONS[key].check, value) for key, value in given.items()}


def check_route_prefix(prefix: Any, where: str = "serve.run") -> str | None:
    """Check the prefix under which HTTP reaches an application; None: not reachable. Raises ``OptionError``."""
    if prefix is None:
        return None
    if not isinstance(prefix, str):
        raise OptionError(f"{where}: route_prefix={shown(prefix)}: takes a path such as '/api', or None for no HTTP.")
    right = "/" + "/".join(part for part in prefix.strip().split("/") if part)
    wrong = ""
    if bad := sorted({sign for sign in right if sign in "{}?#\\" or sign.isspace() or not sign.isprintable()}):
        wrong = f"must be a plain path such as '/api', without {' '.join(map(repr, bad))}"
    elif right == "/-" or right.startswith("/-/"):
        wrong = "must not begin with '/-', which is the proxy's own (/-/healthz, /-/routes)"
    elif not prefix.startswith("/"):
        wrong = f"must begin with '/'; write {right!r}"
    elif prefix != right:
        wrong = f"must not end with '/' or hold empty parts; write {right!r}"
    if wrong:
        raise OptionError(f"{where}: route_prefix={shown(prefix)}: {wrong}.")
    return prefix


def check_name(name: Any, what: str = "application", where: str = "serve.run") -> str:
    """Check the name of an application. Raises ``OptionError``."""
    if problem := name_problem(name):
        raise OptionError(f"{where}: name={shown(name)}: the name of the {what} {problem}.")
    return str(name)
