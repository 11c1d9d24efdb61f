"""``serve.ingress``: says that a class answers HTTP through an ASGI application of its own.

Law: the decorator only marks. It hands the class back unchanged but for one attribute, never touches the
application, and imports no web framework (what it must know of FastAPI it reads off the objects). The view of
the application that serves one instance is built where the instance lives: ``dataplane.replica.views``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from typing import Any, TypeVar, overload

from skate.authoring.code import resolve
from skate.core.errors import IngressError

T = TypeVar("T")

MARK = "__skate_ingress__"
BUILD_METHOD = "__serve_build_asgi_app__"  # Ray Serve's name, so that its classes run here


@dataclass(frozen=True, slots=True)
class Ingress:
    """The mark: ``app`` is the application, or ``build`` makes it in the replica, or the class has BUILD_METHOD."""

    app: Any = None
    build: Callable[[], Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """An application that is a variable of a module stays that variable: the handlers' global and this are one."""
        if self.app is not None and (path := _variable_path(self.app)):
            return _found_ingress, (path,)
        return Ingress, (self.app, self.build)


class IngressDecorator:
    """What ``ingress(app)`` returns: applied to a class it marks it, called with nothing it makes an empty class."""

    def __init__(self, mark: Ingress) -> None:
        self._mark = mark

    @overload
    def __call__(self) -> type[Any]: ...

    @overload
    def __call__(self, target: type[T]) -> type[T]: ...

    def __call__(self, target: Any = None) -> Any:
        if target is None:
            target = _empty_class()
        _check_class(target)
        if self._mark == Ingress() and not hasattr(target, BUILD_METHOD):
            raise IngressError(
                f"{_named(target)} is decorated with serve.ingress() without an application and has no method "
                f"{BUILD_METHOD}; pass the application, serve.ingress(app), or write that method"
            )
        check_methods(target, self._mark.app)
        setattr(target, MARK, self._mark)
        return target


def ingress(app: Any = None) -> IngressDecorator:
    """Makes a class the HTTP face of an application, with a FastAPI (or any ASGI) application in front of it.

    ``app``: a FastAPI application, an APIRouter, any ASGI callable, or a function without parameters that returns
    one of these (it then runs in every replica). Without ``app`` the class must have a method
    ``__serve_build_asgi_app__`` that returns one. Put it under ``@serve.deployment``; methods decorated with
    ``@app.get(...)`` and the like get ``self``, the instance of the replica that answers.

    ``serve.deployment(serve.ingress(app)())`` deploys an application without a class.
    Errors: IngressError when applied to something that is no class, to a class with ``__call__``, for an
    ``app`` of another kind, and for a route method without ``self``.
    """
    if app is None:
        return IngressDecorator(Ingress())
    if _is_builder(app):
        return IngressDecorator(Ingress(build=app))
    return IngressDecorator(Ingress(app=app))


def _variable_path(app: Any) -> str | None:
    for name, module in list(sys.modules.items()):
        if name in ("__main__", "__mp_main__") or getattr(module, "__spec__", None) is None:
            continue
        for attribute, value in list(vars(module).items()):
            if value is app and PathFinder.find_spec(name.partition(".")[0]) is not None:
                return f"{name}:{attribute}"
    return None


def _found_ingress(path: str) -> Ingress:
    return Ingress(app=resolve(path))


def ingress_of(target: object) -> Ingress | None:
    """The mark that ``serve.ingress`` left on a class (or on one of its bases), or None."""
    mark = getattr(target, MARK, None)
    return mark if isinstance(mark, Ingress) else None


# -- which endpoint is whose -----------------------------------------------------------------------


def endpoints(app: Any) -> Iterator[tuple[Any, Any]]:
    """Every ``(route, endpoint)`` of an application, also in routers it includes and applications it mounts."""
    for route in getattr(app, "routes", None) or ():
        endpoint = getattr(route, "endpoint", None)
        if endpoint is not None:
            yield route, endpoint
            continue
        nested = getattr(route, "original_router", None)  # how FastAPI keeps an included router since 0.137
        yield from endpoints(nested if nested is not None else route)


def owner_of(endpoint: Any, cls: type) -> type | None:
    """The class, ``cls`` or one of its bases, in whose body the endpoint was written; None if in none of them."""
    function = getattr(endpoint, "__func__", endpoint) if isinstance(endpoint, staticmethod) else endpoint
    if not inspect.isfunction(function):
        return None
    bases = cls.__mro__[:-1]
    for base in bases:
        if any(unwrapped(value) is function for value in vars(base).values()):
            return base if _in_class_body(function) or _takes_self(function) else None
    # Not in the class any more: a second method of the same name took its place there. Its name tells.
    scope, _, _ = function.__qualname__.rpartition(".")
    return next((b for b in bases if (b.__module__, b.__qualname__) == (function.__module__, scope)), None)


