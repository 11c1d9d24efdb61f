"""``skate run``: brings an instance and an application up, shows how, stays, and ends what it started.

Law: one thread waits, shows and decides; others only do what takes time and post what came of it. The state of the
application is read from whole statuses, whoever caused them. Whatever the moment of the end, nothing stays behind.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import click

from skate.cli.failure import said
from skate.cli.inbox import INTERRUPTED_CODE, Inbox
from skate.cli.screen import Screen, addresses, summary
from skate.controlplane import instance as instances
from skate.controlplane.instance import Instance
from skate.core.clock import Clock
from skate.core.errors import DeployError, NotFoundError, NotRunningError, OptionError, SkateError
from skate.core.specs import ApplicationStatus, AppSpec, ServeStatus
from skate.dataplane import caller as callers
from skate.engine.runtime_dir import running_pid

WORKER_END_S = 10.0  # for a thread that was starting something when the end came
UNSTARTED_GRACE_S = 1.0  # what has never been ready has no request to finish
FOLLOW_AGAIN_S = 0.2  # after the controller was lost
FOLLOW_TRIES_MAX = 50

Start = Callable[[], tuple[Instance, bool]]


@dataclass(frozen=True)
class Started:
    """The instance runs. ``new``: it was started here."""

    instance: Instance
    new: bool


@dataclass(frozen=True)
class Deployed:
    """The controller has taken up the application; ``at`` is the deployment's wall time, which tells it from others."""

    at: float


@dataclass(frozen=True)
class Seen:
    """The instance as it is."""

    status: ServeStatus


@dataclass(frozen=True)
class Failed:
    """A thread could not do what it was asked to."""

    error: BaseException


@dataclass(frozen=True)
class Gone:
    """The instance has ended, and not by us."""


@dataclass(frozen=True)
class Changed:
    """Source files have changed."""

    files: tuple[str, ...]


Event = Started | Deployed | Seen | Failed | Gone | Changed


class Source(Protocol):
    """Where the application comes from, again and again."""

    def load(self) -> AppSpec:
        """The application as it is now. Raises what is wrong with the user's code."""

    def watch(self, on_change: Callable[[tuple[str, ...]], None]) -> None:
        """Calls back at every change of the code until ``close``; does nothing if changes do not count."""

    def close(self) -> None:
        """Ends watching, and a load in another process."""


