"""The view of an ASGI application that serves one instance of a class decorated with ``serve.ingress``.

Law: a view is a copy of the application's routing in which every route method is bound to the instance, and in
which methods of other classes do not occur. The application itself is never changed, so that another class, or
a second replica in the same process, can have a view of its own. Bound functions have no ``self`` in their
signature; so FastAPI needs no trick to leave it out of validation and OpenAPI, and a request costs nothing more.

What a view shares with its application: the functions, the middleware classes with their arguments,
``dependency_overrides``, and (read through, written through) ``app.state``.
FastAPI is looked up among the loaded modules: if the user has an application of it, it is there.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import math
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Annotated, Any, get_args, get_origin

from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Host, Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from skate.authoring.ingress import (
    BUILD_METHOD,
    check_methods,
    endpoints,
    ingress_of,
    is_foreign,
    kind_of,
    owner_of,
    unwrapped,
)
from skate.core.errors import (
    BackPressureError,
    CallTimeoutError,
    DeploymentUnavailableError,
    IngressError,
    http_status,
)

RunSync = Callable[[Callable[[], Any]], Awaitable[Any]]

# A view answers these with their own status, unless the application has a handler for them.
ANSWERED_ERRORS = (BackPressureError, DeploymentUnavailableError, CallTimeoutError)
WEBSOCKET_TRY_AGAIN = 1013  # RFC 6455 registry: "try again later"
ARRAY_LIBRARIES = ("numpy", "pandas", "polars", "torch", "jax")
ATOMS = frozenset((type(None), bool, int, float, str, bytes))


def build_asgi(cls: type, instance: object, run_sync: RunSync | None = None) -> ASGIApp:
    """The ASGI application that answers for ``instance``. Call it when the user's module is imported wholly.

    ``run_sync``: awaited with a function without arguments for each call of a ``def`` route method, so that the
    caller decides on which thread and how many at once; None leaves that to FastAPI (a pool of 40 threads).
    """
    mark = ingress_of(cls)
    if mark is None:
        raise IngressError(f"{cls.__qualname__} is not decorated with serve.ingress, so it has no ASGI application")
    app, origin = mark.app, "serve.ingress(app)"
    if mark.build is not None:
        app, origin = mark.build(), f"the builder {getattr(mark.build, '__qualname__', mark.build)}"
    elif app is None:
        app, origin = getattr(instance, BUILD_METHOD)(), f"{cls.__qualname__}.{BUILD_METHOD}"
    if not callable(app) or inspect.isawaitable(app):
        raise IngressError(f"{origin} gave {app!r}, which is not an ASGI application")
    check_methods(cls, app)
    return _View(cls, instance, run_sync, app).of(app)


class _View:
    """Copies an application piece by piece. Whatever occurs twice in it (a router included twice) is copied once."""

    def __init__(self, cls: type, instance: object, run_sync: RunSync | None, app: Any) -> None:
        self._cls = cls
        self._instance = instance
        self._run_sync = run_sync
        self._apps: list[tuple[Any, Any]] = []  # an application and its copy
        self._routers: dict[int, Any] = {}
        self._dependencies: dict[Any, Callable[..., Any]] = {}
        self._registered = {id(endpoint) for _, endpoint in endpoints(app)}
        self._encode_all = any(name in sys.modules for name in ARRAY_LIBRARIES)

    # -- applications ------------------------------------------------------------------------------

    def of(self, app: Any) -> ASGIApp:
        if isinstance(app, Starlette):
            return self._starlette(app)
        if isinstance(app, Router):
            router = self._router(app)
            return self._around(router) if hasattr(app, "include_router") else router
        inner = getattr(app, "__dict__", {}).get("app")
        if isinstance(inner, Starlette | Router) and self._concerns(inner):
            twin = copy.copy(app)  # a middleware put around the application by hand
            twin.app = self.of(inner)
            return twin  # type: ignore[no-any-return]
        return app  # type: ignore[no-any-return]

    def _starlette(self, app: Starlette) -> ASGIApp:
        twin: Any = copy.copy(app)
        self._apps.append((app, twin))
        for name, value in list(vars(app).items()):
            vars(twin)[name] = self._own_attribute(app, twin, name, value)
        if type(app.state) is State:
            twin.state = State(_LayeredState(app.state))  # type: ignore[arg-type]
        twin.middleware_stack = None
        twin.user_middleware = list(app.user_middleware)
        twin.exception_handlers = dict.fromkeys(ANSWERED_ERRORS, _answer_error) | app.exception_handlers
        twin.router = self._router(app.router)
        if len(self._apps) == 1:  # the outermost; mounted ones have no lifespan
            twin.router.lifespan_context = self._absorbing(app.router, twin.router)
        if hasattr(twin, "openapi_schema"):
            twin.openapi_schema = None
        if getattr(twin, "root_path", ""):
            outer, twin.root_path = twin.root_path, ""
            return _BelowRootPath(twin, outer)
        return twin  # type: ignore[no-any-return]

    def _around(self, router: Any) -> ASGIApp:
        """An APIRouter alone cannot answer (it has no error handling), so an application goes around it."""
        from fastapi import FastAPI  # optional, but who has an APIRouter has it

        handlers: dict[Any, Any] = dict.fromkeys(ANSWERED_ERRORS, _answer_error)
        app = FastAPI(title=self._cls.__name__, exception_handlers=handlers)
        app.include_router(router)
        return app

    def _own_attribute(self, app: Any, twin: Any, name: str, value: Any) -> Any:
        """Methods that somebody put on the application object itself must work on the copy.

        Instrumentation replaces ``build_middleware_stack`` so, and the FastAPI documentation ``openapi``.
        """
        if inspect.ismethod(value) and value.__self__ is app:
            return types.MethodType(value.__func__, twin)
        if inspect.isfunction(value) and callable(getattr(type(app), name, None)):
            fresh = {key: twin if known is app else known for key, known in value.__globals__.items()}
            return self._rebound(value, fresh)
        return value

    def _rebound(self, function: Any, fresh_globals: dict[str, Any] | None = None) -> Any:
        """The function with the copy wherever it has closed over an application (FastAPI's own docs pages do)."""
        cells = tuple(self._cell(cell) for cell in function.__closure__ or ())
        if fresh_globals is None and cells == (function.__closure__ or ()):
            return function
        made = types.FunctionType(
            function.__code__, fresh_globals or function.__globals__, function.__name__, function.__defaults__, cells
        )
        made.__kwdefaults__ = function.__kwdefaults__
        return functools.update_wrapper(made, function)

    def _cell(self, cell: types.CellType) -> types.CellType:
        with contextlib.suppress(ValueError):  # an empty cell
            for app, twin in self._apps:
                if cell.cell_contents is app:
                    return types.CellType(twin)
        return cell

    # -- routers -----------------------------------------------------------------------------------

    def _router(self, router: Any) -> Any:
        if id(router) in self._routers:
            return self._routers[id(router)]
        self._refuse_hook_methods(router)
        twin = self._routers[id(router)] = copy.copy(router)
        twin.routes = self._routes(router.routes)
        twin.middleware_stack = _restacked(router.middleware_stack, router.app, twin.app)
        if hasattr(router, "dependencies"):
            twin.dependencies = [self._depends(each) for each in router.dependencies]
        if hasattr(router, "_low_priority_routes"):
            twin._low_priority_routes = list(router._low_priority_routes)
        return twin

    def _absorbing(self, router: Any, twin: Any) -> Callable[[Any], Any]:
        """The lifespan of the view: the application's own, and then what its startup has added to the routes."""
        known = len(router.routes)

        @contextlib.asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Any]:
            async with router.lifespan_context(app) as state:
                twin.routes.extend(self._routes(router.routes[known:]))
                yield state

        return lifespan

    def _refuse_hook_methods(self, router: Any) -> None:
        for event in ("on_startup", "on_shutdown"):
            for hook in getattr(router, event, None) or ():
                owner = owner_of(hook, self._cls)
                if owner is not None and kind_of(hook, owner) == "method":
                    raise IngressError(
                        f"{owner.__qualname__}.{hook.__name__} is registered as {event} of the application, which "
                        "calls it without `self`; do that work in __init__, or in a function of the module"
                    )

    def _routes(self, routes: Iterable[BaseRoute]) -> list[BaseRoute]:
        routes = list(routes)
        valid = self._valid_routes(routes)
        twins = (self._route(route) for route in routes if id(route) in valid)
        return [twin for twin in twins if twin is not None]

    def _valid_routes(self, routes: list[BaseRoute]) -> set[int]:
        """All routes but those replaced by a later definition of the same method for the same path and verbs.

        That happens when a subclass decorates its override again, and when a notebook cell with the class runs twice.
        """
        valid = {id(route) for route in routes}
        last: dict[tuple[Any, ...], tuple[BaseRoute, bool]] = {}
        for route in routes:
            endpoint: Any = getattr(route, "endpoint", None)
            if endpoint is None or owner_of(endpoint, self._cls) is None:
                continue
            verbs = frozenset(getattr(route, "methods", None) or ())
            key = (unwrapped(endpoint).__name__, getattr(route, "path", ""), verbs)
            current = unwrapped(inspect.getattr_static(self._cls, key[0], None)) is unwrapped(endpoint)
            if key in last:
                before, before_current = last[key]
                if before_current and not current:
                    valid.discard(id(route))
                    continue
                valid.discard(id(before))
            last[key] = (route, current)
        return valid

    # -- routes ------------------------------------------------------------------------------------

    def _route(self, route: Any) -> BaseRoute | None:
        if isinstance(route, Mount | Host):
            return self._mount(route)
        if hasattr(route, "original_router") and hasattr(route, "include_context"):
            return self._included(route)
        endpoint = getattr(route, "endpoint", None)
        if endpoint is None:
            return route  # type: ignore[no-any-return]
        if is_foreign(endpoint, self._cls, self._instance):
            return None
        owner = owner_of(endpoint, self._cls)
        if owner is not None:
            return self._remade(route, self._bound(endpoint, owner, result=hasattr(route, "response_model")))
        if self._encode_all and hasattr(route, "response_model") and inspect.isroutine(endpoint):
            return self._remade(route, _encoding(endpoint, endpoint, inspect.signature(endpoint), None))
        if type(route) is Route and inspect.isfunction(endpoint) and (bound := self._rebound(endpoint)) is not endpoint:
            return self._remade(route, bound)
        return route  # type: ignore[no-any-return]

    def _remade(self, route: Any, endpoint: Callable[..., Any]) -> BaseRoute:
        """The same route with another endpoint: a copy, set up anew by the framework's own constructor.

        Not by the constructor of a user's route class: it has done its work on the values found in the route.
        """
        base: Any = next(c for c in type(route).__mro__ if c.__module__ in ("fastapi.routing", "starlette.routing"))
        names = list(inspect.signature(base.__init__).parameters)[1:]
        settings = {name: getattr(route, name) for name in names if hasattr(route, name)}
        settings["endpoint"] = endpoint
        if getattr(route, "stream_item_type", None) is not None:
            settings.pop("response_model", None)  # the constructor finds both in the annotation
        if "dependencies" in settings:
            settings["dependencies"] = [self._depends(each) for each in settings["dependencies"]]
        twin = copy.copy(route)
        base.__init__(twin, **settings)
        return twin  # type: ignore[no-any-return]

    def _included(self, route: Any) -> BaseRoute:
        context = copy.copy(route.include_context)
        context.included_router = self._router(route.original_router)
        context.dependencies = [self._depends(each) for each in context.dependencies]
        twin = type(route)(original_router=context.included_router, include_context=context)
        return twin  # type: ignore[no-any-return]

    def _mount(self, route: Any) -> BaseRoute:
        if not self._concerns(route):
            return route  # type: ignore[no-any-return]
        base = getattr(route, "_base_app", route.app)
        twin = copy.copy(route)
        made = self.of(base)
        twin.app = _restacked(route.app, base, made)
        if hasattr(route, "_base_app"):
            twin._base_app = made
        return twin  # type: ignore[no-any-return]

    def _concerns(self, app: Any) -> bool:
        """Whether any route in there is a method: of this class, or of one that must not be seen."""
        found = (endpoint for _, endpoint in endpoints(app))
        return any(owner_of(e, self._cls) is not None or is_foreign(e, self._cls, self._instance) for e in found)

    # -- functions ---------------------------------------------------------------------------------

    def _bound(self, endpoint: Any, owner: type, result: bool) -> Callable[..., Any]:
        """The route method (or dependency) as a function without ``self``; with ``result`` its result is encoded."""
        kind = kind_of(endpoint, owner)
        function = unwrapped(endpoint)
        if kind == "method":
            function = self._overriding(function, owner)
        bound_to: dict[str, tuple[Any, ...]] = {"method": (self._instance,), "class": (self._cls,), "static": ()}
        first = bound_to[kind]
        signature = self._signature(function, owner, len(first))
        call: Any = functools.update_wrapper(functools.partial(function, *first), function)
        call.__signature__ = signature
        return _encoding(function, call, signature, self._run_sync) if result else call

    def _overriding(self, function: Any, owner: type) -> Any:
        """What ``self.name`` would give: the override in a subclass, unless that is a route by itself."""
        name = function.__name__
        if vars(owner).get(name) is not function:
            return function
        found = inspect.getattr_static(self._cls, name, function)
        return found if inspect.isfunction(found) and id(found) not in self._registered else function

    def _signature(self, function: Any, owner: type, skip: int) -> inspect.Signature:
        try:  # annotations that are text may name what stands in the class body, as others may
            signature = inspect.signature(function, eval_str=True, locals=dict(vars(owner)))
        except Exception:  # a name that exists for type checkers only; FastAPI resolves the others one by one
            signature = inspect.signature(function)
        parameters = list(signature.parameters.values())[skip:]
        return signature.replace(parameters=[self._parameter(each) for each in parameters])

    def _parameter(self, parameter: inspect.Parameter) -> inspect.Parameter:
        annotation = parameter.annotation
        if get_origin(annotation) is Annotated:
            plain_type, *metadata = get_args(annotation)
            annotation = Annotated[(plain_type, *(self._depends(each) for each in metadata))]
        return parameter.replace(default=self._depends(parameter.default), annotation=annotation)

    def _depends(self, value: Any) -> Any:
        """``Depends(method)`` with the method bound; the same function every time, as FastAPI caches by it."""
        params = sys.modules.get("fastapi.params")
        if params is None or not isinstance(value, params.Depends):
            return value
        function = value.dependency
        owner = owner_of(function, self._cls)
        if owner is None:
            return value
        if function not in self._dependencies:
            self._dependencies[function] = self._bound(function, owner, result=False)
        twin = copy.copy(value)
        object.__setattr__(twin, "dependency", self._dependencies[function])  # it is a frozen dataclass
        return twin


