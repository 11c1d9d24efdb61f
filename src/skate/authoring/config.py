"""Config files and what REST sends in their place: read into a ``ServeConfig``, or every mistake said at once.

Law: what a key takes is declared once, in ``core.options`` or in the tables below; nothing is dropped silently and
nothing is guessed. A mistake names file, line, column, place, value, what is right, and the nearest right name; a key
that is right elsewhere is told where. Keys are Ray Serve's, so that its files can be deployed as they are; what means
nothing on one machine is named in a warning.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from skate.authoring.document import Document, Steps, decoded, parse, place
from skate.core.checks import (
    PLAIN,
    TRUTH,
    Check,
    Option,
    Refused,
    listing,
    mapping,
    number,
    one_of,
    options_of,
    shown,
    struct,
    text,
    unknown_hint,
    whole,
)
from skate.core.config import AppConfig, ServeConfig
from skate.core.errors import OptionError
from skate.core.ids import name_problem
from skate.core.options import (
    HTTP_OPTIONS,
    AutoscalingPolicy,
    DeploymentOptions,
    LoggingConfig,
    RuntimeEnv,
    check_http_options,
    check_route_prefix,
    deployment_options,
)

APPLICATIONS_MAX = 1000
DEFAULT_NAME = "default"

logger = logging.getLogger("skate.config")


# -- what a file may say ----------------------------------------------------------------------------


def _read_name(value: Any) -> Any:
    if problem := name_problem(value):
        raise Refused("", wrong=f"the name {problem}")
    return value


def _read_prefix(value: Any) -> Any:
    try:
        return check_route_prefix(value, "")
    except OptionError as error:
        raise Refused("", wrong=str(error).removeprefix(f": route_prefix={shown(value)}: ").rstrip(".")) from None


def _read_import_path(value: Any) -> Any:
    takes = "an import path such as package.module:app"
    if not isinstance(value, str) or not value:
        raise Refused(takes)
    if value.count(":") > 1:
        raise Refused("", wrong=f"has more than one colon; it takes {takes}")
    if value.endswith(".py") or "/" in value or ".py:" in value:
        right = value.replace(".py", "").removeprefix("./").replace("/", ".").strip(".")
        raise Refused("", wrong=f"names a file; write it as a module: {right if ':' in right else right + ':app'}")
    module, _, attribute = value.partition(":") if ":" in value else value.rpartition(".")
    if not module or not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise Refused(takes)
    return f"{module}:{attribute}"


_PREFIX_SCHEMA = {"anyOf": [{"type": "string", "pattern": "^/([^{}?#\\\\\\s]*[^/{}?#\\\\\\s])?$"}, {"type": "null"}]}
_NAME = Check("a name", _read_name, {"type": "string", "minLength": 1, "pattern": "^[^#/\\\\]+$"})

APPLICATION: dict[str, Option] = {
    "name": Option(_NAME, "Name of the application; unique in the instance.", default=DEFAULT_NAME),
    "route_prefix": Option(
        Check("a path such as '/api', or None for no HTTP", _read_prefix, _PREFIX_SCHEMA),
        "Where HTTP finds the application; null: nowhere.",
        default="/",
    ),
    "import_path": Option(
        Check("an import path", _read_import_path, {"type": "string", "pattern": "^[^:]+(:[^:]+)?$"}),
        "Leads to a bound deployment, or to a function that builds one: package.module:app.",
    ),
    "args": Option(mapping(PLAIN, none=True), "Arguments of the function that builds the application.", default={}),
    "runtime_env": Option(
        struct(RuntimeEnv), "Surroundings of the application: env_vars, and working_dir, a folder.", default={}
    ),
    "autoscaling_policy": Option(
        struct(AutoscalingPolicy, none=True), "Decides for all deployments of the application.", since="later"
    ),
    "logging_config": Option(struct(LoggingConfig, none=True), "For deployments that have none.", since="later"),
    "external_scaler_enabled": Option(TRUTH, "Somebody outside sets numbers of replicas by REST.", default=False),
    "deployments": Option(
        Check("a list of mappings, each with a name and options", lambda value: value),
        "Options over those in the code, by name of the deployment.",
        default=[],
    ),
}
GRPC_OPTIONS: dict[str, Option] = {
    "port": Option(whole(0, 65535), "Port of gRPC.", since="later", default=9000),
    "grpc_servicer_functions": Option(listing(text()), "Import paths of servicers.", since="later", default=[]),
    "request_timeout_s": Option(number(0, above=True, none=True), "Longest time for one call.", "s", since="later"),
    "enable_reflection": Option(TRUTH, "Whether clients may ask what there is.", since="later", default=True),
}
_LOCATIONS = ("EveryNode", "HeadOnly", "Disabled", "NoServer")
FILE: dict[str, Option] = {
    "proxy_location": Option(one_of(*_LOCATIONS, None), "Disabled: no HTTP. Others mean nothing on one machine."),
    "http_options": Option(Check("a mapping of options", lambda value: value), "Of the HTTP server.", default={}),
    "grpc_options": Option(
        Check("a mapping of options", lambda value: value), "Of the gRPC server.", since="later", default={}
    ),
    "controller_options": Option(mapping(PLAIN, none=True), "Means nothing on one machine."),
    "tracing_config": Option(mapping(PLAIN, none=True), "Of traces.", since="later"),
    "logging_config": Option(struct(LoggingConfig, none=True), "For applications that have none.", since="later"),
    "target_capacity": Option(number(0, 100, none=True), "Scales the replicas of everything; null: 100.", "%"),
    "applications": Option(Check("a list of applications", lambda value: value), "What shall run."),
}
HTTP_ELSEWHERE: dict[str, Option] = {  # of Ray Serve's servers; accepted where they say nothing that matters here
    "location": Option(one_of(*_LOCATIONS, None), "Means nothing on one machine."),
    "num_cpus": Option(number(0, none=True), "Means nothing here; proxies reserve nothing."),
    "root_url": Option(text(none=True), "Means nothing here; it follows from host, port and root_path."),
}
HTTP_WITHOUT_VALUE = ("middlewares", "ssl_keyfile", "ssl_certfile", "ssl_keyfile_password", "ssl_ca_certs")
ONE_MACHINE = (
    *("controller_options", "proxy_location"),
    *("placement_group_bundles", "placement_group_strategy", "placement_group_bundle_label_selector"),
    *("max_replicas_per_node", "label_selector", "fallback_strategy", "accelerator_type"),
)


# -- doors ------------------------------------------------------------------------------------------


def read_file(path: str, environment: Mapping[str, str]) -> tuple[ServeConfig, list[str]]:
    """Reads a YAML file, or a JSON file by its ending; the config and warnings, each one line.

    ``environment``: what ``${NAME}`` in its values is taken from. Folders in it are relative to the file.
    Raises ConfigError with all mistakes, and OSError where the file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(1 << 21)
    shown_path = os.path.relpath(path) if not os.path.relpath(path).startswith("..") else path
    content = decoded(data, shown_path)
    return read_text(content, environment, shown_path, os.path.dirname(os.path.abspath(path)), path.endswith(".json"))


