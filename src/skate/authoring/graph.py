"""From bound deployments to the plain value that is deployed: one AppSpec with everything a replica needs.

Law: ``build`` is a function of the graph; children come first, the root last, names are given bottom-up and from left
to right, and two builds of an unchanged graph give equal versions and configurations. A node is one deployment,
wherever it appears.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

import msgspec

from skate.authoring import code, sources
from skate.authoring.deployment import Application, Deployment
from skate.authoring.ingress import MARK
from skate.authoring.policy import made
from skate.core.checks import shown
from skate.core.errors import CodeError, GraphError, ImportPathError, OptionError
from skate.core.options import (
    AutoscalingPolicy,
    DeploymentOptions,
    check_name,
    check_route_prefix,
    reconfigure_options,
    restart_options,
)
from skate.core.specs import AppSpec, CodeRef, DeploymentSpec, HandleRef, Source

__all__ = ["Application", "build", "deployments", "nodes", "with_options"]

DEPLOYMENTS_MAX = 1000  # in one application; more is a mistake in a loop
SCRIPTS = ("__main__:", "__mp_main__:", "__main__.")  # what import paths into a running script begin with
_CONTAINERS = (list, tuple, dict, set, frozenset)


def build(
    app: Application[Any],
    name: str = "default",
    route_prefix: str | None = "/",
    sys_path: Iterable[str] | None = None,
    cwd: str | None = None,
) -> AppSpec:
    """Turn a bound deployment and all it refers to into an application.

    ``sys_path`` and ``cwd``: where replicas look for modules and stand; None takes those of this process.
    Raises ``TypeError`` for something that is not bound, ``OptionError`` for name, prefix and request router,
    ``GraphError`` for a graph that is none, ``CodeError`` for code and arguments that cannot travel.
    """
    _check_root(app)
    check_name(name)
    check_route_prefix(route_prefix)
    found = nodes(app)
    _check_ingresses(found, app)
    names = _names(found)
    refs = {node: HandleRef(app=name, deployment=names[node]) for node in found}
    texts = {node: sources.sources_of(code.module_of(node._deployment.func_or_class)) for node in found}
    return AppSpec(
        name=name,
        route_prefix=route_prefix,
        ingress=names[app],
        deployments=tuple(_spec(name, node, names[node], refs, texts[node], node is app) for node in found),
        sys_path=tuple(dict.fromkeys(sys_path if sys_path is not None else _search_path())),
        cwd=cwd if cwd is not None else os.getcwd(),
        sources=sources.merged(texts.values()),
    )


def nodes(root: Application[Any]) -> list[Application[Any]]:
    """Every node once: children before their parents, siblings from left to right, the root last."""
    done: dict[Application[Any], None] = {}
    stack: list[tuple[Application[Any], Iterator[Application[Any]]]] = [(root, _children(root))]
    entered = {root}
    while stack:
        node, children = stack[-1]
        child = next((child for child in children if child not in entered), None)
        if child is None:
            done[node] = None
            stack.pop()
            continue
        entered.add(child)
        if len(entered) > DEPLOYMENTS_MAX:
            raise GraphError(f"{root!r} refers to more than {DEPLOYMENTS_MAX} deployments.")
        stack.append((child, _children(child)))
    return list(done)


def _children(node: Application[Any]) -> Iterator[Application[Any]]:
    """Nodes among the arguments, in the order in which they are read; sets in the order of their iteration."""
    seen: set[int] = set()
    todo: list[Any] = [*node._args, *node._kwargs.values()][::-1]
    while todo:
        value = todo.pop()
        if isinstance(value, Application):
            yield value
        elif type(value) in _CONTAINERS and id(value) not in seen:
            seen.add(id(value))
            todo += list(value.values() if isinstance(value, dict) else value)[::-1]


def _check_root(app: object) -> None:
    if isinstance(app, Application):
        return
    if isinstance(app, Deployment):
        raise TypeError(f"{app.name} is a deployment that is not bound yet; pass {app.name}.bind(...).")
    if callable(app):
        called = getattr(app, "__name__", type(app).__name__)
        raise TypeError(f"{called} is no application; put @serve.deployment on it and pass {called}.bind(...).")
    raise TypeError(f"an application is what .bind(...) of a deployment returns, not {shown(app)}.")


def _check_ingresses(found: list[Application[Any]], root: Application[Any]) -> None:
    marked = [node for node in found if _is_asgi(node)]
    if len(marked) > 1:
        other = next(node for node in marked if node is not root)
        first = root if root in marked else marked[-1]
        raise GraphError(
            f"two classes of one application are made with serve.ingress, {_where(first)} and {_where(other)}; HTTP "
            "enters at one place only. Remove it from the one that is called through a handle, or run that one as an "
            "application of its own with another route_prefix."
        )


def _is_asgi(node: Application[Any]) -> bool:
    return getattr(node._deployment.func_or_class, MARK, None) is not None


def _where(node: Application[Any]) -> str:
    target: Any = node._deployment.func_or_class
    return f"{node._deployment.name!r} ({target.__module__}.{target.__qualname__})"


def _names(found: list[Application[Any]]) -> dict[Application[Any], str]:
    """Names the user gave stay as they are; the others are numbered from the second on: X, X_1, X_2."""
    owners: dict[str, Application[Any]] = {}
    for node in found:
        given = node._deployment.all_options.name
        if given is None:
            continue
        if given in owners:
            raise GraphError(
                f"two different deployments of one application have the name {given!r}: {owners[given]!r} of "
                f"{_where(owners[given])} and {node!r} of {_where(node)}. Give each its own name with "
                ".options(name='...'), or bind once and use that node twice."
            )
        owners[given] = node
    names = {node: name for name, node in owners.items()}
    taken, counts = set(owners), dict[str, int]()
    for node in found:
        if node not in names:
            base = node._deployment.name
            names[node] = _free_name(base, taken, counts)
            taken.add(names[node])
    return names


def _free_name(base: str, taken: set[str], counts: dict[str, int]) -> str:
    while True:
        count = counts.get(base, 0)
        counts[base] = count + 1
        name = f"{base}_{count}" if count else base
        if name not in taken:
            return name


def _spec(
    app: str,
    node: Application[Any],
    name: str,
    refs: dict[Application[Any], HandleRef],
    texts: dict[str, Source],
    root: bool,
) -> DeploymentSpec:
    target: Any = node._deployment.func_or_class
    options = node._deployment.all_options
    bare = DeploymentSpec(
        app=app,
        name=name,
        code=code.pack(target, name),
        init=_init_bytes(node, name, refs),
        options=options,
        kind="class" if isinstance(target, type) else "function",
        ingress=root,
        asgi=_is_asgi(node),
    )
    return with_options(bare, options, texts)


def with_options(spec: DeploymentSpec, options: DeploymentOptions, texts: dict[str, Source]) -> DeploymentSpec:
    """The same code with these options, and so of the version and configuration that both make.

    ``texts``: those that the code is made of (``sources.sources_of``). Raises ``OptionError``.
    """
    _check_request_router(spec.name, options)
    _check_autoscaling_policy(spec.name, options)
    version = _version(spec.code, texts, spec.init, restart_options(options))
    return msgspec.structs.replace(spec, options=options, version=version, config=_config(reconfigure_options(options)))


def deployments(root: Application[Any]) -> dict[str, Deployment[..., Any]]:
    """The deployments of an application, by the names that ``build`` gives them."""
    return {name: node._deployment for node, name in _names(nodes(root)).items()}


def _check_request_router(name: str, options: DeploymentOptions) -> None:
    """A class that routers could not load is refused here, where somebody reads the error."""
    config = options.request_router_config
    path = config.request_router_class if config is not None else None
    if config is None or path is None:
        return
    where = f"deployment {name!r}: request_router_config.request_router_class={shown(path)}"
    if path.startswith(SCRIPTS) or "<locals>" in path:
        raise OptionError(
            f"{where}: proxies cannot import it from a script or function; move the class to a module of its own."
        )
    try:
        found = code.resolve(path)
    except ImportPathError as error:
        raise OptionError(f"{where}: {error}") from error
    if not callable(getattr(found, "choose", None)):
        raise OptionError(
            f"{where}: has no method choose(call, candidates); derive it from skate.routers.RequestRouter."
        )
    try:
        found(**config.request_router_kwargs)
    except Exception as error:
        arguments = shown(config.request_router_kwargs)
        raise OptionError(f"{where}: it cannot be made with request_router_kwargs={arguments}: {error}") from error


def _check_autoscaling_policy(name: str, options: DeploymentOptions) -> None:
    """The same for a policy that the controller could not load or ask."""
    policy = options.autoscaling_config.policy if options.autoscaling_config is not None else AutoscalingPolicy()
    path = policy.policy_function
    if policy == AutoscalingPolicy():
        return
    where = f"deployment {name!r}: autoscaling_config.policy.policy_function={shown(path)}"
    if path.startswith(SCRIPTS) or "<" in path:
        raise OptionError(
            f"{where}: the controller cannot import it from a script or function; move it to a module of its own."
        )
    try:
        found = code.resolve(path)
    except ImportPathError as error:
        raise OptionError(f"{where}: {error}") from error
    try:
        made(found, policy.policy_kwargs)
    except Exception as error:
        arguments = shown(policy.policy_kwargs)
        raise OptionError(f"{where}: it cannot be used with policy_kwargs={arguments}: {error}.") from error


def _version(packed: CodeRef, texts: dict[str, Source], init: bytes, restart: dict[str, Any]) -> str:
    """What a replica is made of: another one needs a new process."""
    written = code.fingerprint(packed) + sources.fingerprint(texts)
    parts = (written, sha256(code.without_tracks(init)).digest(), sha256(_in_order(restart)).digest())
    return sha256(b"".join(parts)).hexdigest()


def _config(reconfigure: dict[str, Any]) -> str:
    """What a running replica can take up."""
    return sha256(_in_order(reconfigure)).hexdigest()


def _in_order(plain: dict[str, Any]) -> bytes:
    """The same bytes for equal values: the order in which somebody wrote the keys of a dict is no change."""
    return msgspec.msgpack.encode(plain, order="deterministic")


# -- arguments --------------------------------------------------------------------------------------


def _init_bytes(node: Application[Any], name: str, refs: dict[Application[Any], HandleRef]) -> bytes:
    exchange = _Exchange(refs)
    args = tuple(exchange(value) for value in node._args)
    kwargs = {key: exchange(value) for key, value in node._kwargs.items()}
    try:
        return code.dumps((args, kwargs))
    except CodeError as error:
        if isinstance(error.__cause__, GraphError):  # a node hidden in some object
            raise GraphError(f"deployment {name!r}: {error.__cause__}") from error
        raise CodeError(_unsendable(node, name, args, kwargs, error)) from error


def _unsendable(
    node: Application[Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], error: CodeError
) -> str:
    which, value, reason = "an argument", None, str(error)
    labelled = [(f"argument {place}", one) for place, one in enumerate(args, 1)]
    labelled += [(f"argument {key!r}", one) for key, one in kwargs.items()]
    for label, one in labelled:
        try:
            code.dumps(one)
        except CodeError as cause:
            which, value, reason = label, one, str(cause)
            break
    return (
        f"deployment {name!r}: {which} of {node._deployment.name}.bind, {shown(value)}, cannot be sent to a replica: "
        f"{reason}. Pass what it is made from, and make it in the constructor, which runs in the replica."
    )


class _Exchange:
    """Puts handle references in the place of nodes; containers without nodes stay the very objects they are."""

    def __init__(self, refs: dict[Application[Any], HandleRef]) -> None:
        self._refs = refs
        self._done: dict[int, Any] = {}
        self._open: set[int] = set()

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Application):
            return self._refs[value]
        if type(value) not in _CONTAINERS or id(value) in self._open:
            return value
        if id(value) not in self._done:
            self._open.add(id(value))
            self._done[id(value)] = self._container(value)
            self._open.discard(id(value))
        return self._done[id(value)]

    def _container(self, value: Any) -> Any:
        if isinstance(value, dict):
            items = {key: self(item) for key, item in value.items()}
            return items if any(items[key] is not item for key, item in value.items()) else value
        changed = [self(item) for item in value]
        same = all(new is old for new, old in zip(changed, value, strict=True))
        return value if same else type(value)(changed)


def _search_path() -> list[str]:
    return [os.path.abspath(entry) for entry in sys.path]
