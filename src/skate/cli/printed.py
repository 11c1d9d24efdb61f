"""``skate logs``: what the processes of an instance print."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from datetime import datetime

import click

from skate.cli.group import complete_app, complete_deployment_name, complete_replica, verbose
from skate.cli.inbox import Inbox
from skate.cli.logs import Follower, Pick, name_of, past
from skate.core.clock import Clock, SystemClock
from skate.core.environment import environment
from skate.core.errors import NotRunningError
from skate.engine.runtime_dir import LOGS, running_pid

LINES = 100
LOOK_S = 0.2  # between two looks at files that grow
COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")
UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)")


class Since(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A time that is so long ago (``10m``), or one of the clock (``2026-11-27 07:30``)."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As wall time."""
        if found := _AGO.fullmatch(value.strip()):
            return SystemClock().wall() - float(found[1]) * UNITS[found[2]]
        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            self.fail(f"{value!r} is no time: write 30s, 10m, 2h, 1d or 2026-11-27T07:30", param, ctx)


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what is printed, until Ctrl-C.")
@click.option("--app", help="Of replicas of one application.", shell_complete=complete_app)
@click.option("--deployment", help="Of replicas of one deployment.", shell_complete=complete_deployment_name)
@click.option("--replica", help="Of one replica: its id as in status, or its number.", shell_complete=complete_replica)
@click.option("--request-id", help="What was logged for one request, or names it.")
@click.option("--since", type=Since(), help="Since then: 30s, 10m, 2h, 1d, or a time such as 2026-11-27T07:30.")
@click.option(
    "-n", "--lines", "count", type=click.IntRange(0, 1_000_000), help=f"The last ones.  [default: {LINES}; all with "
    "--since or --request-id]",
)  # fmt: skip
@verbose
def logs(
    follow: bool,
    app: str | None,
    deployment: str | None,
    replica: str | None,
    request_id: str | None,
    since: float | None,
    count: int | None,
) -> None:
    """Shows what replicas, proxies and the controller print, merged by time; also of those that have ended."""
    folder = os.path.join(environment().runtime_dir, LOGS)
    if not os.path.isdir(folder) or (follow and running_pid(environment().runtime_dir) is None):
        raise NotRunningError("no Skate instance is running, so there are no logs: start one with `skate start`")
    pick = Pick(app, deployment, replica and replica.removeprefix("#"), request_id, since)
    if count is None:
        count = 1_000_000 if since is not None or request_id is not None else LINES
    records, read_to = past(folder, pick, count)
    show = _shower(tagged=replica is None)
    if not records and not follow and pick != Pick():
        click.echo("nothing that was printed and kept fits these options", err=True)
    for record in records:
        for line in record.lines:
            show(record.name, line)
    if follow:
        _follow(Follower(folder, pick, read_to), show, SystemClock())


def _shower(tagged: bool) -> Callable[[str, str], None]:
    """Shows a line with who said it; everybody has a colour of their own where colours are shown."""
    colours: dict[str, str] = {}

    def show(name: str, line: str) -> None:
        colour = colours.setdefault(name, COLOURS[len(colours) % len(COLOURS)])
        click.echo(f"{click.style(name_of(name), fg=colour)}  {line}" if tagged else line)

    return show


def _follow(follower: Follower, show: Callable[[str, str], None], clock: Clock) -> None:
    """Until Ctrl-C. Raises NotRunningError when the instance ends before."""
    inbox: Inbox[None] = Inbox()
    with contextlib.closing(follower), contextlib.closing(inbox), inbox.signals(lambda: None):
        while not inbox.interrupted:
            if not follower.look(show):
                raise NotRunningError("the instance has ended")
            inbox.take(LOOK_S)
