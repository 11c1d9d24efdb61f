"""What all commands share: how they fail, how they ask, how they find the instance.

Law: a command that fails says so in one line on stderr and ends with 1; a wrong command line ends with 2, an
interrupted wait with 130. A question is only asked where somebody can answer it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

import click
import msgspec

from skate.cli.failure import Failure
from skate.cli.inbox import INTERRUPTED_CODE
from skate.cli.words import replicas_of
from skate.controlplane import instance as instances
from skate.controlplane.client import ControllerClient
from skate.core import origin
from skate.core.checks import nearest
from skate.core.errors import NotFoundError
from skate.core.specs import ApplicationStatus, ServeStatus
from skate.engine.runtime_dir import running_pid

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

VERBOSE = "skate.verbose"
COMPLETION_LIMIT_S = 1.0  # somebody waits at a prompt


class Program(click.Group):
    """A group whose commands fail in one line; they are listed in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

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
            raise Failure(error, is_verbose()) from error


def is_verbose() -> bool:
    return bool(click.get_current_context().meta.get(VERBOSE))


def _set_verbose(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[VERBOSE] = True


def verbose(command: F) -> F:
    """Adds ``-v``."""
    said = "Show the traceback of an error."
    return click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_set_verbose, help=said)(command)


def as_json(command: F) -> F:
    """Adds ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")(command)


def of_target(command: F) -> F:
    """Adds the words that say which application, and where its code is."""
    for option in (
        click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]..."),
        click.argument("target", metavar="FILE_OR_IMPORT_PATH"),
        click.option("-d", "--app-dir", default=".", show_default=True, help="Where modules are looked for first."),
        click.option("--route-prefix", default="/", show_default=True, help="Where HTTP finds the application."),
        click.option("--name", default="default", show_default=True, help="Name of the application."),
    ):
        command = option(command)
    return command


def typed(*names: str) -> list[str]:
    """Those of these options that stand on the command line."""
    ctx = click.get_current_context()
    return [name for name in names if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE]


def confirm(yes: bool, question: str) -> None:
    """Asks on a terminal; whoever calls from a script has decided."""
    if not yes and sys.stdin.isatty() and sys.stdout.isatty():
        click.confirm(question, abort=True)


def warn(text: str) -> None:
    """A line on stderr that ends nothing."""
    click.echo(click.style("warning:", fg="yellow", bold=True) + " " + text, err=True)


def show_json(value: Any, *, indent: int = 2) -> None:
    """One JSON document; with ``indent`` 0 on one line."""
    text = msgspec.json.encode(value)
    click.echo((msgspec.json.format(text, indent=indent) if indent else text).decode())


def me(*words: str) -> str:
    """Who asks: this command, in words."""
    return origin.said(" ".join(("skate", *words)), os.getcwd(), os.getpid())


# -- the running instance -----------------------------------------------------------------------------


def asked(question: Callable[[ControllerClient], Coroutine[Any, Any, T]]) -> T:
    """What the running instance answers. Raises NotRunningError when there is none.

    For what changes nothing: it is asked again if the controller dies meanwhile.
    """
    instance = instances.find()
    return instance.run(instance.read(question))


def ordered(request: Callable[[ControllerClient], Coroutine[Any, Any, T]]) -> T:
    """The same for what changes something: it is asked once."""
    instance = instances.find()
    return instance.run(instance.wish(request))


def application(status: ServeStatus, name: str) -> ApplicationStatus:
    """The application of that name. Raises NotFoundError with the names that there are."""
    found = status.applications.get(name)
    if found is None:
        known = ", ".join(sorted(status.applications)) or "none"
        raise NotFoundError(
            f"no application {name!r} is running{nearest(name, status.applications)}; running are: {known}"
        )
    return found


def warn_of_others(status: ServeStatus, names: Iterable[str], by: str) -> None:
    """Says so when an application that somebody else deployed is about to be replaced."""
    for name in names:
        app = status.applications.get(name)
        if app is not None and app.status != "DELETING" and not origin.same(app.deployed_by, by):
            warn(f"application {name} was deployed by {app.deployed_by}; it is replaced")


# -- completion: fast, and silent when it cannot be done -------------------------------------------------


def _names_now() -> Mapping[str, ApplicationStatus]:
    try:
        instance = instances.find()
        if running_pid(instance.runtime_dir) is None:
            return {}

        async def ask() -> ServeStatus:
            return await (await instance.client()).status()

        return instance.run(ask(), COMPLETION_LIMIT_S).applications
    except Exception:
        return {}


def complete_app(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Names of applications that begin so."""
    return [name for name in sorted(_names_now()) if name.startswith(begun)]


def complete_deployment(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """``app/deployment`` that begin so."""
    keys = [f"{name}/{one}" for name, app in sorted(_names_now().items()) for one in app.deployments]
    return [key for key in keys if key.startswith(begun)]


def complete_deployment_name(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Names of deployments, of ``--app`` where it is given."""
    app = ctx.params.get("app")
    found = {one for name, it in _names_now().items() if app in (None, name) for one in it.deployments}
    return [name for name in sorted(found) if name.startswith(begun)]


def complete_replica(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Ids of replicas."""
    found = [replica.id for app in _names_now().values() for _, replica in replicas_of(app)]
    return [id for id in found if id.startswith(begun)]