def read_text(
    content: str,
    environment: Mapping[str, str] | None,
    name: str = "config",
    folder: str | None = None,
    as_json: bool = False,
) -> tuple[ServeConfig, list[str]]:
    """The same for a text. ``folder``: what folders in it are relative to; None: they must be absolute."""
    document = parse(content, name, environment, as_json=as_json)
    return _Reading(document, folder).config()


def read_plain(given: Mapping[str, Any], where: str = "config", folder: str | None = None) -> ServeConfig:
    """The same for values that came as such (REST); ``${NAME}`` has no meaning in them. Warnings go to the log."""
    config, notes = _Reading(Document(where, dict(given) if isinstance(given, Mapping) else given), folder).config()
    for note in notes:
        logger.warning("%s", note)
    return config


def plain(config: ServeConfig) -> dict[str, Any]:
    """The config in the shape of a file; reading it gives an equal config."""
    said: dict[str, Any] = msgspec.to_builtins(config)
    applications = []
    for app in config.applications:
        one: dict[str, Any] = {"name": app.name, "route_prefix": app.route_prefix, "import_path": app.import_path}
        one |= {key: value for key, value in msgspec.to_builtins(app).items() if key not in one}
        if app.deployments:
            one["deployments"] = [{"name": name, **options} for name, options in app.deployments.items()]
        applications.append(one)
    return {**{key: said[key] for key in FILE if key in said}, "applications": applications}


# -- one reading ------------------------------------------------------------------------------------


