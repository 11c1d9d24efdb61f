"""Commands that look at the running instance and change nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import get_completion_class

from skate.authoring.config import plain
from skate.authoring.document import written
from skate.cli import table
from skate.cli.events import event_line, follow_events
from skate.cli.group import application, as_json, asked, complete_app, show_json, verbose
from skate.cli.watching import Documents, Draw, view, watch
from skate.controlplane import instance as instances
from skate.core.clock import SystemClock
from skate.core.errors import NotFoundError
from skate.core.specs import ServeStatus
from skate.engine.runtime_dir import running_pid

EVENTS_SHOWN = 100
SHELLS = ("bash", "zsh", "fish")


@click.command()
@as_json
@click.option("-w", "--watch", "watches", is_flag=True, help="Go on, and show every change, until Ctrl-C.")
@click.option("--name", help="Of one application only.", shell_complete=complete_app)
@click.option("--calls", "of_calls", is_flag=True, help="What became of the calls, by deployment.")
@verbose
def status(as_json: bool, watches: bool, name: str | None, of_calls: bool) -> None:
    """Shows applications, deployments, replicas, proxies and the counts of calls."""
    instance, clock = instances.find(), SystemClock()
    pid = running_pid(instance.runtime_dir)
    part = _part(name, of_calls)
    draw = _drawing(name, of_calls, pid)
    if watches:
        names = None if name is None else [name]
        watch(instance, Documents(part) if as_json else view(names, _still(draw), clock), clock)
        return
    found = instance.status()
    if as_json:
        show_json(part(found))
    else:
        click.echo("\n".join(draw(found, 0.0)))


def _part(name: str | None, of_calls: bool) -> Callable[[ServeStatus], Any]:
    """What of a status is asked for, as a value."""

    def part(found: ServeStatus) -> Any:
        app = application(found, name) if name is not None else None
        return table.counts_of(found, name) if of_calls else app or found

    return part


def _drawing(name: str | None, of_calls: bool, pid: int | None) -> Draw:
    """What of a status is asked for, as lines."""

    def draw(found: ServeStatus, since_s: float) -> list[str]:
        now = SystemClock().wall()
        app = application(found, name) if name is not None else None
        if of_calls:
            return table.calls_lines(table.counts_of(found, name))
        if app is not None:
            return table.application_lines(found, app, now, since_s)
        return table.lines(found, pid, now, since_s)

    return draw


def _still(draw: Draw) -> Draw:
    """The same for a watched instance, where an application may go and come again."""

    def drawn(found: ServeStatus, since_s: float) -> list[str]:
        try:
            return draw(found, since_s)
        except NotFoundError as error:
            return [str(error)]

    return drawn


@click.command()
@verbose
def metrics() -> None:
    """Prints the metrics of the instance, as Prometheus reads them."""
    click.echo(instances.find().metrics(), nl=False)


@click.command()
@as_json
@verbose
def config(as_json: bool) -> None:
    """Prints what was applied and is in force, as a file that `skate deploy` takes."""
    found = asked(lambda client: client.config())
    if as_json:
        show_json(plain(found))
    else:
        click.echo(written(plain(found)), nl=False)


@click.command()
@click.option("--app", help="Of one application only.", shell_complete=complete_app)
@click.option("-n", "--lines", "count", type=click.IntRange(0, 10_000), default=EVENTS_SHOWN, show_default=True)
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@as_json
@verbose
def events(app: str | None, count: int, follows: bool, as_json: bool) -> None:
    """Shows what was decided and what happened, the newest last."""
    found = asked(lambda client: client.events(0, app, max(count, 1)))

    def show(one: Any) -> None:
        if as_json:
            show_json(one, indent=0)
        else:
            click.echo(event_line(one))

    for one in found if count else ():
        show(one)
    if follows:
        sys.stdout.flush()
        follow_events(instances.find(), found[-1].id if found else 0, app, show, SystemClock())


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Prints what makes a shell complete commands, options and names of applications.

    \b
    bash: eval "$(skate completion bash)" in ~/.bashrc
    zsh:  eval "$(skate completion zsh)" in ~/.zshrc
    fish: skate completion fish > ~/.config/fish/completions/skate.fish
    """
    found = get_completion_class(shell)
    root = click.get_current_context().find_root().command
    assert found is not None
    click.echo(found(root, {}, "skate", "_SKATE_COMPLETE").source())
