"""The commands and their options. Law: a command reads its words, calls one thing, and prints what came of it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import click
import msgspec
from click.core import ParameterSource

from skate import serve
from skate.authoring.load import check_preload, put_first
from skate.cli import files, reload, table
from skate.cli.admin import OF_ADMIN, chosen_admin, of_admin
from skate.cli.failure import Failure, show_traceback_if
from skate.cli.foreground import Foreground, Source, start_detached, where
from skate.cli.inbox import INTERRUPTED_CODE
from skate.cli.screen import Lines, Screen
from skate.controlplane import instance as instances
from skate.core.clock import SystemClock
from skate.core.environment import environment
from skate.core.errors import NotFoundError, NotRunningError
from skate.core.options import check_http_options
from skate.core.specs import HttpOptions
from skate.engine.runtime_dir import running_pid

F = TypeVar("F", bound=Callable[..., Any])

VERBOSE = "skate.verbose"
OF_INSTANCE = ("host", "port", "proxies", "preload", *OF_ADMIN)


class Program(click.Group):
    """A group whose commands fail in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED_CODE) from None
        except BrokenPipeError:
            raise
        except Exception as error:
            raise Failure(error, bool(ctx.meta.get(VERBOSE))) from error


def _is_verbose() -> bool:
    return bool(click.get_current_context().meta.get(VERBOSE))


def _set_verbose(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[VERBOSE] = True


def verbose(command: F) -> F:
    """Adds ``-v``."""
    said = "Show the traceback of an error."
    return click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_set_verbose, help=said)(command)


def of_instance(command: F) -> F:
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


def of_application(command: F) -> F:
    """Adds the options that say which application, and where."""
    for option in (
        click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]..."),
        click.argument("import_path", metavar="IMPORT_PATH"),
        click.option("-d", "--app-dir", default=".", show_default=True, help="Where modules are looked for first."),
        click.option("--route-prefix", default="/", show_default=True, help="Where HTTP finds the application."),
        click.option("--name", default=serve.DEFAULT_APP, show_default=True, help="Name of the application."),
    ):
        command = option(command)
    return command


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(vars(sys.modules["skate"]).get("__version__", "unknown"), prog_name="skate")
@verbose
def main() -> None:
    """Serves Python models: skate run module:app"""


# -- run ------------------------------------------------------------------------------------------------


@main.command()
@of_application
@of_instance
@click.option("-r", "--reload", "reloads", is_flag=True, help="Load again when a .py file below --app-dir changes.")
@verbose
def run(
    import_path: str,
    arguments: tuple[str, ...],
    name: str,
    route_prefix: str,
    app_dir: str,
    reloads: bool,
    **given: Any,
) -> None:
    """Runs an application in the foreground.

    IMPORT_PATH is module:attribute and leads to a bound deployment, or to a function that takes the KEY=VALUE
    arguments as a dict (or as the typed model that it names) and returns one.

    Starts an instance, or joins the one that is running. Ctrl-C ends what was started here.
    """
    recipe = reload.Recipe(import_path, _pairs(arguments), name, route_prefix, app_dir)
    put_first(app_dir)
    source: Source = reload.Fresh(recipe, _is_verbose()) if reloads else reload.Once(recipe)
    screen = _screen()
    start = _starter(given, detached=False, output=screen.output)
    code = Foreground(source, start, screen, SystemClock(), _unused()).run()
    click.get_current_context().exit(code)


@main.command(hidden=True)
@of_application
@click.option("--to", "descriptor", type=int, required=True)
@click.option("--salt", default="")
@verbose
def spec(
    import_path: str,
    arguments: tuple[str, ...],
    name: str,
    route_prefix: str,
    app_dir: str,
    descriptor: int,
    salt: str,
) -> None:
    """Writes the application as a value to an open file; what ``run --reload`` runs."""
    recipe = reload.Recipe(import_path, _pairs(arguments), name, route_prefix, app_dir)
    with open(descriptor, "wb") as to:
        error = reload.answer(recipe, salt, to)
    if error is not None:
        try:
            raise error
        except Exception:
            show_traceback_if(_is_verbose())
        click.get_current_context().exit(1)


