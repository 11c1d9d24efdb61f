"""Commands that start an instance, and the one that ends it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import click

from skate.authoring.load import check_preload, put_first
from skate.cli import reload
from skate.cli import target as targets
from skate.cli.admin import OF_ADMIN, chosen_admin, of_admin
from skate.cli.failure import show_traceback_if
from skate.cli.foreground import Foreground, Source, start_detached, where
from skate.cli.group import confirm, is_verbose, of_target, typed, verbose, warn
from skate.cli.screen import screen
from skate.controlplane import instance as instances
from skate.core.clock import SystemClock
from skate.core.environment import environment
from skate.core.errors import NotRunningError
from skate.core.options import check_http_options
from skate.core.specs import HttpOptions, ServeStatus
from skate.engine.runtime_dir import running_pid

REST_S = 3.0  # for the REST server to listen or to fail
OF_INSTANCE = ("host", "port", "proxies", "preload", *OF_ADMIN)


def of_instance(command: Any) -> Any:
    """Adds the options of an instance that is started."""
    for option in (
        of_admin,
        click.option("--preload", multiple=True, metavar="MODULE", help="Imported before replicas are forked."),
        click.option("--proxies", type=click.IntRange(1, 64), default=1, show_default=True, help="HTTP processes."),
        click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one."),
        click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 for all addresses."),
    ):
        command = option(command)
    return command


@click.command()
@of_target
@of_instance
@click.option("-r", "--reload", "reloads", is_flag=True, help="Deploy again what a changed file concerns.")
@verbose
def run(
    target: str,
    arguments: tuple[str, ...],
    name: str,
    route_prefix: str,
    app_dir: str,
    reloads: bool,
    **given: Any,
) -> None:
    """Runs applications in the foreground.

    FILE_OR_IMPORT_PATH is a config file, or module:attribute, which leads to a bound deployment or to a function that
    takes the KEY=VALUE arguments as a dict (or as the typed model that it names) and returns one.

    Starts an instance, or joins the one that is running. Ctrl-C ends what was started here.
    """
    words = targets.pairs(arguments)
    options: Mapping[str, Any] = {}
    http, of_file = True, list[str]()
    source: Source
    if targets.is_file(target):
        file = reload.File(target, app_dir, reloads)
        targets.refuse_words(target, words)
        options, source = file.http_options, file
        http, of_file = not file.without_http, file.of_instance
    else:
        recipe = reload.Recipe(target, words, name, route_prefix, app_dir)
        put_first(app_dir)
        source = reload.Fresh(recipe, is_verbose()) if reloads else reload.Once(recipe)
    shown = screen(listens=True)
    start = _starter(given, options, http=http, detached=False, output=shown.output)
    code = Foreground(source, start, shown, SystemClock(), _unused(of_file)).run()
    click.get_current_context().exit(code)


@click.command(hidden=True)
@of_target
@click.option("--to", "descriptor", type=int, required=True)
@verbose
def spec(target: str, arguments: tuple[str, ...], name: str, route_prefix: str, app_dir: str, descriptor: int) -> None:
    """Writes the application as a value to an open file; what ``run --reload`` runs."""
    recipe = reload.Recipe(target, targets.pairs(arguments), name, route_prefix, app_dir)
    with open(descriptor, "wb") as to:
        error = reload.answer(recipe, to)
    if error is not None:
        try:
            raise error
        except Exception:
            show_traceback_if(is_verbose())
        click.get_current_context().exit(1)


@click.command()
@of_instance
@click.option("--restore", is_flag=True, help="Begin with the applications of the last instance that was started so.")
@verbose
def start(restore: bool, **given: Any) -> None:
    """Starts an instance that stays until `skate shutdown`.

    What is deployed to it outlives it: after its end, or that of the machine, `skate start --restore` brings it back.
    """
    put_first(".")
    instance, new = start_detached(_starter(given, {}, detached=True, restore=restore))
    status, pid = instance.run(_settled(instance)), running_pid(instance.runtime_dir)
    if new:
        click.echo(f"Started at {where(status)} (pid {pid}). End it with: skate shutdown")
        if status.admin is not None and status.admin.message:
            warn(f"without REST for now; it is tried again: {status.admin.message}")
        for line in instance.told:
            click.echo(line)
    else:
        click.echo(f"An instance is running already at {where(status)} (pid {pid}).{_unused()}")
        if restore:
            warn("nothing is restored into a running instance: skate shutdown, then skate start --restore")


async def _settled(instance: instances.Instance) -> ServeStatus:
    """The status as soon as it is known whether REST can be served; that port may be taken."""
    client = await instance.client()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REST_S):
            async for status in client.watch_status():
                if status.admin is None or status.admin.status != "STARTING":
                    return status
    return await client.status()


def _starter(
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    detached: bool,
    http: bool = True,
    output: int | None = None,
    restore: bool = False,
) -> Callable[[], tuple[instances.Instance, bool]]:
    """``options``: of a file; what stands on the command line wins."""
    address = {"host": given["host"], "port": given["port"]}
    said = HttpOptions(**check_http_options({**address, **options, **{one: address[one] for one in typed(*address)}}))
    check_preload(given["preload"])
    return partial(
        instances.start,
        said if http else None,
        proxies=given["proxies"],
        preload=given["preload"],
        detached=detached,
        output=output,
        admin=chosen_admin(given, by_default=detached),
        restore=restore,
    )


def _unused(of_file: Sequence[str] = ()) -> str:
    """What to say of options that have no effect on an instance that is running already."""
    named = ", ".join(
        ["--" + name.replace("_", "-") for name in typed(*OF_INSTANCE)] + [f"{key} of the file" for key in of_file]
    )
    return f" Not used: {named}, which the running instance has of its own." if named else ""


@click.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@verbose
def shutdown(yes: bool) -> None:
    """Ends the instance with all its applications."""
    try:
        instance = instances.find()
    except NotRunningError:
        click.echo("No instance is running.")
        return
    found = instance.status().applications
    what = f" and its applications {', '.join(found)}" if found else ""
    confirm(yes, f"End the instance in {environment().runtime_dir}{what}?")
    instance.shutdown()
    instances.forget()
    click.echo("The instance has ended.")
