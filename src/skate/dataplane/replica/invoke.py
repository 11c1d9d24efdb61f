"""Runs calls against the user's target: one Exchange in, user code, exactly one outcome out.

Law: user code never runs in the tick in which its call arrived; ``async def`` runs as a task of its own on the loop,
``def`` on the replica's threads, in order of arrival. Whatever happens, the exchange gets its end and ``done`` is
called once, after the last line of user code, so that a slot means what it says. ``done`` may come later than the
answer: background tasks, and ``def`` code that nobody waits for any more but that cannot be interrupted.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from skate.core import context
from skate.core.clock import Clock, within
from skate.core.errors import (
    CallTimeoutError,
    CancelCause,
    MethodNotFoundError,
    ReplicaStoppedError,
    RequestCancelledError,
    StreamMismatchError,
)
from skate.dataplane.payload import dumps, loads, receive
from skate.dataplane.replica import asgi
from skate.dataplane.replica.answer import is_stream, render, stream_chunk, stream_head
from skate.dataplane.replica.batch import Items, Pieces
from skate.dataplane.replica.callable import Method, Target
from skate.dataplane.replica.outflow import Outflow, closing
from skate.dataplane.replica.request import Request
from skate.dataplane.replica.threads import Feed, Threads
from skate.dataplane.replica.trace import user_traceback
from skate.dataplane.stream import ResponseStream
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.wire.head import HTTP, PYTHON, WEBSOCKET, decode_http
from skate.dataplane.wire.parts import IN_PARTS

logger = logging.getLogger("skate.replica")

CLEANUP_S = 1.0  # what cancelled handlers get for their finally blocks when the replica ends

Done = Callable[[], None]


class Invoker:
    """Runs the calls of one replica.

    ``max_threads``: how many ``def`` handlers may run at a time. Make it on the loop that serves, with
    ``context.replica`` set: every call inherits the context variables of that moment.
    """

    def __init__(self, target: Target, clock: Clock, max_threads: int = 1) -> None:
        self.target = target
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.threads = Threads(max_threads, self.loop)
        self._context = contextvars.copy_context()
        self._running: set[Invocation] = set()
        self._closing = False
        self._idle: asyncio.Event = asyncio.Event()

    @property
    def ongoing(self) -> int:
        """How many calls have not ended."""
        return len(self._running)

    def run(self, exchange: Exchange, done: Done | None = None) -> None:
        """Starts a call; ``done()`` is called once, when it has ended and its user code too."""
        if self._closing:
            exchange.refuse()
            if done is not None:
                done()
            return
        if exchange.body[:1] == IN_PARTS and exchange.head.kind == PYTHON and not self._fetch(exchange):
            if done is not None:
                done()
            return
        exchange.begin()
        invocation = Invocation(self, exchange, done)
        self._running.add(invocation)
        exchange.on_cancel = invocation.cancel
        invocation.task = self.loop.create_task(invocation.run(), context=self._context.copy())

    def _fetch(self, exchange: Exchange) -> bool:
        """Holds the memory that the arguments lie in, before the caller hears that the call has started."""
        try:
            exchange.body = receive(exchange.body, exchange.session.peer_pid)
        except Exception as error:  # also what the system says of descriptors and memory: the slot must come free
            exchange.fail(error)
            return False
        return True

    def ended(self, invocation: Invocation) -> None:
        """An invocation is over (called by itself)."""
        self._running.discard(invocation)
        if not self._running:
            self._idle.set()

    async def close(self, grace_s: float, waited_s: float = 0.0) -> None:
        """Refuses new calls, gives those under way ``grace_s`` to end, then cancels the rest. Hanging threads stay.

        ``waited_s``: how much grace they had before.
        """
        self._closing = True
        await self._until_idle(grace_s)
        for invocation in tuple(self._running):
            invocation.stop(f"the replica was shut down and its grace period of {waited_s + grace_s:g} s is over")
        await self._until_idle(CLEANUP_S)
        self.threads.close()

    async def _until_idle(self, limit_s: float) -> None:
        if self._running and limit_s > 0:
            self._idle.clear()
            await within(self.clock, self._idle.wait(), limit_s)


class Invocation:
    """One call under way. To a Request it is the caller's side (``Incoming``)."""

    __slots__ = (
        "_done",
        "_gone",
        "_started",
        "cancel_cause",
        "cancel_reason",
        "context",
        "deadline",
        "exchange",
        "invoker",
        "task",
        "whole",
    )

    def __init__(self, invoker: Invoker, exchange: Exchange, done: Done | None) -> None:
        self.invoker = invoker
        self.exchange = exchange
        self.whole = exchange.complete  # now: later it only says that the rest has arrived
        self.cancel_reason: str | None = None
        self.cancel_cause: CancelCause = "cancelled"
        self.context: context.RequestContext | None = None
        timeout_s = exchange.head.timeout_s
        self.deadline = None if timeout_s is None else invoker.clock.now() + timeout_s
        self.task: asyncio.Task[None] | None = None
        self._done = done
        self._gone: asyncio.Future[None] | None = None
        self._started = False

    # -- Incoming -------------------------------------------------------------------------------

    @property
    def body(self) -> bytes:
        return self.exchange.body

    @property
    def complete(self) -> bool:
        return self.exchange.complete

    async def receive(self) -> bytes | None:
        return await self.exchange.receive()

    async def gone(self) -> None:
        """Waits until the call has ended or was cancelled."""
        if self.cancel_reason is None and not self.exchange.ended:
            if self._gone is None:
                self._gone = self.invoker.loop.create_future()
            await asyncio.shield(self._gone)

    def _say_gone(self) -> None:
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    # -- outside events -------------------------------------------------------------------------

    def cancel(self, reason: str, cause: CancelCause) -> None:
        """The caller cancelled or is gone: stops the handler and the calls under it."""
        if self.cancel_reason is not None:
            return
        self.cancel_reason, self.cancel_cause = reason, cause
        self._say_gone()
        if self.context is not None:
            self.context.cancel(reason, cause)
        if self._started and self.task is not None:  # a task that has not started looks at cancel_reason itself
            self.task.cancel(reason)

    def stop(self, reason: str) -> None:
        """The replica gives the call up: the caller hears of it at once."""
        self.exchange.fail(ReplicaStoppedError(f"Request {self.exchange.head.request_id}: {reason}."))
        self.cancel(reason, "shutting_down")

    def _client_left(self) -> None:
        """The client of a WebSocket is gone: nobody takes what is under way. The application hears of it by a message,
        and what it still calls to clean up goes through.
        """
        if self.context is not None:
            self.context.cancel_children("the client disconnected", "client_disconnected")

    # -- the run --------------------------------------------------------------------------------

    async def run(self) -> None:
        """The whole call; never raises."""
        self._started = True
        try:
            if self.cancel_reason is None:
                self._enter()
                await _RUNNERS[self.exchange.head.kind](self)
        except asyncio.CancelledError:
            self._fail_cancelled()
        except BaseException as error:  # also what is no Exception: the caller hears of it, the replica lives on
            self._fail(error)
        finally:
            if not self.exchange.ended:  # ours to mend, but not at the cost of the caller
                self.exchange.fail(RuntimeError("the call ended without an answer"))
            self.exchange.on_cancel = self.exchange.on_complete = (
                None  # or each would keep the other, and the body, until the next full collection
            )
            self._say_gone()
            self.invoker.ended(self)
            if self._done is not None:
                self._done()

    def _enter(self) -> None:
        head, target = self.exchange.head, self.invoker.target
        self.context = context.RequestContext(
            head.request_id, target.app, target.deployment, head.route, self.deadline, self.invoker.clock.now
        )
        context.request.set(self.context)
        self._check_deadline()

    def _check_deadline(self) -> None:
        """Raises CallTimeoutError for work whose time is over before it begins."""
        if self.deadline is not None and self.invoker.clock.now() >= self.deadline:
            head = self.exchange.head
            raise CallTimeoutError(
                f"Request {head.request_id} ran out of time before {self.invoker.target.deployment!r} began with it; "
                "it was not executed."
            )

    # -- Python calls ---------------------------------------------------------------------------

    async def _run_python(self) -> None:
        head = self.exchange.head
        method = self.invoker.target.method(head.method or "__call__")
        if method.is_generator and not head.stream:
            raise self._mismatch(method.name)
        payload = self.exchange.body if self.whole else await self._rest()
        if method.kind == "sync":
            value, packed = await self.invoker.threads.run(lambda: self._work(method, payload))
        else:
            args, kwargs = _arguments(method, payload)
            value, packed = method.function(*args, **kwargs), None
            if method.kind == "async":
                value = await value
        if _is_awaitable(value):
            value = await value  # a Response of another handle, or a coroutine: its value is meant
        if head.stream:
            await self._stream_python(method, value)
        elif packed is not None:
            self.exchange.reply(packed)
        else:
            self._reject_stream(method, value)
            self.exchange.reply(self._packed(value))

    def _work(self, method: Method, payload: bytes) -> tuple[Any, bytes | None]:
        """A ``def`` method, on its thread: the value, and its pickle if that is what is wanted."""
        self._check_deadline()
        args, kwargs = _arguments(method, payload)
        value = method.function(*args, **kwargs)
        if self.exchange.head.stream or _is_awaitable(value):
            return value, None
        self._reject_stream(method, value)
        return None, self._packed(value)

    def _packed(self, value: Any) -> bytes:
        """A result or an item as it travels to this caller."""
        exchange = self.exchange
        return dumps(value, share=exchange.session.wire.shares and not exchange.ended)

    async def _rest(self) -> bytes:
        """The whole input of a call that came in pieces."""
        chunks = [self.exchange.body]
        while (chunk := await self.exchange.receive()) is not None:
            chunks.append(chunk)
        return b"".join(chunks)

    async def _stream_python(self, method: Method, value: Any) -> None:
        if not is_stream(value):
            raise StreamMismatchError(
                f"{self._named(method.name)} was called with stream=True but returned {type(value).__name__}, "
                "not a generator. Call it without stream=True."
            )
        out = Outflow(self, self.exchange, self.invoker.clock)
        if type(value) is ResponseStream and value.is_untouched:
            await out.pass_on(value)
        else:
            items = Items(self._packed)
            on_loop = hasattr(type(value), "__anext__")
            stream = value if on_loop else Feed(self.invoker.threads, value, items.prepare)
            async with closing(stream):
                await out.drain(stream, items, items.add if on_loop else items.add_prepared)
        self.exchange.end()

    def _reject_stream(self, method: Method, value: Any) -> None:
        if hasattr(type(value), "__anext__") or hasattr(type(value), "gi_frame"):
            raise self._mismatch(method.name)

    def _mismatch(self, name: str) -> StreamMismatchError:
        return StreamMismatchError(
            f"{self._named(name)} is a generator; call it with handle.options(stream=True) and iterate over the answer."
        )

    def _named(self, method: str) -> str:
        return f"Method {method!r} of deployment {self.invoker.target.deployment!r}"

    # -- HTTP calls -----------------------------------------------------------------------------

    async def _run_http(self) -> None:
        target, http = self.invoker.target, self.exchange.head.http
        if target.asgi is not None:
            self._log_late(await asgi.serve_http(target.asgi, decode_http(http), self, self.exchange, target.state))
            return
        method = target.method(self.exchange.head.method or "__call__")
        args = (Request.of(http, self),) if method.takes_argument else ()
        if method.kind == "sync":
            value, reply = await self.invoker.threads.run(lambda: self._work_http(method, args))
        elif method.kind == "async":
            value = await method.function(*args)
            reply = render(value)
        else:
            value, reply = method.function(*args), None
        if reply is None and _is_awaitable(value):
            value = await value
            reply = render(value)
        if reply is None:
            await self._answer_in_steps(value)
            return
        self.exchange.reply_http(*reply)
        if isinstance(value, Response) and value.background is not None:
            await self._in_background(value.background)

    def _work_http(self, method: Method, args: tuple[Any, ...]) -> tuple[Any, Any]:
        """A ``def`` handler, on its thread: what it returned, and the reply if that is made in one step."""
        self._check_deadline()
        value = method.function(*args)
        return value, render(value)

    async def _answer_in_steps(self, value: Any) -> None:
        if isinstance(value, Response):
            self._log_late(await asgi.serve_http(value, decode_http(self.exchange.head.http), self, self.exchange))
            return
        on_loop = hasattr(type(value), "__anext__")
        stream = value if on_loop else Feed(self.invoker.threads, value, _with_chunk)
        async with closing(stream):
            await self._stream_http(stream, on_loop)
        self.exchange.end()

    async def _stream_http(self, stream: Any, on_loop: bool) -> None:
        out, body = Outflow(self, self.exchange, self.invoker.clock), Pieces()
        try:
            first = await anext(stream)
        except StopAsyncIteration:
            await self.exchange.start_http(stream_head(b""))
            return
        item, chunk = _with_chunk(first) if on_loop else first
        await self.exchange.start_http(stream_head(item), chunk)
        await out.turn()
        if on_loop:
            await out.drain(stream, body, lambda item: body.add(stream_chunk(item)))
        else:
            await out.drain(stream, body, lambda pair: body.add(pair[1]))

    async def _in_background(self, background: Callable[[], Any]) -> None:
        try:
            await background()
        except Exception as error:
            self._log_late(error)

    async def _run_websocket(self) -> None:
        target = self.invoker.target
        if target.asgi is None:
            raise MethodNotFoundError(
                f"Deployment {target.deployment!r} of application {target.app!r} has no WebSocket route; "
                "give it a FastAPI application with one, by @serve.ingress(app)."
            )
        self.exchange.on_complete = self._client_left  # its last message is that it leaves
        http = decode_http(self.exchange.head.http)
        self._log_late(await asgi.serve_websocket(target.asgi, http, self, self.exchange, target.state))

    # -- failures -------------------------------------------------------------------------------

    def _fail_cancelled(self) -> None:
        reason = self.cancel_reason or "the handler raised CancelledError, though nobody had cancelled the request"
        text = f"Request {self.exchange.head.request_id} was cancelled: {reason}."
        self.exchange.fail(RequestCancelledError(text, self.cancel_cause))

    def _fail(self, error: BaseException) -> None:
        try:
            text = user_traceback(error)
            self._log(error, text)
        except Exception:  # exceptions are user code, too
            logger.error("an exception of type %s cannot be shown", type(error).__name__)
            text = ""
        self.exchange.fail(error, text)

    def _log_late(self, error: BaseException | None) -> None:
        """Logs an error that came after the answer was complete."""
        if error is not None:
            self._log(error, user_traceback(error))

    def _log(self, error: BaseException, text: str | None) -> None:
        head, target = self.exchange.head, self.invoker.target
        place = f"{target.app}/{target.deployment}"
        if text is None:
            logger.warning("request %s to %s: %s: %s", head.request_id, place, type(error).__name__, error)
        else:
            logger.error("request %s to %s failed\n%s", head.request_id, place, text.rstrip())


_RUNNERS = {PYTHON: Invocation._run_python, HTTP: Invocation._run_http, WEBSOCKET: Invocation._run_websocket}


def _arguments(method: Method, payload: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = loads(payload) if payload else ((), {})
    if method.wants_request and not args and not kwargs:
        return (Request.empty(),), {}
    return args, kwargs


def _is_awaitable(value: Any) -> bool:
    """Whether something else comes of it when it is awaited. (A ResponseStream can be, too, to say that it cannot.)"""
    return hasattr(type(value), "__await__") and type(value) is not ResponseStream


def _with_chunk(item: Any) -> tuple[Any, bytes]:
    """An item, and what goes to an HTTP client for it."""
    return item, stream_chunk(item)
