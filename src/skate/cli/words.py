"""States, times and addresses as people read them. Functions of values."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime

import click

from skate.authoring.traces import TRACEBACK
from skate.core.specs import ApplicationStatus, DeploymentStatus, ReplicaStatus, ServeStatus

COLOURS = {
    **dict.fromkeys(("RUNNING", "HEALTHY", "ready", "current"), "green"),
    **dict.fromkeys(("DEPLOY_FAILED", "UNHEALTHY", "failed"), "red"),
    **dict.fromkeys(("DEPLOYING", "UPDATING", "UPSCALING", "DOWNSCALING", "STARTING"), "yellow"),
    **dict.fromkeys(("starting", "importing", "loading"), "yellow"),
    **dict.fromkeys(("DRAINING", "DELETING", "draining"), "bright_black"),
}


def replicas_of(app: ApplicationStatus) -> Iterator[tuple[DeploymentStatus, ReplicaStatus]]:
    for deployment in app.deployments.values():
        for replica in deployment.replicas:
            yield deployment, replica


def building(app: ApplicationStatus) -> str:
    """What happens to an application before its deployments are concerned: its code is imported."""
    return app.message if app.status == "DEPLOYING" and not app.message.startswith(tuple(app.deployments)) else ""


def coloured(state: str) -> str:
    colour = COLOURS.get(state)
    return click.style(state, fg=colour) if colour else state


def brief(message: str) -> str:
    """First and last line of a message with a traceback: what happened, and the exception."""
    lines = [line.strip() for line in message.splitlines() if line.strip() and line != TRACEBACK]
    if not lines:
        return ""
    if lines[0].startswith('File "'):
        return lines[-1]
    first = lines[0].removesuffix(TRACEBACK).rstrip(": ")
    first = first.removesuffix(" The error").removesuffix(" The last error").rstrip(".")
    return f"{first}: {lines[-1]}" if lines[1:] and lines[-1] not in first else first


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


def ready_line(status: ServeStatus, app: ApplicationStatus, took_s: float) -> str:
    """That an application has become ready, and where it is."""
    where = url(status, app)
    reach = click.style(where, bold=True) if where else "not reachable by HTTP, only through handles"
    return f"Application {app.name} is {coloured('ready')} after {duration(took_s)}:  {reach}"


def summary(status: ServeStatus, names: Collection[str]) -> list[str]:
    """What runs now that these are ready: their deployments, and what runs beside them."""
    rows = [
        (one.name, f"{one.target_replicas} replica{'s' * (one.target_replicas != 1)}")
        for app in status.applications.values()
        if app.name in names
        for one in app.deployments.values()
    ]
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"  {name.ljust(width)}  {count}" for name, count in rows]
    for other in status.applications.values():
        if other.name not in names:
            beside = "it" if len(names) == 1 else "them"
            lines.append(f"  beside {beside}: application {other.name}  {url(status, other) or 'without HTTP'}")
    if addresses(status):
        lines.append(f"  routes: {addresses(status)[0]}/-/routes")
    return lines


def short_version(version: str) -> str:
    """The beginning of a hash; enough to tell versions apart."""
    return version[:8]


def stamp(wall: float) -> str:
    """Date and time of day of a wall time, where the user is."""
    return datetime.fromtimestamp(wall).strftime("%Y-%m-%d %H:%M:%S")
