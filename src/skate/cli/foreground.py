"""``skate run``: brings an instance and applications up, shows how, stays, and ends what it started.

Law: one thread waits, shows and decides; others only do what takes time and post what came of it. The state of the
applications is read from whole statuses, whoever caused them. Whatever the moment of the end, nothing stays behind.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import click

from skate.cli.failure import said
from skate.cli.following import Gone, Seen, follow
from skate.cli.group import me, warn_of_others
from skate.cli.inbox import INTERRUPTED_CODE, Inbox
from skate.cli.progress import Progress, Reached
from skate.cli.screen import Screen
from skate.cli.words import addresses, ready_line, summary
from skate.controlplane import instance as instances
from skate.controlplane.instance import Instance
from skate.core.clock import Clock
from skate.core.config import ApplyRequest
from skate.core.errors import DeployError, NotFoundError, NotRunningError, OptionError
from skate.core.specs import AppSpec, ServeStatus
from skate.dataplane import caller as callers

WORKER_END_S = 10.0  # for a thread that was starting something when the end came
UNSTARTED_GRACE_S = 1.0  # what has never been ready has no request to finish

Start = Callable[[], tuple[Instance, bool]]
Wanted = AppSpec | ApplyRequest  # built here, or to be built by the instance


@dataclass(frozen=True)
class Started:
    """The instance runs. ``new``: it was started here. ``status``: before anything was deployed."""

    instance: Instance
    new: bool
    status: ServeStatus


@dataclass(frozen=True)
class Deployed:
    """The controller has taken up the applications; ``revisions`` tell them from what had their names before."""

    names: tuple[str, ...]
    revisions: dict[str, int | None]  # None of what the instance must build first


@dataclass(frozen=True)
class Failed:
    """A thread could not do what it was asked to."""

    error: BaseException


@dataclass(frozen=True)
class Changed:
    """Source files have changed."""

    files: tuple[str, ...]


Event = Started | Deployed | Seen | Failed | Gone | Changed


class Source(Protocol):
    """Where the applications come from, again and again."""

    target: str  # as the user named it

    def load(self) -> Wanted:
        """The applications as they are now. Raises what is wrong with the user's file or code."""

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
        self._by = me("run", source.target)
        self._names: tuple[str, ...] = ()
        self._instance: Instance | None = None
        self._following: Future[None] | None = None
        self._round = 0  # of following: begun anew with each deployment, so that no status from before counts
        self._others: frozenset[str] = frozenset()  # applications that ran before us; we may change them, not end them
        self._worker: threading.Thread | None = None
        self._busy = False  # a thread is at work, until it has posted Deployed or Failed
        self._waiting: tuple[str, ...] = ()  # files that have changed meanwhile
        self._latest = ServeStatus()
        self._revisions: dict[str, int | None] = {}  # of what was deployed here, as far as they are known
        self._ready: dict[str, int] = {}  # the revisions that ran last
        self._sent = False  # the controller may know of our applications
        self._progress: Progress | None = None  # of the last deployment, once the controller has it
        self._began = 0.0
        self._ran = False  # all were ready once
        self._over: str | None = None  # why it ends
        self._broke = False

    def run(self) -> int:
        """Blocks until the end; the exit code. Raises what kept an application from its first start."""
        try:
            wanted = self._source.load()  # nothing was started yet, so an error leaves nothing
            self._names = names_of(wanted)
            self._began = self._clock.now()
            with self._inbox.signals(self._screen.settle):
                try:
                    self._serve(wanted)
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

    def _serve(self, wanted: Wanted) -> None:
        self._screen.begin(self._names, self._began)
        callers.io_thread()  # made here, before two threads could make one each
        self._work(lambda: self._bring_up(wanted))
        self._source.watch(lambda files: self._inbox.post(Changed(files), latest=True))
        while self._over is None:
            for event in self._inbox.take(self._screen.period_s):
                self._take(event)
            self._screen.tick(self._clock.now())
            if self._inbox.interrupted:
                self._over = "interrupted"

    def _take(self, event: Event) -> None:
        match event:
            case Started(instance, new, status):
                self._instance = instance
                self._follow(instance)
                self._others = living(status)
                if not new:
                    self._screen.line(f"An instance is running already; what runs here joins it.{self._note}")
                    warn_of_others(status, self._names, self._by)
            case Deployed(names, revisions):
                self._names, self._revisions = names, revisions
                self._progress = Progress(revisions)
                self._idle()
                assert self._instance is not None
                self._follow(self._instance)
            case Seen(status, round):
                self._latest = status
                self._screen.show(status, self._clock.now())
                if round == self._round:
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

    def _follow(self, instance: Instance) -> None:
        if self._following is not None:
            self._following.cancel()
        self._round += 1
        self._following = callers.io_thread().submit(follow(instance, self._inbox, self._clock, self._round))

    def _look(self, status: ServeStatus) -> None:
        if self._ran and not any(name in status.applications for name in self._names):
            what = f"application {self._names[0]} was" if len(self._names) == 1 else "all applications were"
            self._over = f"{what} deleted by someone else"
        elif self._progress is not None and self._progress.pending:
            for reached in self._progress.look(status):
                self._reach(status, reached)

    def _reach(self, status: ServeStatus, reached: Reached) -> None:
        assert self._progress is not None
        if reached.failure is not None or reached.app is None:
            self._failed(DeployError(reached.failure or ""))
            return
        same = self._ready.get(reached.name) == reached.app.revision
        self._ready[reached.name] = self._revisions[reached.name] = reached.app.revision
        if not self._progress.pending:
            self._screen.settle()
        if same:
            self._screen.line(f"Application {reached.name} goes on as it is: nothing that it uses is different.")
        else:
            self._screen.line(ready_line(status, reached.app, self._clock.now() - self._began))
        if self._progress.pending or self._progress.failed:
            return
        again, self._ran = self._ran, True
        for line in () if again else [*summary(status, self._names), "Ctrl-C ends it."]:
            self._screen.line(line)

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

    def _bring_up(self, wanted: Wanted) -> None:
        instance, new = self._start()
        instance.run(instance.client())  # one connection for whoever asks from now on
        self._inbox.post(Started(instance, new, ServeStatus() if new else instance.status()))
        self._deploy(instance, wanted)

    def _deploy(self, instance: Instance, wanted: Wanted) -> None:
        self._sent = True
        try:
            revisions = instance.run(_deploy(instance, wanted, self._by, self._revisions))
        except OptionError:  # refused; what has these names is not ours
            self._sent = self._ran
            raise
        self._inbox.post(Deployed(names_of(wanted), revisions))

    def _reload(self, files: tuple[str, ...]) -> None:
        instance = self._instance
        if instance is None or self._busy:
            self._waiting = tuple(dict.fromkeys((*self._waiting, *files)))
            return
        named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        self._screen.line(f"{named} changed, loading again")
        self._began, self._progress = self._clock.now(), None
        self._work(lambda: self._deploy(instance, self._source.load()))

    # -- the end ------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Ends what was started here, however far that got."""
        self._source.close()
        instance = self._instance
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
        elif self._sent and self._over in (None, "interrupted"):
            self._delete(instance)
        instances.forget()

    def _delete(self, instance: Instance) -> None:
        """Of an instance that goes on without us, what we brought, as long as it is still ours."""
        for name in self._names:
            if name in self._others:
                self._screen.line(f"Application {name} ran before and goes on; to end it: skate delete {name}")
                continue
            self._screen.line(f"Deleting application {name}.")
            with contextlib.suppress(NotFoundError, NotRunningError):
                instance.delete(name, self._revisions.get(name))


def living(status: ServeStatus) -> frozenset[str]:
    """The applications that are there to stay."""
    return frozenset(name for name, app in status.applications.items() if app.status != "DELETING")


def names_of(wanted: Wanted) -> tuple[str, ...]:
    """The applications' names."""
    return (wanted.name,) if isinstance(wanted, AppSpec) else tuple(app.name for app in wanted.config.applications)


async def _deploy(
    instance: Instance, wanted: Wanted, by: str, before: Mapping[str, int | None]
) -> dict[str, int | None]:
    """Hands it over; what was deployed ``before`` and is not named any more goes."""
    client = await instance.client()
    if isinstance(wanted, AppSpec):
        return {wanted.name: await client.deploy(wanted, by)}
    ordered = await client.apply(wanted)
    for name in before.keys() - ordered.keys():
        with contextlib.suppress(NotFoundError):
            await client.delete(name, revision=before[name])
    return dict.fromkeys(ordered)


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
            inbox.post(Started(*start(), ServeStatus()))
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
