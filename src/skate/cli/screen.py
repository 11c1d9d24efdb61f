"""What a foreground run shows, in lines: for pipes, files and logs, and for what happens after the start.

Law: a screen is told whole statuses and finds out itself what is new; it never asks. Time is given to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import click

from skate.authoring.traces import shortened
from skate.cli.failure import error_line
from skate.core.specs import ApplicationStatus, DeploymentStatus, ReplicaStatus, ServeStatus

COLOURS = {
    **dict.fromkeys(("RUNNING", "HEALTHY", "ready"), "green"),
    **dict.fromkeys(("DEPLOY_FAILED", "UNHEALTHY", "failed"), "red"),
    **dict.fromkeys(("DEPLOYING", "UPDATING", "UPSCALING", "DOWNSCALING", "STARTING"), "yellow"),
    **dict.fromkeys(("starting", "importing", "loading"), "yellow"),
    **dict.fromkeys(("DRAINING", "DELETING", "draining"), "bright_black"),
}


class Screen(Protocol):
    """Where a foreground run shows what happens to one application."""

    period_s: float | None  # how often it wants to be told the time; None: never
    output: int | None  # where processes shall print; None: where this one does

    def begin(self, app: str, now: float) -> None:
        """The application is about to start, or to start again."""

    def show(self, status: ServeStatus, now: float) -> None:
        """The whole instance, at every change."""

    def tick(self, now: float) -> None:
        """Time has passed."""

    def settle(self) -> None:
        """The application is ready, or has failed; only changes are of interest from now on."""

    def line(self, text: str) -> None:
        """A line for the user."""

    def error(self, text: str) -> None:
        """An error that does not end the run."""

    def close(self) -> None:
        """The instance has ended."""


class Lines:
    """One line for each change of a replica."""

    def __init__(self) -> None:
        self.period_s: float | None = None
        self.output: int | None = None
        self._app = ""
        self._phases: dict[str, str] = {}
        self._first_seen: dict[str, float] = {}
        self._failures: dict[str, str] = {}

    def begin(self, app: str, now: float) -> None:
        self._app = app

    def show(self, status: ServeStatus, now: float) -> None:
        for line in self.news(status, now):
            self.line(line)

    def news(self, status: ServeStatus, now: float) -> list[str]:
        """What is new since the last status; it counts as said from now on."""
        app = status.applications.get(self._app)
        replicas = {replica.id: replica for _, replica in replicas_of(app)} if app is not None else {}
        news: list[str] = []
        for id, replica in replicas.items():
            if self._phases.get(id) != replica.phase:
                news.append(f"{id}  {coloured(replica.phase)}{self._after(replica, now)}")
                self._phases[id] = replica.phase
            self._first_seen.setdefault(id, now - replica.phase_s)
        for id in sorted(self._phases.keys() - replicas.keys()):
            if self._phases.pop(id) != "failed":
                news.append(f"{id}  ended")
            del self._first_seen[id]
        return news + self._failures_of(app)

    def _after(self, replica: ReplicaStatus, now: float) -> str:
        if replica.phase != "ready" or replica.id not in self._first_seen:
            return ""
        return f" after {max(0.0, now - replica.phase_s - self._first_seen[replica.id]):.1f} s"

    def _failures_of(self, app: ApplicationStatus | None) -> list[str]:
        news: list[str] = []
        for deployment in app.deployments.values() if app is not None and app.status != "DELETING" else ():
            said = brief(deployment.message)
            if said and said != self._failures.get(deployment.name) and deployment.status != "DEPLOY_FAILED":
                news.append(f"{deployment.name}: {said}")
            self._failures[deployment.name] = said
        return news

    def tick(self, now: float) -> None:
        """Lines do not move."""

    def settle(self) -> None:
        """Nor do they end."""

    def line(self, text: str) -> None:
        click.echo(text)

    def error(self, text: str) -> None:
        click.echo(error_line(shortened(text)), err=True)

    def close(self) -> None:
        """Every line is out."""


# -- words --------------------------------------------------------------------------------------------


def replicas_of(app: ApplicationStatus) -> Iterator[tuple[DeploymentStatus, ReplicaStatus]]:
    for deployment in app.deployments.values():
        for replica in deployment.replicas:
            yield deployment, replica


def coloured(state: str) -> str:
    colour = COLOURS.get(state)
    return click.style(state, fg=colour) if colour else state


def brief(message: str) -> str:
    """First and last line of a message with a traceback: what happened, and the exception."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if not lines:
        return ""
    first = lines[0].removesuffix(" The error:").removesuffix(" The last error:").rstrip(".")
    return f"{first}: {lines[-1]}" if lines[1:] else first


def duration(seconds: float) -> str:
    """A time for people: 0.4 s, 12 s, 3 min, 5 h, 2 d."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def addresses(status: ServeStatus) -> list[str]:
    """Where HTTP is served, as URLs without a slash at the end; several proxies usually share one."""
    listening = (proxy.address for proxy in status.proxies.values() if proxy.address)
    return list(dict.fromkeys(f"http://{reachable(address)}" for address in listening))


def reachable(address: str) -> str:
    """The address as a client on this machine would write it."""
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if host in ("0.0.0.0", "[::]", "") else address


def url(status: ServeStatus, app: ApplicationStatus) -> str | None:
    """Where HTTP reaches an application; None if it does not."""
    found = addresses(status)
    if not found or app.route_prefix is None:
        return None
    return found[0] + (app.route_prefix if app.route_prefix == "/" else app.route_prefix + "/")


def summary(status: ServeStatus, app: ApplicationStatus, took_s: float) -> list[str]:
    """What a user wants to know of an application that has become ready."""
    where = url(status, app)
    reach = click.style(where, bold=True) if where else "not reachable by HTTP, only through handles"
    lines = [f"Application {app.name} is {coloured('ready')} after {duration(took_s)}:  {reach}"]
    width = max((len(name) for name in app.deployments), default=0)
    for name, deployment in app.deployments.items():
        count = f"{deployment.target_replicas} replica{'s' * (deployment.target_replicas != 1)}"
        lines.append(f"  {name.ljust(width)}  {count}")
    others = [other for other in status.applications.values() if other.name != app.name]
    for other in others:
        lines.append(f"  beside it: application {other.name}  {url(status, other) or 'without HTTP'}")
    if addresses(status):
        lines.append(f"  routes: {addresses(status)[0]}/-/routes")
    return lines
