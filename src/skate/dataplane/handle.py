"""The caller's end in Python: handles and the responses they give.

Law: ``remote`` never blocks; a response has exactly one end and can be asked for it any number of times, from any
thread or loop. On the router's own loop (in a replica) nothing but a future lies between caller and wire;
elsewhere the loop is reached by ``call_soon_threadsafe``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, overload

from skate.core import context
from skate.core.errors import (
    CallTimeoutError,
    CodeError,
    RequestCancelledError,
    ResultInLoopError,
    StreamMismatchError,
)
from skate.core.ids import request_id
from skate.dataplane import caller as callers
from skate.dataplane.call import Call
from skate.dataplane.call_options import PLAIN_CALL, CallOptions, read_call_options
from skate.dataplane.caller import Caller
from skate.dataplane.payload import Passed, dumps, loads
from skate.dataplane.pending import Pending, Resolving, arrived, unsendable, wake_on, waker
from skate.dataplane.stream import ResponseStream, StreamCall
from skate.dataplane.wire.head import PYTHON, CallHead
from skate.dataplane.wire.parts import IN_PARTS

R = TypeVar("R")
if TYPE_CHECKING:  # a bare DeploymentHandle or Response is one of Any, under --strict too
    from typing_extensions import TypeVar as _TypeVar

    T_co = _TypeVar("T_co", covariant=True, default=Any)
    R_co = _TypeVar("R_co", covariant=True, default=Any)
else:
    T_co = TypeVar("T_co", covariant=True)
    R_co = TypeVar("R_co", covariant=True)

Resolver = Callable[[Any], Awaitable[Any]]
_resolvers: dict[type, Resolver] = {}  # arguments of these types are replaced by what the resolver gives
_NO_ARGUMENTS = dumps(((), {}))


class _UnaryCall(Call):
    """The record of a call with one answer."""

    __slots__ = ("raw", "response")

    def __init__(self, key: str, head: CallHead, deadline: float | None, response: Response[Any]) -> None:
        super().__init__(key, head, deadline)
        self.response = response
        self.raw = b""

    def on_chunk(self, data: bytes) -> None:
        self.raw = data if data[:1] != IN_PARTS else arrived(self, data)

    def on_end(self, error: BaseException | None) -> None:
        raw, self.raw = self.raw, b""
        self.response._finish(raw, error)


class Response(Pending, Generic[R_co]):
    """The answer of a call, now or later.

    ``await response`` gives the value or raises what the callee raised, any number of times and on any loop;
    ``response.result()`` does the same for code without a loop. Given as an argument of its own to another
    ``.remote()``, the callee receives the value and nobody waits in between.
    """

    __slots__ = ("_raw", "_value")

    def __init__(self, caller: Caller, request_id: str) -> None:
        super().__init__(caller, request_id)
        self._raw: bytes | None = None
        self._value: Any = None

    def __await__(self) -> Generator[Any, None, R_co]:
        if not self._done:
            loop = asyncio.get_running_loop()
            waiter = loop.create_future()
            if loop is self._caller.loop:
                wake = waker(waiter)
                self._listeners.append(wake)
            else:
                wake = wake_on(loop, waiter)
                self._on_loop(self._when_done, wake)
            try:
                yield from waiter
            except BaseException:
                self._on_loop(self._forget, wake)  # who asks again and again with a time limit must leave nothing
                raise
        return self._get()

    def result(self, *, timeout_s: float | None = None) -> R_co:
        """Waits for the value, at most ``timeout_s`` seconds (None: as long as it takes).

        Raises what the callee raised, CallTimeoutError (a TimeoutError) when the time is over (the call goes on
        and may be asked again), ResultInLoopError on a thread whose event loop is running.
        """
        if asyncio._get_running_loop() is not None:
            raise ResultInLoopError("result() would block the running event loop: use `await response` instead")
        if not self._done:
            event = threading.Event()
            self._on_loop(self._when_done, event.set)
            if not event.wait(timeout_s):
                self._on_loop(self._forget, event.set)
                raise CallTimeoutError(f"request {self._request_id} has no result after {timeout_s} s; it goes on")
        return self._get()

    def _get(self) -> R_co:
        if self._error is not None:
            self._raise()
        raw = self._raw
        if raw is None:
            value: R_co = self._value
            return value
        value = loads(raw)
        self._value = value  # before ``_raw`` goes: other threads look at them in the other order
        self._raw = None
        return value

    def _finish(self, raw: bytes, error: BaseException | None) -> None:
        self._raw = raw if error is None else None
        self._settle(error)

    def _failed(self, error: BaseException) -> None:
        self._finish(b"", error)

    async def resolve(self) -> Any:
        """The value for another call: still pickled where it was not looked at here."""
        if not self._done:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._when_done(waker(waiter))
            await waiter
        if self._error is not None:
            self._raise()
        raw = self._raw
        return self._value if raw is None else Passed(raw)

    def __iter__(self) -> NoReturn:
        raise StreamMismatchError("this call has one answer: await it, or call with handle.options(stream=True)")

    def __aiter__(self) -> NoReturn:
        raise StreamMismatchError("this call has one answer: await it, or call with handle.options(stream=True)")

    def __repr__(self) -> str:
        return f"<Response {self._request_id} {'done' if self._done else 'under way'}>"


class DeploymentHandle(Generic[T_co]):
    """Calls the replicas of one deployment: ``handle.remote(...)`` its ``__call__``, ``handle.m.remote(...)`` a method.

    Handles are values: they compare by what they lead to, can be pickled into another deployment or process, and
    be used by any number of threads. They hold no connection.
    """

    __slots__ = ("_address", "_app", "_deployment", "_method", "_methods", "_options", "_stream", "_timeout_s")

    def __init__(
        self, app: str, deployment: str, options: CallOptions = PLAIN_CALL, address: str | None = None
    ) -> None:
        self._app = app
        self._deployment = deployment
        self._options = options
        self._method = options.method_name
        self._stream = options.stream
        self._timeout_s = options.timeout_s
        self._address = address
        self._methods: dict[str, DeploymentHandle[T_co]] = {}

    @property
    def app_name(self) -> str:
        """The application."""
        return self._app

    @property
    def deployment_name(self) -> str:
        """The deployment."""
        return self._deployment

    def options(self, **options: Any) -> DeploymentHandle[T_co]:
        """A copy with other options; this handle stays as it is.

        ``method_name``: the method that ``remote`` calls (default ``__call__``). ``stream``: the method is a
        generator, ``remote`` gives a ResponseStream (default False). ``timeout_s``: seconds after which a
        call ends with CallTimeoutError (default None: only the deadline of the request it is made under).
        ``retry``: the method may be executed twice, so a call whose replica died under it is sent again, at most so
        many times, before the first item of an answer has come (default None: as the deployment says; 0: never).
        ``routing_key``: calls with the same key go to the same replica, where the deployment's request router
        goes by keys (default None).

        Raises OptionError for anything else.
        """
        return DeploymentHandle(self._app, self._deployment, read_call_options(options, self._options), self._address)

    def __getattr__(self, name: str) -> DeploymentHandle[T_co]:
        if name.startswith("__") and name != "__call__":
            raise AttributeError(name)
        methods = self._methods
        handle = methods.get(name)
        if handle is None:
            options = self._options._replace(method_name=name)
            handle = DeploymentHandle(self._app, self._deployment, options, self._address)
            methods[name] = handle
        return handle

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the method with these arguments; returns at once with a Response (ResponseStream with ``stream=True``).

        A Response among the arguments is replaced by its value before the call is sent. Raises CodeError when an
        argument cannot be pickled, NotRunningError when this process is connected to no instance.
        """
        caller = callers.current(self._address)
        under = context.request.get()
        id = under.request_id if under is not None else request_id()
        answer: Any = ResponseStream(caller, id) if self._stream else Response(caller, id)
        for argument in args:
            if type(argument) in _resolvers:
                return self._resolve_first(answer, under, args, kwargs)
        for argument in kwargs.values():
            if type(argument) in _resolvers:
                return self._resolve_first(answer, under, args, kwargs)
        body = self._packed(args, kwargs) if args or kwargs else _NO_ARGUMENTS
        answer._on_loop(self._submit, answer, under, body)
        return answer

    def _packed(self, args: tuple[Any, ...], kwargs: dict[str, Any], passed: Sequence[Passed] = ()) -> bytes:
        """The arguments as they travel. Raises CodeError that names the one that cannot."""
        try:
            return dumps((args, kwargs), passed=passed)
        except CodeError as error:
            raise unsendable(self._app, self._deployment, self._method, args, kwargs) or error from error.__cause__

    def _deadline(self, caller: Caller, under: context.RequestContext | None) -> float | None:
        """The nearer of the request's deadline and our own."""
        deadline = under.deadline if under is not None else None
        if self._timeout_s is not None:
            own = caller.router.clock.now() + self._timeout_s
            deadline = own if deadline is None or own < deadline else deadline
        return deadline

    def _submit(
        self, answer: Any, under: context.RequestContext | None, body: bytes, deadline: float | None = None
    ) -> None:
        if answer._done:  # cancelled while its arguments were resolved
            return
        caller = answer._caller
        try:
            if deadline is None:
                deadline = self._deadline(caller, under)
            head = CallHead(PYTHON, self._method, answer._request_id, None, self._stream, self._app)
            make: Any = StreamCall if self._stream else _UnaryCall
            call = make(f"{self._app}/{self._deployment}", head, deadline, answer)
            call.context = under
            if not self._options.is_plain:
                call.retries, call.routing_key = self._options.retry, self._options.routing_key
            answer._call = call
            caller.router.submit(call, body)
        except Exception as error:  # nobody would hear of it on the router's loop
            answer._failed(error)

    def _resolve_first(
        self, answer: Any, under: context.RequestContext | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        answer._on_loop(answer._caller.spawn, self._resolve(answer, under, args, kwargs))
        return answer

    async def _resolve(
        self, answer: Any, under: context.RequestContext | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        caller = answer._caller
        limit: asyncio.Timeout | None = None
        waiting = Resolving(answer)
        try:
            if under is not None:
                under.raise_if_cancelled()
                under.children.add(waiting)
            deadline = self._deadline(caller, under)
            left = None if deadline is None else max(0.0, deadline - caller.router.clock.now())
            async with asyncio.timeout(left) as limit:
                values = tuple([await _resolved(value) for value in args])
                named = {name: await _resolved(value) for name, value in kwargs.items()}
            passed = [value for value in (*values, *named.values()) if isinstance(value, Passed)]
            self._submit(answer, under, self._packed(values, named, passed), deadline)
        except asyncio.CancelledError:
            if not answer._done:
                text = f"request {answer.request_id} was cancelled while its arguments were awaited"
                answer._failed(RequestCancelledError(text))
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and limit is not None and limit.expired():
                error = CallTimeoutError(f"request {answer.request_id} timed out while its arguments were awaited")
            if not answer._done:
                answer._failed(error)
        finally:
            if under is not None:
                under.children.discard(waiting)

    def __reduce__(self) -> tuple[Any, ...]:
        address = self._address
        if address is None:
            try:
                address = callers.current().address
            except Exception:
                address = None
        return DeploymentHandle, (self._app, self._deployment, self._options, address)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeploymentHandle) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        return self._app, self._deployment, self._options

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Handles are not called directly; raises TypeError that says how."""
        name = "" if self._method == "__call__" else f".{self._method}"
        raise TypeError(f"a handle is called by handle{name}.remote(...), not by handle{name}(...)")

    def __repr__(self) -> str:
        return f"<DeploymentHandle {self._app}/{self._deployment} {self._method}>"


if TYPE_CHECKING:

    class StreamingHandle(DeploymentHandle[T_co]):
        """A handle that was given ``stream=True``, to a type checker; an ordinary one when the program runs."""

        def __getattr__(self, name: str) -> StreamingHandle[T_co]: ...

        def remote(self, *args: Any, **kwargs: Any) -> ResponseStream: ...
else:
    StreamingHandle = DeploymentHandle


async def _resolved(value: Any) -> Any:
    resolve = _resolvers.get(type(value))
    return value if resolve is None else await resolve(value)


def resolve_with(kind: type, resolver: Resolver) -> None:
    """Arguments of exactly this type are replaced by what ``await resolver(argument)`` gives before a call is sent.

    The resolver runs on the router's loop.
    """
    _resolvers[kind] = resolver


resolve_with(Response, Response.resolve)
resolve_with(ResponseStream, ResponseStream.resolve)


@overload
def get(responses: Response[R], timeout_s: float | None = None) -> R: ...


@overload
def get(responses: Sequence[Response[R]], timeout_s: float | None = None) -> list[R]: ...


def get(responses: Any, timeout_s: float | None = None) -> Any:
    """Waits for the value of a response, or for the values of a list of responses, in order.

    ``timeout_s`` bounds the whole wait in seconds (None: none). Raises what the first failing call raised,
    CallTimeoutError, ResultInLoopError on a thread whose loop is running, TypeError for anything else.
    """
    if isinstance(responses, Response):
        return responses.result(timeout_s=timeout_s)
    if not isinstance(responses, (list, tuple)) or not all(isinstance(item, Response) for item in responses):
        raise TypeError(f"get() takes a response of handle.remote() or a list of them, not {type(responses).__name__}")
    clock = responses[0]._caller.router.clock if responses else None
    until = clock.now() + timeout_s if clock is not None and timeout_s is not None else None
    values = []
    for response in responses:
        left = max(0.0, until - clock.now()) if clock is not None and until is not None else None
        values.append(response.result(timeout_s=left))
    return values
