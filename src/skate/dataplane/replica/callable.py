"""The user's class or function, described once when the replica starts.

Law: nothing is inspected on the way of a request; a method is described at its first call and then looked up.
Constructor, first ``reconfigure`` and destructor run on the loop's thread, where ``asyncio`` works in them as users
expect; a slow one holds up only a replica that serves nothing (yet, or any more). A later ``reconfigure`` and
``check_health`` run beside requests and wait for none: a ``def`` on a thread of its own.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from starlette.types import ASGIApp

from skate.core.errors import MethodNotFoundError

Kind = Literal["async", "sync", "async_generator", "generator"]


class Offload(Protocol):
    """Runs a function off the loop."""

    def __call__(self, function: Callable[[], Any], /) -> Awaitable[Any]: ...


class Method:
    """One callable of the target: how to run it, and what it takes."""

    __slots__ = ("function", "kind", "name", "takes_argument", "wants_request")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        self.kind: Kind = kind_of(function)
        self.takes_argument, needs_one = _arity(function)
        self.wants_request = needs_one and name == "__call__"  # a call with nothing gets an empty Request

    @property
    def is_generator(self) -> bool:
        return self.kind == "async_generator" or self.kind == "generator"


class Target:
    """The user's instance (or function) inside a replica.

    ``asgi`` and ``state`` are set for deployments made by ``serve.ingress``: the application that gets HTTP and
    WebSocket calls, and what its lifespan left for its requests.
    """

    def __init__(self, app: str, deployment: str, instance: Any) -> None:
        self.app = app
        self.deployment = deployment
        self.instance = instance
        self.asgi: ASGIApp | None = None
        self.state: Mapping[str, Any] | None = None
        self.is_function = inspect.isroutine(instance)
        self._methods: dict[str, Method] = {}
        self._destroyed = False

    def method(self, name: str) -> Method:
        """The public method of that name. Raises MethodNotFoundError, which names those there are."""
        method = self._methods.get(name)
        if method is None:
            method = self._methods[name] = self._find(name)
        return method

    def _find(self, name: str) -> Method:
        if self.is_function:
            if name == "__call__":
                return Method(name, self.instance)
        elif name == "__call__" or not name.startswith("_"):
            function = getattr(self.instance, name, None)
            if callable(function):
                return Method(name, function)
        raise self._unknown(name)

    def _unknown(self, name: str) -> MethodNotFoundError:
        names = self.method_names()
        close = difflib.get_close_matches(name, names, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return MethodNotFoundError(
            f"Deployment {self.deployment!r} of application {self.app!r} has no public method {name!r}. "
            f"Available methods: {names}.{hint}"
        )

    def method_names(self) -> list[str]:
        """The public methods, sorted; ``__call__`` first where there is one."""
        if self.is_function:
            return ["__call__"]
        cls = type(self.instance)
        names = {name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name, None))}
        names |= {name for name, value in _attributes(self.instance) if not name.startswith("_") and callable(value)}
        return (["__call__"] if callable(self.instance) else []) + sorted(names)

    # -- life -----------------------------------------------------------------------------------

    async def reconfigure(self, user_config: Any, offload: Offload | None = None) -> None:
        """Calls the user's ``reconfigure(user_config)``. Raises TypeError if there is none, or what it raises."""
        function = self._own("reconfigure")
        if function is None:
            raise TypeError(
                f"user_config is given for deployment {self.deployment!r}, but it has no method "
                "reconfigure(self, user_config) to receive it; add one, or drop user_config"
            )
        await _run(lambda: function(user_config), kind_of(function), offload)

    @property
    def is_configurable(self) -> bool:
        """Whether there is a method ``reconfigure``."""
        return self._own("reconfigure") is not None

    @property
    def health_kind(self) -> Kind | None:
        """How the user's ``check_health`` is to be run; None: there is none."""
        function = self._own("check_health")
        return None if function is None else kind_of(function)

    async def check_health(self, offload: Offload) -> None:
        """Calls the user's ``check_health()``, if there is one; raises what it raises."""
        function = self._own("check_health")
        if function is not None:
            await _run(function, kind_of(function), offload)

    def _own(self, name: str) -> Callable[..., Any] | None:
        function = None if self.is_function else getattr(self.instance, name, None)
        return function if callable(function) else None

    async def destroy(self) -> None:
        """Calls the user's ``__del__`` (sync or async), the first time only, and sees to it that nobody else does."""
        if self._destroyed or self.is_function:
            return
        self._destroyed = True
        function = getattr(self.instance, "__del__", None)
        if function is None:
            return
        try:
            await _run(function, kind_of(function), None)
        finally:
            _disarm(self.instance)


async def construct(app: str, deployment: str, code: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Target:
    """Makes the target: an instance of the user's class (``__init__`` may be async), or the function itself."""
    if not isinstance(code, type):
        return Target(app, deployment, code)
    if not inspect.iscoroutinefunction(code.__init__):  # type: ignore[misc]
        return Target(app, deployment, code(*args, **kwargs))
    new: Any = code.__new__
    instance = new(code) if new is object.__new__ else new(code, *args, **kwargs)
    await instance.__init__(*args, **kwargs)
    return Target(app, deployment, instance)


def kind_of(function: Any) -> Kind:
    """How a callable must be run. Looks through partials, bound methods and objects with ``__call__``."""
    for candidate in (function, type(function).__call__):
        if inspect.iscoroutinefunction(candidate):
            return "async"
        if inspect.isasyncgenfunction(candidate):
            return "async_generator"
        if inspect.isgeneratorfunction(candidate):
            return "generator"
    return "sync"


def _arity(function: Callable[..., Any]) -> tuple[bool, bool]:
    """Whether it takes a positional argument at all, and whether it needs exactly one."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # some builtins have no signature
        return True, False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = sum(p.default is p.empty for p in positional)
    keyword_needed = any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)
    takes_argument = bool(positional) or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return takes_argument, needed == 1 and not keyword_needed


async def _run(function: Callable[[], Any], kind: Kind, offload: Offload | None) -> None:
    result = await offload(function) if offload is not None and kind == "sync" else function()
    if inspect.isawaitable(result):
        await result


def _disarm(instance: Any) -> None:
    """Gives the instance a class whose ``__del__`` does nothing, so that the interpreter does not run it again."""
    cls = type(instance)
    metaclass: Any = type(cls)
    members = {"__slots__": (), "__del__": lambda self: None, "__module__": cls.__module__}
    try:
        instance.__class__ = metaclass(cls.__name__, (cls,), members)
    except Exception:  # a class that refuses to be derived: its __del__ may run twice, which Python allows
        return


def _attributes(instance: Any) -> list[tuple[str, Any]]:
    return list(vars(instance).items()) if hasattr(instance, "__dict__") else []