class _Reading:
    """Checks one document from the top down; mistakes go into the document, what has no meaning into notes."""

    def __init__(self, document: Document, folder: str | None) -> None:
        self.document = document
        self.folder = folder
        self.alone: list[Steps] = []  # keys without meaning on one machine
        self.later: list[Steps] = []  # keys without effect in this version

    def config(self) -> tuple[ServeConfig, list[str]]:
        value = self.document.value
        if not isinstance(value, Mapping):
            kind = "a list" if isinstance(value, list) else shown(value)
            self.document.wrong((), f"takes a mapping with the key applications at the top, not {kind}")
            self.document.refuse_mistakes()
        said = {key: one for key, one in value.items() if not str(key).startswith("x-")}  # a place for anchors
        read = self.options((), said, FILE)
        if "applications" not in said and not self.document.mistakes:
            self.document.wrong((), "lacks applications, the list of what shall run")
        http = self.http(said.get("http_options"))
        grpc = self.mapping(("grpc_options",), said.get("grpc_options"), GRPC_OPTIONS)
        applications = self.applications(said.get("applications", []))
        self.document.refuse_mistakes()
        config = ServeConfig(
            applications=tuple(applications),
            http_options=http,
            grpc_options=grpc,
            logging_config=said.get("logging_config"),
            proxy_location="Disabled" if read.get("proxy_location") == "NoServer" else read.get("proxy_location"),
            target_capacity=read.get("target_capacity"),
        )
        return config, self.notes()

    def notes(self) -> list[str]:
        """One line for each kind of what will not be obeyed."""
        return [
            f"{self.document.name}: {why}: {', '.join(map(self.located, found))}."
            for why, found in (
                ("has no meaning on one machine and is left aside", self.alone),
                ("has no effect in this version of Skate", self.later),
            )
            if found
        ]

    def located(self, steps: Steps) -> str:
        line = self.document.line(steps)
        return f"{place(steps)} (line {line})" if line else place(steps)

    # -- any group of options -----------------------------------------------------------------------

    def options(
        self, steps: Steps, given: Mapping[str, Any], declared: Mapping[str, Option], note: bool = True
    ) -> dict[str, Any]:
        """The values that are right, in normal form."""
        read: dict[str, Any] = {}
        for key, value in given.items():
            here = (*steps, str(key))
            if self.document.hopeless:
                self.document.refuse_mistakes()
            if key not in declared:
                self.document.wrong(here, f"={shown(value)}: {_unknown(here, str(key), declared)}", key=True)
                continue
            option = declared[key]
            before = len(self.document.mistakes)
            group = option.check.group
            if group is not None and isinstance(value, Mapping):
                self.options(here, value, options_of(group), note and option.since == "now")
            if len(self.document.mistakes) == before:
                self.one(here, option.check, value, read)
            if note:
                self.note(here, option, value)
        return read

    def one(self, here: Steps, check: Check, value: Any, read: dict[str, Any]) -> None:
        try:
            read[str(here[-1])] = check.read(value)
        except Refused as refused:
            inner = (*here, *_steps(refused.path))
            bad = refused.value if refused.path else value
            self.document.wrong(inner, f"={shown(bad)}: {refused.sentence}{_quote(refused, bad)}")

    def note(self, here: Steps, option: Option, value: Any) -> None:
        if here[-1] in ONE_MACHINE:
            if value not in (None, "Disabled", "NoServer"):
                self.alone.append(here)
        elif option.since == "later" and value != option.default:
            self.later.append(here)

    def mapping(self, steps: Steps, given: Any, declared: Mapping[str, Option]) -> dict[str, Any]:
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            self.document.wrong(steps, f"={shown(given)}: takes a mapping of options")
            return {}
        return self.options(steps, given, declared, note=False)

    # -- HTTP ---------------------------------------------------------------------------------------

    def http(self, given: Any) -> dict[str, Any]:
        steps: Steps = ("http_options",)
        if not isinstance(given, Mapping):
            return self.mapping(steps, given, HTTP_OPTIONS)
        ours: dict[str, Any] = {}
        for key, value in given.items():
            if key in HTTP_ELSEWHERE:
                self.one((*steps, key), HTTP_ELSEWHERE[key].check, value, {})
                self.alone.append((*steps, key))
            elif key in HTTP_WITHOUT_VALUE and value in (None, []):
                continue  # says that there is none, which is so
            elif key in HTTP_WITHOUT_VALUE:
                try:
                    check_http_options({key: value}, "-")
                except OptionError as error:
                    self.told(steps, error, key)
            else:
                ours[key] = value
        return self.options(steps, ours, HTTP_OPTIONS)

    def told(self, steps: Steps, error: OptionError, key: str = "") -> None:
        """Notes a mistake that another floor found; it calls the place ``-``."""
        said = str(error).removeprefix("-: ")
        named = re.match(r"([a-z_]\w*)(?=[.=\[])", said)
        at = (*steps, key or (named[1] if named else "")) if key or named else steps
        self.document.wrong_at(self.document.spot(at, key=bool(key)), f"{place(steps)}: {said}")

    # -- applications -------------------------------------------------------------------------------

    def applications(self, given: Any) -> list[AppConfig]:
        if not isinstance(given, list):
            self.document.wrong(("applications",), f"={shown(given)}: takes a list of applications: - name: ...")
            return []
        if len(given) > APPLICATIONS_MAX:
            said = f": holds {len(given)} applications; {APPLICATIONS_MAX} is the limit"
            self.document.wrong(("applications",), said)
            return []
        found = [self.application(("applications", index), one) for index, one in enumerate(given)]
        self.unique(given, "name", DEFAULT_NAME, "an application of its own has a name of its own")
        self.unique(given, "route_prefix", "/", "each needs its own; null: no HTTP")
        return [one for one in found if one is not None]

    def unique(self, given: list[Any], key: str, default: str, way_out: str) -> None:
        seen: dict[Any, int] = {}
        for index, one in enumerate(given):
            value = one.get(key, default) if isinstance(one, Mapping) else None
            if not isinstance(value, str):
                continue
            if value in seen:
                here, there = ("applications", index, key), ("applications", seen[value], key)
                line = self.document.spot(there)[0]
                also = f"application {seen[value]}" + (f" in line {line}" if line else "")
                unsaid = "" if key in one else " (which is what it is when nothing is said)"
                self.document.wrong(here, f"={shown(value)}{unsaid}: {also} has it too; {way_out}")
            seen.setdefault(value, index)

    def application(self, steps: Steps, given: Any) -> AppConfig | None:
        if not isinstance(given, Mapping):
            self.document.wrong(steps, f"={shown(given)}: takes a mapping with import_path")
            return None
        before = len(self.document.mistakes)
        said = {key: one for key, one in given.items() if not (one is None and key in ("runtime_env", "deployments"))}
        read = self.options(steps, said, APPLICATION)
        if "import_path" not in said:
            self.document.wrong(steps, ": lacks import_path, for example package.module:app")
        environment = self.runtime_env((*steps, "runtime_env"), said.get("runtime_env", {}))
        deployments = self.deployments((*steps, "deployments"), said.get("deployments", []))
        if read.get("external_scaler_enabled"):
            self.refuse_autoscaling(steps, deployments)
        if len(self.document.mistakes) > before:
            return None
        return AppConfig(
            name=read.get("name", DEFAULT_NAME),
            import_path=read["import_path"],
            route_prefix=read.get("route_prefix", "/"),
            args=read.get("args") or {},
            runtime_env=environment,
            deployments=deployments,
            logging_config=said.get("logging_config"),
            autoscaling_policy=said.get("autoscaling_policy"),
            external_scaler_enabled=read.get("external_scaler_enabled", False),
        )

    def refuse_autoscaling(self, steps: Steps, deployments: Mapping[str, Mapping[str, Any]]) -> None:
        for index, options in enumerate(deployments.values()):
            for key in ("autoscaling_config", "num_replicas"):
                value = options.get(key)
                if value == "auto" or (key == "autoscaling_config" and value is not None):
                    here = (*steps, "deployments", index, key)
                    way_out = "external_scaler_enabled says that somebody else scales; leave out one of the two"
                    self.document.wrong(here, f"={shown(value)}: {way_out}")

    def runtime_env(self, steps: Steps, given: Any) -> dict[str, Any]:
        """``working_dir`` becomes an absolute folder."""
        if not isinstance(given, Mapping):
            return {}
        environment = dict(given)
        here = (*steps, "working_dir")
        if here in self.later:
            self.later.remove(here)
        if isinstance(given.get("working_dir"), str):
            try:
                environment["working_dir"] = folder(given["working_dir"], self.folder)
            except Refused as refused:
                self.document.wrong(here, f"={shown(given['working_dir'])}: {refused.sentence}")
        return environment

    def deployments(self, steps: Steps, given: Any) -> dict[str, dict[str, Any]]:
        if not isinstance(given, list):
            self.document.wrong(steps, f"={shown(given)}: takes a list of mappings, each with a name: - name: ...")
            return {}
        found: dict[str, dict[str, Any]] = {}
        lines: dict[str, int] = {}
        for index, one in enumerate(given):
            here = (*steps, index)
            if not isinstance(one, Mapping) or not isinstance(one.get("name"), str):
                self.document.wrong(here, f"={shown(one)}: takes a mapping with the name of a deployment in the code")
                continue
            name = one["name"]
            options = {key: value for key, value in one.items() if key != "name"}
            self.deployment(here, name, options)
            if name in found:
                before = f", first in line {lines[name]}" if lines[name] else ""
                said = f"={shown(name)}: the application has two entries of this name{before}; make one of them"
                self.document.wrong((*here, "name"), said)
            found[name], lines[name] = options, self.document.line((*here, "name"))
        return found

    def deployment(self, steps: Steps, name: str, options: Mapping[str, Any]) -> None:
        before = len(self.document.mistakes)
        self.one((*steps, "name"), _NAME, name, {})
        self.options(steps, options, options_of(DeploymentOptions))
        if len(self.document.mistakes) == before:  # each by itself is right; are they right together?
            self.together(steps, options)

    def together(self, steps: Steps, options: Mapping[str, Any]) -> None:
        """Contradictions between options of the file; what depends on the code's options is seen once that is known."""
        try:
            deployment_options(options, where="-", stacklevel=0)
        except OptionError as error:
            involved = set(re.findall(r"\w+", str(error))) & options_of(DeploymentOptions).keys()
            if involved <= options.keys():
                self.told(steps, error)