def is_foreign(endpoint: Any, cls: type, instance: object = None) -> bool:
    """Whether the endpoint is a method that needs an instance, but not one of ``cls`` (or not this ``instance``)."""
    if inspect.ismethod(endpoint):
        return ingress_of(type(endpoint.__self__)) is not None and endpoint.__self__ is not instance
    if not inspect.isfunction(endpoint) or owner_of(endpoint, cls) is not None:
        return False
    return _in_class_body(endpoint) and _takes_self(endpoint)


def kind_of(endpoint: Any, owner: type) -> str:
    """How the endpoint stands in the class that owns it: "method", "static" or "class"."""
    if isinstance(endpoint, staticmethod):
        return "static"
    for value in vars(owner).values():
        if unwrapped(value) is endpoint and isinstance(value, staticmethod | classmethod):
            return "static" if isinstance(value, staticmethod) else "class"
    return "method"


def unwrapped(value: Any) -> Any:
    """The function inside a staticmethod or classmethod; anything else as it is."""
    return value.__func__ if isinstance(value, staticmethod | classmethod) else value


def check_methods(cls: type, app: Any) -> None:
    """Raises IngressError if a method of ``cls`` is a route of ``app`` and takes no ``self``."""
    for route, endpoint in endpoints(app):
        owner = owner_of(endpoint, cls)
        if owner is None or kind_of(endpoint, owner) != "method" or _takes_self(endpoint):
            continue
        verbs = ",".join(sorted(getattr(route, "methods", None) or ())) or "WEBSOCKET"
        name = endpoint.__name__
        raise IngressError(
            f"{_named(owner)}.{name} answers {verbs} {getattr(route, 'path', '?')}, but its first parameter is not "
            f"`self`; write `def {name}(self, ...)`, or put @staticmethod above the route decorator"
        )


def _takes_self(function: Any) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    return bool(parameters) and parameters[0].name == "self"


def _in_class_body(function: Any) -> bool:
    return "." in function.__qualname__.rpartition("<locals>.")[2]


# -- checks ----------------------------------------------------------------------------------------


def _empty_class() -> type:
    class AsgiApp:
        """A deployment that is nothing but its ASGI application."""

    return AsgiApp


def _check_class(target: Any) -> None:
    if not inspect.isclass(target):
        if callable(getattr(target, "bind", None)):
            raise IngressError(
                f"serve.ingress was applied to the deployment {getattr(target, 'name', target)!r}; "
                "swap the decorators: @serve.deployment goes above @serve.ingress(app)"
            )
        raise IngressError(
            f"serve.ingress(app) decorates a class, but was applied to {_named(target)}; write a class, or "
            "deploy the application alone with serve.deployment(serve.ingress(app)())"
        )
    if any("__call__" in vars(base) for base in target.__mro__[:-1]):
        raise IngressError(
            f"{_named(target)} defines __call__ and is decorated with serve.ingress; its requests would have two "
            "ways to go. Make __call__ a route of the application, or drop serve.ingress"
        )


def _is_builder(app: Any) -> bool:
    """Tells a function that makes an application from an application; refuses what is neither."""
    if inspect.isclass(app):
        raise IngressError(
            f"serve.ingress got the class {_named(app)} where it needs an application; write @serve.ingress(app) "
            f"with an object, for instance app = FastAPI(), not @serve.ingress and not @serve.ingress(FastAPI)"
        )
    if not callable(app):
        raise IngressError(
            f"serve.ingress got {app!r}, which is neither a FastAPI application, an APIRouter, an ASGI callable, "
            "nor a function that builds one"
        )
    try:
        inspect.signature(app).bind(None, None, None)
        return False
    except ValueError:  # no signature to read, as with C functions: ASGI is all it can be
        return False
    except TypeError:
        pass
    try:
        inspect.signature(app).bind()
    except TypeError:
        raise IngressError(
            f"serve.ingress got {_named(app)}{inspect.signature(app)}: an ASGI application takes "
            "(scope, receive, send), a function that builds one takes nothing"
        ) from None
    if inspect.iscoroutinefunction(app):
        raise IngressError(f"serve.ingress got {_named(app)}, an async builder; make it a plain `def`")
    return True


def _named(target: Any) -> str:
    return str(getattr(target, "__qualname__", None) or repr(target))
