"""The caller's end of a stream: the items that a generator in a replica yields.

Law: what arrives waits here in frames, as it came; a frame is opened, and the callee gets credit for it, when its first
item is taken. So no item costs a future or a decision of its own, a slow reader stops the callee, and who only passes a
stream on never opens anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from skate.core.errors import CodeError, ResultInLoopError, StreamMismatchError
from skate.dataplane.call import Call
from skate.dataplane.caller import Caller
from skate.dataplane.payload import loads, size_of
from skate.dataplane.pending import Pending, arrived, wake_on, waker
from skate.dataplane.wire.head import CallHead
from skate.dataplane.wire.items import Segment, split_segments
from skate.dataplane.wire.parts import IN_PARTS

if TYPE_CHECKING:  # a bare ResponseStream is one of Any, under --strict too
    from typing_extensions import TypeVar as _TypeVar

    R_co = _TypeVar("R_co", covariant=True, default=Any)
else:
    R_co = TypeVar("R_co", covariant=True)

Arrived = tuple[bytes, bool]  # a chunk as it came, and whether it holds many items


class StreamCall(Call):
    """The record of a call that answers with a stream."""

    __slots__ = ("response",)

    def __init__(self, key: str, head: CallHead, deadline: float | None, response: ResponseStream[Any]) -> None:
        super().__init__(key, head, deadline)
        self.response = weakref.ref(response)  # a stream that nobody can read any more is cancelled

    def on_chunk(self, data: bytes) -> None:
        response = self.response()
        if response is not None:
            if data[:1] == IN_PARTS:
                data = arrived(self, data)
                if self.outcome is not None:
                    return
            response._arrived((data, False))

    def on_items(self, data: bytes) -> None:
        response = self.response()
        if response is not None:
            response._arrived((data, True))

    def on_end(self, error: BaseException | None) -> None:
        response = self.response()
        if response is not None:
            response._finish(error)


class ResponseStream(Pending, Generic[R_co]):
    """The items that a generator in a replica yields: ``async for`` on any loop, ``for`` without one.

    The callee is held back when the items are not taken: a window of the wire waits here, the rest is not made yet.
    Returned by a handler, it is passed on to that handler's own caller, unopened.
    """

    __slots__ = ("__weakref__", "_elsewhere", "_frames", "_segments", "_taken", "_values")

    def __init__(self, caller: Caller, request_id: str) -> None:
        super().__init__(caller, request_id)
        self._frames: deque[Arrived] = deque()  # not taken yet (of the router's loop)
        self._taken: deque[Arrived] = deque()  # fetched from the loop's side by another thread or loop
        self._segments: deque[Segment] = deque()  # of the frame that was opened last
        self._values: deque[Any] = deque()  # of the run that was opened last
        self._elsewhere = False  # somebody there waits for more

    # -- items ----------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[R_co]:
        return self._iterate()

    async def _iterate(self) -> AsyncGenerator[R_co, None]:
        values, segments = self._values, self._segments
        while True:
            while values:
                yield values.popleft()
            if segments:
                run, data = segments.popleft()
                if run:
                    values.extend(loads(data))
                else:
                    yield loads(data)
            elif not await self._more():
                return

    async def __anext__(self) -> R_co:
        while not self._values:
            if self._segments:
                self._open_segment()
            elif not await self._more():
                raise StopAsyncIteration
        value: R_co = self._values.popleft()
        return value

    def __iter__(self) -> Iterator[R_co]:
        return self._iterate_here()

    def _iterate_here(self) -> Generator[R_co, None, None]:
        values, segments = self._values, self._segments
        while True:
            while values:
                yield values.popleft()
            if segments:
                self._open_segment()
            elif not self._more_here():
                return

    def __next__(self) -> R_co:
        while not self._values:
            if self._segments:
                self._open_segment()
            elif not self._more_here():
                raise StopIteration
        value: R_co = self._values.popleft()
        return value

    def _open_segment(self) -> None:
        run, data = self._segments.popleft()
        value = loads(data)
        if run:
            self._values.extend(value)
        else:
            self._values.append(value)

    def _open(self, frame: Arrived) -> None:
        data, many = frame
        if many:
            self._segments.extend(split_segments(data))
        else:
            self._segments.append((False, data))

    # -- frames ---------------------------------------------------------------------------------

    async def _more(self) -> bool:
        """Opens the next frame; False at the end of the stream. Raises what ended it otherwise."""
        frame = await self.next_frame()
        if frame is None:
            return False
        self._open(frame)
        return True

    def _more_here(self) -> bool:
        """The same for code without a loop."""
        if asyncio._get_running_loop() is not None:
            raise ResultInLoopError("a for loop over a stream would block the running event loop: use `async for`")
        while not self._taken:
            event = threading.Event()
            self._on_loop(self._fetch, event.set)
            event.wait()
            if not self._taken and self._done and not self._frames:
                return self._ended()
        self._open(self._taken.popleft())
        return True

    async def next_frame(self) -> Arrived | None:
        """The next chunk as it came, for whoever passes it on; None at the end. Raises what ended the stream."""
        loop = asyncio.get_running_loop()
        if loop is not self._caller.loop:
            return await self._frame_elsewhere(loop)
        while True:
            if (
                self._taken
            ):  # fetched for another thread, which went away: they are older than those that are still here
                return self._taken.popleft()
            if self._frames:
                return self._take()
            if self._done:
                self._ended()
                return None
            waiter: asyncio.Future[None] = loop.create_future()
            wake = waker(waiter)
            self._listeners.append(wake)
            try:
                await waiter
            except BaseException:
                self._forget(wake)
                raise

    async def _frame_elsewhere(self, loop: asyncio.AbstractEventLoop) -> Arrived | None:
        while not self._taken:
            waiter: asyncio.Future[None] = loop.create_future()
            wake = wake_on(loop, waiter)
            self._on_loop(self._fetch, wake)
            try:
                await waiter
            except BaseException:
                self._on_loop(self._forget, wake)
                raise
            if not self._taken and self._done and not self._frames:
                self._ended()
                return None
        return self._taken.popleft()

    @property
    def is_untouched(self) -> bool:
        """Whether no frame is half read."""
        return not self._values and not self._segments

    def _ended(self) -> bool:
        if self._error is not None:
            self._raise()
        return False

    def _take(self) -> Arrived:
        """The oldest frame; gives the callee credit for it (on the router's loop)."""
        frame = self._frames.popleft()
        if self._call is not None:
            self._call.consumed(size_of(frame[0]))
        return frame

    def _fetch(self, wake: Callable[[], object]) -> None:
        """Hands all frames that are here to another thread, or wakes it when some come (on the router's loop)."""
        self._hand_over()
        if self._taken or self._done:
            wake()
        else:
            self._elsewhere = True
            self._listeners.append(wake)

    def _hand_over(self) -> None:
        self._elsewhere = False
        while self._frames:
            self._taken.append(self._take())

    def _arrived(self, frame: Arrived) -> None:
        self._frames.append(frame)
        if self._elsewhere:  # before anybody is woken: some who waited may have gone away
            self._hand_over()
        if self._listeners:
            listeners, self._listeners = self._listeners, []
            for listener in listeners:
                listener()

    def _finish(self, error: BaseException | None) -> None:
        self._settle(error)

    def _failed(self, error: BaseException) -> None:
        self._finish(error)

    def __await__(self) -> NoReturn:
        raise StreamMismatchError("a stream has no single value: iterate it, or call without stream=True")

    def result(self, *, timeout_s: float | None = None) -> NoReturn:
        """A stream has no single result; always raises StreamMismatchError."""
        raise StreamMismatchError("a stream has no single result: iterate it, or call without stream=True")

    def __del__(self) -> None:
        call = self._call
        if call is not None and not self._done:
            with contextlib.suppress(RuntimeError):  # the loop is closed: so is the call
                self._caller.loop.call_soon_threadsafe(call.cancel, "its stream was dropped before the end")

    async def resolve(self) -> NoReturn:
        raise CodeError("a stream cannot be an argument of another call: collect its items first")

    def __repr__(self) -> str:
        return f"<ResponseStream {self._request_id} {'done' if self._done else 'under way'}>"
