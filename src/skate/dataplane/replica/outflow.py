"""A stream on its way from user code to its caller: pieces are gathered, and leave together.

Law: the first piece leaves at once; a later one when the generator waits, when ``BATCH_MAX`` bytes have come together,
and at the latest after ``TURN_S``. Nothing is taken from the generator while the caller gives no credit, so a slow
reader stops it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from skate.core.clock import Clock
from skate.dataplane.payload import relayed
from skate.dataplane.replica.batch import BATCH_MAX
from skate.dataplane.stream import ResponseStream
from skate.dataplane.transport.exchange import Exchange, Gathering

TURN_S = 0.001  # a stream that never waits gives the loop a turn this often, so that its items really leave


@asynccontextmanager
async def closing(stream: Any) -> AsyncIterator[Any]:
    """Closes a stream at the end, if it can be closed."""
    try:
        yield stream
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


class Cancelled(Protocol):
    """The call that is answered, as far as it is needed here."""

    cancel_reason: str | None


class Outflow:
    """The way out of one call's answer."""

    __slots__ = ("_call", "_clock", "_exchange", "_next_turn")

    def __init__(self, call: Cancelled, exchange: Exchange, clock: Clock) -> None:
        self._call = call
        self._exchange = exchange
        self._clock = clock
        self._next_turn = 0.0

    async def drain(self, stream: Any, gathering: Gathering, add: Callable[[Any], bytes | None]) -> None:
        """Sends all items of an async iterator. ``add`` puts one into ``gathering``, or gives what must leave alone."""
        exchange, now = self._exchange, self._clock.now
        exchange.gather(gathering)
        async for item in stream:
            if self._call.cancel_reason is not None:
                self._stop()
            if gathering.size:
                alone = add(item)
            else:
                if not exchange.may_gather():
                    await exchange.room()
                alone = add(item)
                if alone is None:
                    exchange.gathered()
            if alone is not None:
                await (exchange.send_body(alone) if gathering.may_cut else self._leave(alone))
            elif gathering.size >= BATCH_MAX:
                exchange.pack()
            if now() >= self._next_turn:
                await self.turn()

    async def pass_on(self, stream: ResponseStream[Any]) -> None:
        """Sends a stream of another deployment as it comes, unopened; it is held back like any other."""
        exchange = self._exchange
        try:
            while (frame := await stream.next_frame()) is not None:
                if self._call.cancel_reason is not None:
                    self._stop()
                data, many = frame
                if type(data) is not bytes:
                    data = relayed(data, exchange.session.wire.shares)
                await (exchange.send_items(data) if many else exchange.send(data))
                if self._clock.now() >= self._next_turn:
                    await self.turn()
        finally:
            if not stream.done():
                stream.cancel()

    async def turn(self) -> None:
        """Lets the loop turn once, so that what was said leaves."""
        await asyncio.sleep(0)
        self._next_turn = self._clock.now() + TURN_S

    async def _leave(self, alone: bytes) -> None:
        exchange = self._exchange
        if not exchange.send_nowait(alone):
            await exchange.send(alone)

    def _stop(self) -> None:
        """A generator that swallows its cancellation would go on for ever."""
        raise asyncio.CancelledError(self._call.cancel_reason)