def _pairs(words: tuple[str, ...]) -> Mapping[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise click.UsageError(f"{word!r} is no argument for a builder; write key=value")
        if key in pairs:
            raise click.UsageError(f"{key!r} is given twice")
        pairs[key] = value
    return pairs


def _starter(
    given: Mapping[str, Any], *, detached: bool, output: int | None = None
) -> Callable[[], tuple[instances.Instance, bool]]:
    http = HttpOptions(**check_http_options({"host": given["host"], "port": given["port"]}))
    check_preload(given["preload"])
    return partial(
        instances.start,
        http,
        proxies=given["proxies"],
        preload=given["preload"],
        detached=detached,
        output=output,
        admin=chosen_admin(given, by_default=detached),
    )


def _unused() -> str:
    """What to say of options that have no effect on an instance that is running already."""
    ctx = click.get_current_context()
    typed = [name for name in OF_INSTANCE if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE]
    named = ", ".join("--" + name.replace("_", "-") for name in typed)
    return f" Not used: {named}, which the running instance has of its own." if named else ""


def _screen() -> Screen:
    """A table that moves where there is a terminal to draw it on; only then rich is imported."""
    if not sys.stdout.isatty():
        return Lines()
    made: Screen = importlib.import_module("skate.cli.live").LiveTable()
    return made


# -- the instance -----------------------------------------------------------------------------------------


@main.command()
@of_instance
@verbose
def start(**given: Any) -> None:
    """Starts an instance that stays until `skate shutdown`."""
    put_first(".")
    instance, new = start_detached(_starter(given, detached=True))
    status, pid = instance.status(), running_pid(instance.runtime_dir)
    if new:
        click.echo(f"Started at {where(status)} (pid {pid}). End it with: skate shutdown")
    else:
        click.echo(f"An instance is running already at {where(status)} (pid {pid}).{_unused()}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@click.option("--name", help="Of one application only.")
@click.option("--calls", "of_calls", is_flag=True, help="What became of the calls, by deployment.")
@verbose
def status(as_json: bool, name: str | None, of_calls: bool) -> None:
    """Shows applications, deployments, replicas, proxies and the counts of calls."""
    instance = instances.find()
    found = instance.status()
    shown: Any = found
    if name is not None:
        if name not in found.applications:
            known = ", ".join(sorted(found.applications)) or "none"
            raise NotFoundError(f"no application {name!r} is running; running are: {known}")
        shown = found.applications[name]
    counts = table.counts_of(found, name)
    if of_calls:
        shown = counts
    now = SystemClock().wall()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())
    elif of_calls:
        click.echo("\n".join(table.calls_lines(counts)))
    elif name is not None:
        click.echo("\n".join(table.application_lines(found, shown, now)))
    else:
        click.echo("\n".join(table.lines(found, running_pid(instance.runtime_dir), now)))


@main.command()
@verbose
def metrics() -> None:
    """Prints the metrics of the instance, as Prometheus reads them."""
    click.echo(instances.find().metrics(), nl=False)


@main.command()
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
    _confirm(yes, f"End the instance in {environment().runtime_dir}{what}?")
    instance.shutdown()
    instances.forget()
    click.echo("The instance has ended.")


@main.command()
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@verbose
def delete(name: str, yes: bool) -> None:
    """Deletes one application and waits until its replicas have ended."""
    found = instances.find().status().applications
    if name in found:
        _confirm(yes, f"Delete application {name}?")
    serve.delete(name)
    click.echo(f"Application {name} is deleted.")


def _confirm(yes: bool, question: str) -> None:
    """Asks on a terminal; whoever calls from a script has decided."""
    if not yes and sys.stdin.isatty() and sys.stdout.isatty():
        click.confirm(question, abort=True)


for command in files.COMMANDS:
    main.add_command(command)