class Foreground:
    """One ``skate run``."""

    def __init__(self, source: Source, start: Start, screen: Screen, clock: Clock, note: str = "") -> None:
        """``note``: what to add if an instance is running already."""
        self._source = source
        self._start = start
        self._screen = screen
        self._clock = clock
        self._note = note
        self._inbox: Inbox[Event] = Inbox()
        self._spec: AppSpec | None = None
        self._instance: Instance | None = None
        self._following: Future[None] | None = None
        self._worker: threading.Thread | None = None
        self._busy = False  # a thread is at work, until it has posted Deployed or Failed
        self._waiting: tuple[str, ...] = ()  # files that have changed meanwhile
        self._latest = ServeStatus()
        self._sent = False  # the controller may know of our application
        self._deployed_at: float | None = None
        self._began = 0.0
        self._reached: str | None = None  # RUNNING or DEPLOY_FAILED, once this deployment got there
        self._ran = False
        self._over: str | None = None  # why it ends
        self._broke = False

    def run(self) -> int:
        """Blocks until the end; the exit code. Raises what kept the application from its first start."""
        try:
            self._spec = self._source.load()  # nothing was started yet, so an error leaves nothing
            self._began = self._clock.now()
            with self._inbox.signals(self._screen.settle):
                try:
                    self._serve(self._spec)
                finally:
                    self._screen.settle()
                    try:
                        self._end()
                    finally:
                        self._screen.close()
        finally:
            self._inbox.close()
        if self._broke:
            raise NotRunningError("the instance broke down; its messages are above")
        return 0 if self._ran or not self._inbox.interrupted else INTERRUPTED_CODE

    # -- the one thread that decides ----------------------------------------------------------------

    def _serve(self, spec: AppSpec) -> None:
        self._screen.begin(spec.name, self._began)
        callers.io_thread()  # made here, before two threads could make one each
        self._work(lambda: self._bring_up(spec))
        self._source.watch(lambda files: self._inbox.post(Changed(files), latest=True))
        while self._over is None:
            for event in self._inbox.take(self._screen.period_s):
                self._take(event)
            self._screen.tick(self._clock.now())
            if self._inbox.interrupted:
                self._over = "interrupted"

    def _take(self, event: Event) -> None:
        match event:
            case Started(instance, new):
                self._instance = instance
                self._following = callers.io_thread().submit(_follow(instance, self._inbox, self._clock))
                if not new:
                    self._screen.line(f"An instance is running already; the application joins it.{self._note}")
            case Deployed(at):
                self._deployed_at = at
                self._idle()
                self._look(self._latest)
            case Seen(status):
                self._latest = status
                self._screen.show(status, self._clock.now())
                self._look(status)
            case Failed(error):
                self._idle()
                self._failed(error)
            case Changed(files):
                self._reload(files)
            case Gone():
                launched = self._instance.launched if self._instance is not None else None
                self._broke = launched is not None and bool(launched.exit_code)
                self._over = "the instance has ended" if self._broke else "the instance was ended by someone else"

    def _look(self, status: ServeStatus) -> None:
        assert self._spec is not None
        app = status.applications.get(self._spec.name)
        if app is None:
            if self._ran:
                self._over = f"application {self._spec.name} was deleted by someone else"
        elif self._deployed_at is not None and self._reached is None and app.last_deployed_time_s >= self._deployed_at:
            self._reach(status, app, self._clock.now())

    def _reach(self, status: ServeStatus, app: ApplicationStatus, now: float) -> None:
        if app.status == "RUNNING":
            again, self._reached, self._ran = self._ran, app.status, True
            self._screen.settle()
            lines = summary(status, app, now - self._began)
            for line in lines[:1] if again else [*lines, "Ctrl-C ends it."]:
                self._screen.line(line)
        elif app.status == "DEPLOY_FAILED":
            self._reached = app.status
            self._failed(DeployError(f"application {app.name!r} did not start. {app.message}"))

    def _failed(self, error: BaseException) -> None:
        if not self._ran:
            raise error
        self._screen.error(said(error))
        self._screen.line("What ran before goes on serving. Waiting for the next change.")

    # -- what takes time ----------------------------------------------------------------------------

    def _idle(self) -> None:
        self._busy = False
        if self._waiting:
            files, self._waiting = self._waiting, ()
            self._inbox.post(Changed(files))

    def _work(self, task: Callable[[], None]) -> None:
        self._busy = True

        def work() -> None:
            try:
                task()
            except BaseException as error:
                self._inbox.post(Failed(error))

        self._worker = threading.Thread(target=work, name="skate-run", daemon=True)
        self._worker.start()

    def _bring_up(self, spec: AppSpec) -> None:
        instance, new = self._start()
        instance.run(instance.client())  # one connection for whoever asks from now on
        self._inbox.post(Started(instance, new))
        self._deploy(instance, spec)

    def _deploy(self, instance: Instance, spec: AppSpec) -> None:
        self._sent = True
        try:
            self._inbox.post(Deployed(instance.run(_deploy(instance, spec))))
        except OptionError:  # refused; what has this name is not ours
            self._sent = self._ran
            raise

    def _reload(self, files: tuple[str, ...]) -> None:
        instance = self._instance
        if instance is None or self._busy:
            self._waiting = files
            return
        named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        self._screen.line(f"{named} changed, loading again")
        self._began, self._deployed_at, self._reached = self._clock.now(), None, None
        self._work(lambda: self._deploy(instance, self._source.load()))

    # -- the end ------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Ends what was started here, however far that got."""
        self._source.close()
        instance, spec = self._instance, self._spec
        if self._following is not None:
            self._following.cancel()
        if self._over not in (None, "interrupted"):
            self._screen.line(f"Ending: {self._over}.")
        if instance is None:
            abort(self._worker)
        elif instance.owned:
            if self._inbox.interrupted:
                self._screen.line("Ending; Ctrl-C again ends at once.")
            if instance.launched is not None and not self._ran and len(self._latest.applications) < 2:
                instance.launched.close(UNSTARTED_GRACE_S)
            else:
                instance.shutdown()
        elif spec is not None and self._sent and self._over in (None, "interrupted"):
            self._screen.line(f"Deleting application {spec.name}.")
            with contextlib.suppress(NotFoundError, NotRunningError):
                instance.delete(spec.name)
        instances.forget()


async def _deploy(instance: Instance, spec: AppSpec) -> float:
    client = await instance.client()
    await client.deploy(spec)
    app = (await client.status()).applications.get(spec.name)
    return app.last_deployed_time_s if app is not None else 0.0


async def _follow(instance: Instance, inbox: Inbox[Event], clock: Clock) -> None:
    """Posts every status, over as many controllers as it takes, until the instance is gone."""
    tries = 0
    while tries < FOLLOW_TRIES_MAX:
        try:
            async for status in (await instance.client()).watch_status():
                tries = 0
                inbox.post(Seen(status), latest=True)
        except (SkateError, OSError):
            pass
        if running_pid(instance.runtime_dir) is None:
            break
        tries += 1
        await clock.sleep(FOLLOW_AGAIN_S)
    inbox.post(Gone())


def abort(worker: threading.Thread | None) -> None:
    """Ends an instance of ours that a thread is still starting."""
    instances.forget()
    if worker is not None:
        worker.join(WORKER_END_S)
    instances.forget()  # what the thread had begun before it could know


def start_detached(start: Start) -> tuple[Instance, bool]:
    """Starts an instance that stays; Ctrl-C meanwhile leaves nothing. Raises what kept it from starting."""
    inbox: Inbox[Event] = Inbox()

    def work() -> None:
        try:
            inbox.post(Started(*start()))
        except BaseException as error:
            inbox.post(Failed(error))

    worker = threading.Thread(target=work, name="skate-start", daemon=True)
    with contextlib.closing(inbox), inbox.signals(lambda: None):
        worker.start()
        while True:
            for event in inbox.take(None):
                if isinstance(event, Started):
                    return event.instance, event.new
                if isinstance(event, Failed):
                    raise event.error
            if inbox.interrupted:
                abort(worker)
                raise click.exceptions.Exit(INTERRUPTED_CODE)


def where(status: ServeStatus) -> str:
    """Where an instance serves, in words."""
    return ", ".join(addresses(status)) or "no address (it runs without HTTP)"