class _LayeredState(MutableMapping[str, Any]):
    """``app.state`` of a view: its own values first, then the application's; what is set is set in both.

    So a startup hook and a handler understand each other, whether they use ``request.app`` or a global ``app``,
    and two replicas in one process still each find their own.
    """

    def __init__(self, shared: State) -> None:
        self._shared = shared
        self._own: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key in self._own:
            return self._own[key]
        try:
            return getattr(self._shared, key)
        except AttributeError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, value: Any) -> None:
        self._own[key] = value
        setattr(self._shared, key, value)

    def __delitem__(self, key: str) -> None:
        value = self[key]
        self._own.pop(key, None)
        if getattr(self._shared, key, None) is value:
            delattr(self._shared, key)

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._own), **dict.fromkeys(self._shared)})

    def __len__(self) -> int:
        return len(list(iter(self)))


class _BelowRootPath:
    """Puts the application's own ``root_path`` in front of the route prefix, in path and root path alike."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self._outer = "/" + root_path.strip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            root_path = self._outer + scope.get("root_path", "")
            scope = {**scope, "root_path": root_path, "path": self._outer + scope["path"]}
        await self.app(scope, receive, send)


def _restacked(stack: Any, old_end: Any, new_end: Any) -> Any:
    """A chain of middlewares with another application at its end."""
    if stack is old_end or (inspect.ismethod(stack) and stack == old_end):
        return new_end
    inner = getattr(stack, "app", None)
    if inner is None:
        raise IngressError(
            f"cannot look behind the middleware {stack!r} of a router, as it has no attribute `app`; add it to "
            "the application with add_middleware instead"
        )
    twin = copy.copy(stack)
    twin.app = _restacked(inner, old_end, new_end)
    return twin


def _encoding(
    function: Any, call: Callable[..., Any], signature: inspect.Signature, run_sync: RunSync | None
) -> Callable[..., Any]:
    """``call`` (which runs ``function``) with arrays in its result made plain. Generators pass as they are."""
    inner = inspect.unwrap(function)
    if any(map(inspect.isgeneratorfunction, (function, inner))) or any(
        map(inspect.isasyncgenfunction, (function, inner))
    ):
        return call
    made: Any
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(inner):

        async def made(*args: Any, **kwargs: Any) -> Any:
            return plain(await call(*args, **kwargs))

    elif run_sync is not None:

        async def made(*args: Any, **kwargs: Any) -> Any:
            return plain(await run_sync(functools.partial(call, *args, **kwargs)))

    else:

        def made(*args: Any, **kwargs: Any) -> Any:
            return plain(call(*args, **kwargs))

    functools.update_wrapper(made, function)
    made.__signature__ = signature
    return made  # type: ignore[no-any-return]


def plain(value: Any) -> Any:
    """``value`` with arrays, scalars of array libraries and data frames in it turned into Python's own types.

    Arrays become lists, frames lists of records. They are recognised by what they can do; while no library of
    theirs is loaded there are none. What holds nothing of the kind is returned itself.
    """
    return _plain(value) if any(name in sys.modules for name in ARRAY_LIBRARIES) else value


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in ATOMS:
        return value
    if hasattr(kind, "tolist"):  # numpy, torch, pandas.Series
        items = value.tolist()
        return _plain(items) if str(getattr(value, "dtype", "object")) == "object" and items is not value else items
    if hasattr(kind, "iterrows"):  # pandas
        return _plain(value.to_dict(orient="records"))
    if hasattr(kind, "to_dicts"):  # polars
        return _plain(value.to_dicts())
    if isinstance(value, dict):
        pairs = [(_plain(key), _plain(item)) for key, item in value.items()]
        same = all(a is c and b is d for (a, b), (c, d) in zip(pairs, value.items(), strict=True))
        return value if same else dict(pairs)
    if isinstance(value, list | tuple):
        listed = [_plain(item) for item in value]
        if all(a is b for a, b in zip(listed, value, strict=True)):
            return value
        return tuple(listed) if isinstance(value, tuple) else listed
    return value


async def _answer_error(connection: Any, error: Exception) -> Response | None:
    """An error of a call to another deployment that the handler let through: it has a status of its own."""
    if connection.scope["type"] == "websocket":
        await connection.close(code=WEBSOCKET_TRY_AGAIN, reason=type(error).__name__)
        return None
    headers = None
    if isinstance(error, BackPressureError):
        headers = {"Retry-After": str(math.ceil(1 if error.retry_after_s is None else error.retry_after_s))}
    return JSONResponse({"detail": str(error)}, status_code=http_status(error), headers=headers)
