"""A running instance that exists in memory only: it answers what a test says, and keeps what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from skate.controlplane import instance as instances
from skate.core.config import ApplyRequest, ServeConfig
from skate.core.errors import NotFoundError, NotRunningError, SkateError
from skate.core.specs import AppPlan, Event, Revision, ServeStatus
from skate.dataplane import caller as callers

T = TypeVar("T")


class FakeClient:
    """The control calls. ``statuses``: what a watcher sees, one after the other; the last one stays."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.statuses: list[ServeStatus] = [ServeStatus()]
        self.numbers: dict[str, int] = {}
        self.plans: list[AppPlan] = []
        self.revisions: list[Revision] = []
        self.log: list[Event] = []
        self.applied = ServeConfig()
        self.refusal: SkateError | None = None
        self.losses = 0  # how often a watcher loses its controller before it sees anything
        self.watched = 0

    async def apply(self, request: ApplyRequest) -> dict[str, int]:
        self._note("apply", request)
        return self.numbers

    async def plan(self, request: ApplyRequest, timeout_s: float | None = None) -> list[AppPlan]:
        self._note("plan", request)
        return self.plans

    async def config(self) -> ServeConfig:
        return self.applied

    async def scale(self, app: str, deployment: str, replicas: int, by: str = "") -> None:
        self._note("scale", app, deployment, replicas, by)

    async def delete(self, name: str, timeout_s: float | None = None, revision: int | None = None) -> None:
        self._note("delete", name, revision)

    async def history(self, app: str) -> list[Revision]:
        if not self.revisions:
            raise NotFoundError(f"there is no application {app!r}")
        return self.revisions

    async def rollback(self, app: str, revision: int | None = None, by: str = "") -> int:
        self._note("rollback", app, revision, by)
        return self.numbers[app]

    async def events(self, after: int = 0, app: str | None = None, limit: int = 1000) -> list[Event]:
        found = [one for one in self.log if one.id > after and app in (None, one.app)]
        return found[-limit:]

    async def status(self) -> ServeStatus:
        return self.statuses[0]

    async def watch_status(self) -> AsyncIterator[ServeStatus]:
        self.watched += 1
        if self.losses:
            self.losses -= 1
            raise NotRunningError("the controller is gone")
        for status in self.statuses:
            yield status
        await asyncio.Event().wait()

    def _note(self, *what: Any) -> None:
        self.asked.append(what)
        if self.refusal is not None:
            raise self.refusal


class FakeInstance:
    """What ``instances.find()`` gives. Its coroutines run on the I/O thread, as those of a real one do."""

    owned = False
    launched = None

    def __init__(self, runtime_dir: str) -> None:
        self.runtime_dir = runtime_dir
        self.controller = FakeClient()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        return callers.io_thread().run(coroutine, timeout_s)

    async def client(self) -> FakeClient:
        return self.controller

    async def read(self, question: Callable[[FakeClient], Awaitable[T]]) -> T:
        return await question(self.controller)

    wish = read

    def status(self) -> ServeStatus:
        return self.controller.statuses[0]

    def delete(self, name: str, revision: int | None = None) -> None:
        self.run(self.controller.delete(name, revision=revision))


def install(monkeypatch: pytest.MonkeyPatch, runtime_dir: str) -> FakeInstance:
    """The instance that every command finds."""
    made = FakeInstance(runtime_dir)
    monkeypatch.setattr(instances, "find", lambda: made)
    return made


def with_app(whole: ServeStatus, name: str, **changes: Any) -> ServeStatus:
    """The status with another application of that name."""
    return replace(whole, applications={**whole.applications, name: replace(whole.applications[name], **changes)})
