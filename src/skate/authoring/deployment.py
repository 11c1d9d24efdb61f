"""``@serve.deployment`` and what it makes: a Deployment, and by ``.bind()`` a node of an application.

Law: a Deployment is a value; ``.options()`` gives another one, ``.bind()`` runs nothing and needs no running instance.
What can be known wrong is said here: options, arguments that do not fit the constructor, a class where a function is
needed. Types: ``Deployment[P, T]`` binds with the parameters of the constructor and stands for a callable ``T``,
which is the instance of a class, or the function itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar, overload

import msgspec

from skate.core.checks import shown
from skate.core.errors import GraphError, OptionError
from skate.core.ids import name_problem
from skate.core.options import BackpressureConfig, DeploymentOptions, deployment_options

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

if TYPE_CHECKING:
    _StandsForHandle: Any  # a constructor that wants a handle is given a node in ``bind``
else:

    class _StandsForHandle:
        __slots__ = ()


class _Function(Protocol):
    """What tells a function from a class to a type checker."""

    @property
    def __code__(self) -> CodeType: ...


F = TypeVar("F", bound=_Function)


class Application(_StandsForHandle, Generic[T_co]):  # type: ignore[misc]  # Any as base is meant, see above
    """A bound deployment: one node of an application, and with all that it refers to an application by itself.

    Opaque; made by ``.bind()``. The same node in several places is the same deployment.
    """

    __slots__ = ("__weakref__", "_args", "_deployment", "_kwargs")

    def __init__(self, deployment: Deployment[..., T_co], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._deployment, self._args, self._kwargs = deployment, args, kwargs

    def __repr__(self) -> str:
        given = [_brief(value) for value in self._args] + [f"{key}={_brief(v)}" for key, v in self._kwargs.items()]
        return f"{self._deployment.name}.bind({', '.join(given)})"

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(f"{self!r} is not running; `handle = serve.run(...)` it, then `handle.remote(...)`.")

    def __reduce__(self) -> NoReturn:
        raise GraphError(
            f"{self!r} is part of an application and cannot be pickled. A bound deployment is found as an argument of "
            "bind and inside lists, tuples, sets and values of dicts there, not inside other objects or in globals."
        )


def _brief(value: Any) -> str:
    """Numbers and short texts as they are; a graph or an array is not written out."""
    return shown(value) if value is None or isinstance(value, bool | int | float | str) else "..."


class Deployment(Generic[P, T_co]):
    """A class or function with its options. Not changed by anything; ``options()`` and ``bind()`` give new objects."""

    __slots__ = ("_configured", "_options", "_target")

    def __init__(self, target: Callable[..., Any], options: DeploymentOptions, configured: frozenset[str]) -> None:
        self._target, self._options, self._configured = target, options, configured

    @property
    def name(self) -> str:
        """The name it was given, or that of its class or function; an application may have to number it."""
        return self._options.name or self._target.__name__

    @property
    def func_or_class(self) -> Callable[..., Any]:
        """The class or function itself, for instance to make a plain object of it in a test."""
        return self._target

    @property
    def all_options(self) -> DeploymentOptions:
        """Every option, checked and with defaults."""
        return self._options

    @property
    def configured(self) -> frozenset[str]:
        """Names of the options that the code sets itself."""
        return self._configured

    @property
    def num_replicas(self) -> int | str:
        return self._options.num_replicas

    @property
    def max_ongoing_requests(self) -> int:
        return self._options.max_ongoing_requests

    @property
    def max_queued_requests(self) -> int:
        return self._options.max_queued_requests

    @property
    def backpressure_config(self) -> BackpressureConfig:
        return self._options.backpressure_config

    @property
    def user_config(self) -> Any:
        return self._options.user_config

    @property
    def ray_actor_options(self) -> dict[str, Any]:
        plain: dict[str, Any] = msgspec.to_builtins(self._options.ray_actor_options)
        return plain

    @property
    def logging_config(self) -> dict[str, Any] | None:
        plain: dict[str, Any] | None = msgspec.to_builtins(self._options.logging_config)
        return plain

    def options(self, **options: Any) -> Deployment[P, T_co]:
        """A copy with other options; those not given stay. Raises ``OptionError``."""
        target = options.pop("func_or_class", self._target)
        copy: Deployment[P, T_co] = _make(target, options, self, f"{self.name}.options")
        return copy

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Application[T_co]:
        """A node of an application: this deployment with arguments for its constructor, which runs in the replicas.

        Arguments may hold other nodes, also inside lists, tuples, sets and values of dicts; the constructor gets
        handles in their place. Raises ``TypeError`` for arguments that the constructor does not take, and
        ``GraphError`` for arguments to a function, which has no constructor.
        """
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, Deployment):
                raise TypeError(
                    f"{self.name}.bind() was given the deployment {argument.name}, which is not bound; "
                    f"did you forget .bind()? Give it {argument.name}.bind(...)."
                )
        _check_arguments(self, args, kwargs)
        return Application(self, args, kwargs)

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        name, run = self._target.__name__, f"`serve.run({self._target.__name__}.bind(...))` to serve it"
        plain = f"`{name}.func_or_class(...)` for the plain {'object' if _is_class(self) else 'function'}"
        raise RuntimeError(f"{name} is a deployment and is not called itself; {run}, or {plain}.")

    def __mro_entries__(self, _: Any) -> NoReturn:
        name = self._target.__name__
        raise TypeError(f"{name} is a deployment, and no class to inherit from; inherit from {name}.func_or_class.")

    def __repr__(self) -> str:
        given = {key: getattr(self._options, key) for key in sorted(self._configured - {"name"})}
        return f"Deployment({', '.join([self.name, *(f'{key}={shown(value)}' for key, value in given.items())])})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Deployment):
            return NotImplemented
        return self._target is other._target and self._options == other._options

    def __hash__(self) -> int:
        return hash((self._target, self.name))


class DeploymentDecorator:
    """What ``deployment(**options)`` gives: put on a class or function, it makes the Deployment."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    @overload
    def __call__(self, target: F, /) -> Deployment[[], F]: ...

    @overload  # a class has no __code__
    def __call__(  # type: ignore[overload-cannot-match]
        self, target: Callable[P, T], /
    ) -> Deployment[P, T]: ...

    def __call__(self, target: Any, /) -> Any:
        return _make(target, self._options, None, "@serve.deployment")