# -- small things -----------------------------------------------------------------------------------


def folder(written: str, base: str | None) -> str:
    """A working_dir as an absolute folder of this machine. Raises ``Refused``."""
    path = written.removeprefix("local://").removeprefix("file://")
    if "://" in path or path.endswith((".zip", ".whl", ".jar")):
        raise Refused("", wrong="is an archive or lies elsewhere; unpack it on this machine and write that folder")
    if base is None and not os.path.isabs(path):
        raise Refused("", wrong="is relative, and there is no file that it could be relative to; write it from '/' on")
    found = os.path.normpath(os.path.join(base or "/", path))
    if not os.path.isdir(found):
        raise Refused("", wrong=f"there is no folder {found}")
    return found


_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|\[(['\"])(.*?)\3\]")


def _steps(path: str) -> Steps:
    """What ``Refused`` calls ``.env_vars['A'][0]``, as steps."""
    return tuple(int(m[2]) if m[2] else m[1] or m[4] for m in _STEP.finditer(path))


def _quote(refused: Refused, value: Any) -> str:
    """The way out for what YAML took for a number."""
    wants_text = refused.takes.startswith("a string") and isinstance(value, int | float)
    return f"; quote it: '{str(value).lower() if isinstance(value, bool) else value}'" if wants_text else ""


def _unknown(here: Steps, key: str, declared: Mapping[str, Option]) -> str:
    """What to say of a key that is not known here."""
    homes = [home for home in _homes().get(key, ()) if home != _home_of(here[:-1])]
    if homes:
        return f"does not belong here; write it {' or '.join(homes[:2])}"
    if declared is options_of(DeploymentOptions):  # it may be a name of earlier days
        try:
            deployment_options({key: None}, where="-", stacklevel=0)
        except OptionError as error:
            said = str(error).removeprefix("-: ").removeprefix(f"{key}=None: ").rstrip(".")
            if not said.startswith("no such option"):
                return said
    return unknown_hint(key, declared).replace("no such option", "there is no such key here", 1)


def _home_of(steps: Steps) -> str:
    """How a place is called where somebody is sent to it."""
    kinds = [step for step in steps if isinstance(step, str)]
    if not kinds:
        return "at the top of the file"
    return {
        "applications": "into an entry of applications",
        "deployments": "into an entry of the application's deployments",
    }.get(kinds[-1], f"into {kinds[-1]}")


@functools.cache
def _homes() -> dict[str, list[str]]:
    """Where each key belongs."""
    found: dict[str, list[str]] = {}

    def add(steps: Steps, declared: Mapping[str, Option]) -> None:
        for key, option in declared.items():
            homes = found.setdefault(key, [])
            if (home := _home_of(steps)) not in homes:
                homes.append(home)
            if option.check.group is not None:
                add((*steps, key), options_of(option.check.group))

    add(("applications", "deployments"), options_of(DeploymentOptions))
    add(("applications",), APPLICATION)
    add((), FILE)
    add(("http_options",), HTTP_OPTIONS)
    add(("grpc_options",), GRPC_OPTIONS)
    return found
