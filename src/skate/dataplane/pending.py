"""What both kinds of response share: the call, its end, and who waits for it.

Law: the record of the call and the list of those who wait belong to the router's loop; other threads only read
``_done`` and what was written before it. Who no longer waits leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from skate.authoring.code import dumps
from skate.core.errors import CallTimeoutError, CancelCause, CodeError, RequestCancelledError, SkateError
from skate.dataplane.ledger import Outcome
from skate.dataplane.payload import receive
from skate.dataplane.transport.failure import rebuild

if TYPE_CHECKING:
    from skate.dataplane.call import Call
    from skate.dataplane.caller import Caller


class Pending:
    """A call that was made: its end, and who waits for it."""

    __slots__ = ("_call", "_caller", "_done", "_error", "_listeners", "_request_id")

    def __init__(self, caller: Caller, request_id: str) -> None:
        self._caller = caller
        self._request_id = request_id
        self._call: Call | None = None
        self._done = False
        self._error: BaseException | None = None
        self._listeners: list[Callable[[], object]] = []

    @property
    def request_id(self) -> str:
        """The id that this call has in logs and in calls made under it."""
        return self._request_id

    def cancel(self) -> None:
        """Ends the call if it is still under way: it leaves the queue, or its task in the replica is cancelled.

        Whoever waits for the response gets RequestCancelledError. Synchronous code that already runs cannot be
        interrupted; its result is dropped.
        """
        self._on_loop(self._cancel)

    def cancelled(self) -> bool:
        """Whether the call ended by being cancelled."""
        return isinstance(self._error, RequestCancelledError)

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._done

    def _cancel(self) -> None:
        if self._call is not None:
            self._call.cancel("its caller called cancel()")
        elif not self._done:
            self._failed(RequestCancelledError(f"request {self._request_id} was cancelled before it was sent"))

    def _failed(self, error: BaseException) -> None:
        raise NotImplementedError

    def _on_loop(self, function: Callable[..., object], *args: Any) -> None:
        if asyncio._get_running_loop() is self._caller.loop:
            function(*args)
        else:
            self._caller.loop.call_soon_threadsafe(function, *args)

    def _when_done(self, listener: Callable[[], object]) -> None:
        if self._done:
            listener()
        else:
            self._listeners.append(listener)

    def _forget(self, listener: Callable[[], object]) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

    def _settle(self, error: BaseException | None) -> None:
        self._error = error
        self._call = None  # it holds this response: without the circle both go when the last user does
        self._done = True
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()

    def _raise(self) -> NoReturn:
        error = self._error
        assert error is not None
        rebuilt = rebuild(error)
        self._error = rebuilt
        raise rebuilt.with_traceback(None)  # or it would grow with each who asks

    def __reduce__(self) -> NoReturn:
        raise CodeError(
            "a response cannot be sent inside another value: give it to .remote() as an argument of its own, "
            "where it is replaced by its value, or await it first"
        )


class Resolving:
    """A call that waits for its arguments and so is no call yet, as the request above it sees it."""

    __slots__ = ("_answer", "_task")

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self._task = asyncio.current_task()

    def cancel(self, reason: str, cause: CancelCause) -> None:
        answer = self._answer
        if not answer._done:
            what = f"request {answer.request_id} waited for the arguments of a call and"
            if cause == "timed_out":
                answer._failed(CallTimeoutError(f"{what} timed out: {reason}"))
            else:
                answer._failed(RequestCancelledError(f"{what} was cancelled: {reason}", cause))
        if self._task is not None:
            self._task.cancel(reason)


def arrived(call: Call, data: bytes) -> bytes:
    """A payload in parts that came for a call, with its memory held; where that is gone, the call ends with it."""
    link = call.link
    try:
        return receive(data, link.peer.peer_pid if link is not None and link.peer is not None else 0)
    except SkateError as error:
        call.drop(Outcome.LOST, error, "its answer could not be fetched", "cancelled")
        return b""


def waker(waiter: asyncio.Future[None]) -> Callable[[], object]:
    """Wakes who waits on this loop."""
    return lambda: None if waiter.done() else waiter.set_result(None)


def wake_on(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> Callable[[], object]:
    """Wakes who waits on another loop."""
    wake = waker(waiter)

    def from_elsewhere() -> None:
        try:
            loop.call_soon_threadsafe(wake)
        except RuntimeError:  # the loop that waited is closed: nobody waits any more
            pass

    return from_elsewhere


def unsendable(
    app: str, deployment: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> CodeError | None:
    """The error that names the first argument of a call that does not pickle; None if each of them does."""
    named = [*((f"argument {place}", value) for place, value in enumerate(args, 1))]
    named += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for name, value in named:
        try:
            dumps(value)
        except CodeError as error:
            return CodeError(
                f"{name} of the call to {app}/{deployment}.{method}: {error}. Give it something that can be pickled, "
                "such as what the value is made from"
            )
    return None
