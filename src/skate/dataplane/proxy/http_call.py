"""One HTTP request as a call of the Router, and the answer as it comes in.

Law: the callbacks only take notes and wake the one coroutine that waits; a client that goes away ends the call. An
answer given in one piece is complete before that coroutine looks for the first time, so it is woken once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from skate.dataplane.call import Call
from skate.dataplane.wire.head import CallHead, ReplyHead

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[Any]]

GONE = "the client disconnected"
LAST_WORDS_S = 1.0  # for a client to take what a failed call had said before it failed


class Reception(Call):
    """A call whose answer is taken up by one coroutine, piece by piece."""

    __slots__ = ("_news", "chunks", "error", "override", "reply", "writer")

    def __init__(self, deployment_key: str, head: CallHead, deadline: float | None) -> None:
        super().__init__(deployment_key, head, deadline)
        self.reply: ReplyHead | None = None
        self.chunks: list[bytes] = []  # bounded by the credit that ``consumed`` gives
        self.error: BaseException | None = None
        self.override: BaseException | None = None  # what the client is told instead of the call's own error
        self.writer: asyncio.Task[Any] | None = None  # set while it waits for the client to take data
        self._news: asyncio.Future[None] | None = None

    def on_reply_head(self, head: ReplyHead) -> None:
        self.reply = head
        self._tell()

    def on_chunk(self, data: bytes) -> None:
        self.chunks.append(data)
        self._tell()

    def on_end(self, error: BaseException | None) -> None:
        self.error = error
        self._tell()
        if error is not None and self.writer is not None:
            self.writer.cancel()  # the client may never take what it was sent: do not wait for that

    def fail(self, error: BaseException) -> None:
        """Ends the call; the client is told this error."""
        if self.outcome is None:
            self.override = error
            self.cancel(str(error))

    async def news(self) -> None:
        """Waits until something has come since the notes were last looked at."""
        self._news = asyncio.get_running_loop().create_future()
        await self._news

    def _tell(self) -> None:
        waiter, self._news = self._news, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def take(self) -> list[bytes]:
        """The pieces that have come and were not taken yet; give credit for each when it is dealt with."""
        chunks, self.chunks = self.chunks, []
        return chunks

    async def write(self, send: Send, message: Message) -> bool:
        """Sends, but does not wait for a slow client once the call has failed. False: it has, while this waited."""
        if self.outcome is None:
            return await self._write_while_open(send, message)
        if self.error is None:
            await send(message)
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await send(message)
                return True
        return False

    async def _write_while_open(self, send: Send, message: Message) -> bool:
        task = self.writer = asyncio.current_task()
        assert task is not None
        try:
            await send(message)
        except asyncio.CancelledError:
            if self.error is None or task.uncancel() > 0:
                raise  # somebody else wants this task to end
            return False
        finally:
            self.writer = None
        return True


class HttpCall(Reception):
    """A request of a client that may go away. ``receive`` is set once its body has been read."""

    __slots__ = ("_heard", "receive")

    def __init__(self, deployment_key: str, head: CallHead, deadline: float | None) -> None:
        super().__init__(deployment_key, head, deadline)
        self.receive: Receive | None = None
        self._heard: Any = None

    def watch(self) -> None:
        """From now on the call ends when the client goes away.

        Granian's receive() gives an object like a future, so this costs no task; it reports a disconnect while
        the handler waits, also on kept-alive connections, and a half-closed one counts as gone (measured with 2.8.7).
        What it does not notice is a client that leaves after it has pipelined a further request.
        """
        if self._heard is None and self.outcome is None:
            self._listen()

    def unwatch(self) -> None:
        """The request is over."""
        if isinstance(self._heard, asyncio.Task):  # Granian's own futures end with the request
            self._heard.cancel()

    def _listen(self) -> None:
        if self.receive is not None:
            heard: Any = self.receive()
            self._heard = heard if hasattr(heard, "add_done_callback") else asyncio.ensure_future(heard)
            self._heard.add_done_callback(self._on_message)

    def _on_message(self, heard: Any) -> None:
        if heard.cancelled() or heard.exception() is not None or self.outcome is not None:
            return
        if heard.result()["type"] == "http.disconnect":
            self.cancel(GONE)
        else:
            self._listen()  # that was the empty message which ends a body of known length