@overload
def deployment(target: F, /) -> Deployment[[], F]: ...


@overload  # a class has no __code__
def deployment(target: Callable[P, T], /) -> Deployment[P, T]: ...  # type: ignore[overload-cannot-match]


@overload
def deployment(**options: Any) -> DeploymentDecorator: ...


def deployment(target: Any = None, /, **options: Any) -> Any:
    """Make a deployment of a class or function (``def``, ``async def``, generators).

    ``@deployment`` bare, ``@deployment(num_replicas=2)``, or as a call. The options and their bounds are declared in
    ``skate.core.options``. Raises ``OptionError`` for options and ``TypeError`` for what is no class or function.
    """
    if target is None:
        deployment_options(options, stacklevel=0)  # a wrong option is an error at its own line
        return DeploymentDecorator(options)
    return _make(target, options, None, "@serve.deployment")


def _make(target: Any, given: dict[str, Any], base: Deployment[..., Any] | None, where: str) -> Deployment[Any, Any]:
    _check_target(target, where)
    where = where if base else f"{where} on {target.__name__}"
    options = deployment_options(given, base.all_options if base else None, where, stacklevel=4)
    configured = frozenset(given) | (base.configured if base else frozenset())
    made: Deployment[Any, Any] = Deployment(target, options, configured)
    if problem := name_problem(made.name):
        raise OptionError(f"{where}: name={shown(made.name)}: a deployment's name {problem}; give it one with name=...")
    check_user_config(target, options, where)
    return made


def check_user_config(target: Any, options: DeploymentOptions, where: str) -> None:
    """Refuses a user_config for code that cannot take it. Raises ``OptionError``."""
    if options.user_config is None:
        return
    if not isinstance(target, type):
        raise OptionError(f"{where}: user_config needs a class with a method reconfigure(config); this is a function.")
    if not callable(getattr(target, "reconfigure", None)):
        raise OptionError(
            f"{where}: user_config is passed to {target.__name__}.reconfigure(config), and the class has no such "
            "method; write it, or leave out user_config."
        )


def _check_target(target: Any, where: str) -> None:
    if isinstance(target, type | FunctionType):
        return
    if isinstance(target, Deployment):
        raise TypeError(f"{where}: {target.name} is a deployment already; change it with {target.name}.options(...).")
    if isinstance(target, Application):
        raise TypeError(f"{where}: {target!r} is bound already; pass the class or function itself.")
    raise TypeError(
        f"{where} takes a class or a function, not {shown(target)} of type {type(target).__name__}; "
        "write a class around it that makes it in __init__ and calls it in __call__."
    )


def _is_class(deployment: Deployment[..., Any]) -> bool:
    return isinstance(deployment.func_or_class, type)


def _check_arguments(deployment: Deployment[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    target: Any = deployment.func_or_class
    name = target.__name__
    if not _is_class(deployment):
        if args or kwargs:
            raise GraphError(
                f"{name}.bind() takes no arguments: {name} is a function, and its parameters come with each request. "
                "For arguments at start, and for other deployments to call, make it a class with __init__."
            )
        return
    try:
        signature = _constructor(target)
    except (TypeError, ValueError):
        return  # made in C without a signature: the replica will tell
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}.bind(): {error}. The constructor is {name}{signature}.") from None


def _constructor(target: Any) -> inspect.Signature:
    if target.__init__ is object.__init__ and target.__new__ is object.__new__ and type(target) is type:
        return inspect.Signature()
    return inspect.signature(target)
