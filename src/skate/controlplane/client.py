"""Typed calls to the controller. Law: one method for each control call; what goes wrong is an error of the tree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec

from skate.core.config import ApplyRequest, ServeConfig
from skate.core.errors import NotRunningError
from skate.core.specs import AppPlan, AppSpec, Event, Revision, ServeStatus
from skate.dataplane.transport.peers import Peer

DELETE_TIMEOUT_S = 3600.0  # deleting takes as long as the longest grace; this only bounds a hang
ASK_TIMEOUT_S = 30.0
BUILD_TIMEOUT_S = 600.0  # user code is imported, as slowly as it likes
T = TypeVar("T")
_status_decoder = msgspec.msgpack.Decoder(ServeStatus)
_encode = msgspec.msgpack.Encoder().encode


class DeployRequest(msgspec.Struct, frozen=True):
    """An application that was built by who asks."""

    app: AppSpec
    by: str = ""


class ScaleRequest(msgspec.Struct, frozen=True):
    """Another number of replicas."""

    app: str
    deployment: str
    replicas: int
    by: str = ""


class DeleteRequest(msgspec.Struct, frozen=True):
    """An application shall go, if it is (still) of that revision."""

    app: str
    revision: int | None = None


class RollbackRequest(msgspec.Struct, frozen=True):
    """A former revision shall be wanted again; None: the one before."""

    app: str
    revision: int | None = None
    by: str = ""


class EventsRequest(msgspec.Struct, frozen=True):
    """Which part of the log of events."""

    after: int = 0
    app: str | None = None
    limit: int = 1000


class ControllerClient:
    """The controller at the other end of ``peer``. Belongs to the loop that the peer lives in."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    async def deploy(self, app: AppSpec, by: str = "") -> int:
        """Wants this application; its revision, when that is stored. Raises OptionError (route in use).

        ``by``: who asks, in words.
        """
        return await self._asked("deploy", DeployRequest(app, by), int)

    async def apply(self, request: ApplyRequest) -> dict[str, int]:
        """Wants these applications; when that is stored, the number of each order, by name.

        They are built and deployed after that: the status says how it goes, under the name of each application.
        Raises OptionError (routes in use, two applications of one name).
        """
        return await self._asked("apply", request, dict[str, int])

    async def plan(self, request: ApplyRequest, timeout_s: float | None = BUILD_TIMEOUT_S) -> list[AppPlan]:
        """What ``apply`` would do, after building everything and deploying nothing."""
        return await self._asked("plan", request, list[AppPlan], timeout_s)

    async def config(self) -> ServeConfig:
        """What was applied and is in force, as a file would say it."""
        return await self._asked("config", None, ServeConfig)

    async def scale(self, app: str, deployment: str, replicas: int, by: str = "") -> None:
        """Wants another number of replicas of one deployment. Raises NotFoundError, OptionError (autoscaled)."""
        await self.peer.ask("scale", _encode(ScaleRequest(app, deployment, replicas, by)))

    async def delete(self, name: str, timeout_s: float | None = DELETE_TIMEOUT_S, revision: int | None = None) -> None:
        """Deletes an application; returns when its replicas are gone. Raises NotFoundError.

        ``revision``: only if it is still that one; a later one is somebody else's and stays.
        """
        await self.peer.ask("delete", _encode(DeleteRequest(name, revision)), timeout_s)

    async def history(self, app: str) -> list[Revision]:
        """The kept revisions, oldest first. Raises NotFoundError."""
        return await self._asked("history", app, list[Revision])

    async def rollback(self, app: str, revision: int | None = None, by: str = "") -> int:
        """Wants a former revision again (None: the last one that worked before this); the new revision's number.

        Raises NotFoundError when it is not kept.
        """
        return await self._asked("rollback", RollbackRequest(app, revision, by), int)

    async def events(self, after: int = 0, app: str | None = None, limit: int = 1000) -> list[Event]:
        """The newest events with an id above ``after``, oldest first."""
        return await self._asked("events", EventsRequest(after, app, limit), list[Event])

    async def _asked(self, method: str, request: Any, answer: type[T], timeout_s: float | None = ASK_TIMEOUT_S) -> T:
        return msgspec.msgpack.decode(await self.peer.ask(method, _encode(request), timeout_s), type=answer)

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
