"""Typed calls to the controller. Law: one method for each control call; what goes wrong is an error of the tree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from skate.core.errors import NotRunningError
from skate.core.specs import AppSpec, ServeStatus
from skate.dataplane.transport.peers import Peer

DELETE_TIMEOUT_S = 3600.0  # deleting takes as long as the longest grace; this only bounds a hang
_status_decoder = msgspec.msgpack.Decoder(ServeStatus)
_encode = msgspec.msgpack.Encoder().encode


class ControllerClient:
    """The controller at the other end of ``peer``. Belongs to the loop that the peer lives in."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    async def deploy(self, app: AppSpec) -> None:
        """Wants this application; returns when that is stored. Raises OptionError (route in use)."""
        await self.peer.ask("deploy", _encode(app))

    async def delete(self, name: str, timeout_s: float | None = DELETE_TIMEOUT_S) -> None:
        """Deletes an application; returns when its replicas are gone. Raises NotFoundError."""
        await self.peer.ask("delete", _encode(name), timeout_s)

    async def status(self) -> ServeStatus:
        """The whole instance."""
        return _status_decoder.decode(await self.peer.ask("status"))

    async def metrics(self) -> str:
        """The whole instance as Prometheus text."""
        return (await self.peer.ask("metrics")).decode()

    async def watch_status(self) -> AsyncIterator[ServeStatus]:
        """The whole instance now and at every change; of several quick changes only the last.

        Ends with NotRunningError when the controller ends or the connection is lost.
        """
        latest: list[bytes] = []  # at most one: an older status is of no interest
        news = asyncio.Event()
        ends: list[BaseException | None] = []

        def on_chunk(data: bytes) -> None:
            latest[:] = [data]
            news.set()

        def on_end(error: BaseException | None) -> None:
            ends.append(error)
            news.set()

        stop = self.peer.subscribe("watch_status", b"", on_chunk, on_end)
        try:
            while True:
                await news.wait()
                news.clear()
                if latest:
                    yield _status_decoder.decode(latest.pop())
                elif ends:
                    raise NotRunningError("the Skate instance has ended, or its controller is gone") from ends[0]
                if ends:
                    news.set()
        finally:
            stop()

    async def shutdown(self) -> None:
        """Ends the instance: answers at once, then ends proxies, replicas and the controller."""
        await self.peer.ask("shutdown")
