"""Commands about config files: ``validate``, ``build`` and ``schema``. Law: none of them needs or touches an instance.

User code is imported in another interpreter for ``validate``, which asks for several applications that may not go
together in one process, and in this one for ``build``, which writes down what it sees and ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from skate.authoring import document
from skate.authoring.config import DEFAULT_NAME, plain, read_file
from skate.authoring.graph import build as build_spec
from skate.authoring.graph import deployments
from skate.authoring.load import application
from skate.authoring.schema import schema as made_schema
from skate.cli.failure import error_line
from skate.cli.fresh import Interpreter
from skate.cli.group import verbose, warn
from skate.cli.table import aligned
from skate.controlplane.builder import built
from skate.core.config import AppConfig, BuildRequest, BuildResult, ServeConfig
from skate.core.environment import variables
from skate.core.errors import SkateError
from skate.core.specs import DeploymentSpec

STDERR = 2  # what user code prints goes beside what we say


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--no-import", is_flag=True, help="Look at the file only, not at the code that it names.")
@click.option("-d", "--app-dir", default=".", show_default=True, help="Where modules are looked for first.")
@verbose
def validate(file: str, no_import: bool, app_dir: str) -> None:
    """Checks a config file, and that the code it names can be deployed with it.

    Says "ok" and what it found, or all mistakes; ends with 0 or 1. Nothing is started.
    """
    config, notes = read_file(file, variables())
    for note in notes:
        warn(note)
    results = [] if no_import else [_built(app, config, app_dir) for app in config.applications]
    wrong = [(app, one.error) for app, one in zip(config.applications, results, strict=False) if one.error]
    for app, error in wrong:
        click.echo(error_line(f"application {app.name}: {error}"), err=True)
    if wrong:
        click.get_current_context().exit(1)
    click.echo(f"{file}: {click.style('ok', fg='green')}")
    for number, app in enumerate(config.applications):
        spec = results[number].spec if results else None
        for line in _found(app, spec.deployments if spec is not None else None):
            click.echo(line)


def _built(app: AppConfig, config: ServeConfig, app_dir: str) -> BuildResult:
    paths = (os.path.abspath(app_dir), os.getcwd())
    request = BuildRequest("validate", "", app, config.logging_config, paths, os.getcwd())
    try:
        given = msgspec.msgpack.encode(request)
        answer = Interpreter().ask(["built"], app.import_path, given, output=STDERR)
    except SkateError as error:
        return BuildResult("validate", error=str(error))
    return msgspec.msgpack.decode(answer, type=BuildResult)


def _found(app: AppConfig, specs: tuple[DeploymentSpec, ...] | None) -> Iterator[str]:
    where = app.route_prefix or "without HTTP"
    yield f"  Application {click.style(app.name, bold=True)}  {where}  {app.import_path}"
    if specs is None:
        names = [
            [f"    {name}", f"sets {', '.join(options) or 'nothing'}"] for name, options in app.deployments.items()
        ]
        yield from aligned(names) if names else ()
        return
    rows = []
    for one in specs:
        count = one.options.num_replicas
        replicas = "scales with the load" if count == "auto" else f"{count} replica{'s' * (count != 1)}"
        said = ", ".join(app.deployments.get(one.name, {}))
        rows.append([f"    {one.name}", replicas, f"the file sets {said}" if said else ""])
    yield from aligned(rows)


@click.command("built", hidden=True)
@click.option("--to", "descriptor", type=int, required=True)
def answer_built(descriptor: int) -> None:
    """Builds the application that is asked for on standard input, and writes the result to an open file."""
    request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=BuildRequest)
    result = built(request)
    with open(descriptor, "wb") as to:
        to.write(msgspec.msgpack.encode(result))


# -- build ----------------------------------------------------------------------------------------------


@click.command()
@click.argument("import_paths", nargs=-1, required=True, metavar="IMPORT_PATH...")
@click.option("-o", "--output", type=click.Path(dir_okay=False, writable=True), help="Where to write it; else stdout.")
@click.option("-d", "--app-dir", default=".", show_default=True, help="Where modules are looked for first.")
@click.option("--name", help="Of the application, where there is one.  [default: default]")
@verbose
def build(import_paths: tuple[str, ...], output: str | None, app_dir: str, name: str | None) -> None:
    """Writes a config file that deploys to the same applications, with every option that their code sets.

    One application is at "/"; several are named app1, app2, ... and are at "/app1", "/app2", ...
    """
    if name is not None and len(import_paths) > 1:
        raise click.UsageError("--name is for one application; several are named app1, app2, ...")
    several = len(import_paths) > 1
    folder = _relative(app_dir, output) if os.path.abspath(app_dir) != os.getcwd() else None
    applications = []
    for number, path in enumerate(import_paths, 1):
        called = f"app{number}" if several else name or DEFAULT_NAME
        applications.append(config_of(path, called, f"/app{number}" if several else "/", app_dir, folder))
    said = f"Made by: skate build {' '.join(import_paths)}\nDeploy it with: skate deploy FILE"
    text = document.written(plain(ServeConfig(tuple(applications))), said)
    if output is None:
        click.echo(text, nl=False)
        return
    with open(output, "w", encoding="utf-8") as to:
        to.write(text)
    click.echo(f"Written to {output}.", err=True)


def config_of(path: str, name: str, prefix: str, app_dir: str = ".", folder: str | None = None) -> AppConfig:
    """What a file would say of an application: every option that its code sets itself, and no other."""
    app = application(path, {}, app_dir)
    build_spec(app, name, prefix)  # raises what could not be deployed
    options = {}
    for deployed, deployment in deployments(app).items():
        every: Any = deployment.all_options
        given = {key: msgspec.to_builtins(getattr(every, key)) for key in sorted(deployment.configured - {"name"})}
        if given:
            options[deployed] = given
    surroundings = {"working_dir": folder} if folder is not None else {}
    return AppConfig(name, path, prefix, runtime_env=surroundings, deployments=options)


def _relative(app_dir: str, output: str | None) -> str:
    """The folder as the file must name it."""
    return os.path.relpath(app_dir, os.path.dirname(os.path.abspath(output)) if output is not None else None)


# -- schema ---------------------------------------------------------------------------------------------


@click.command()
@click.option("-o", "--output", type=click.Path(dir_okay=False, writable=True), help="Where to write it; else stdout.")
@verbose
def schema(output: str | None) -> None:
    """Prints the JSON Schema of config files, for editors.

    With `skate schema -o serve.schema.json`, editors with the YAML language server know all keys and values where the
    first line of a file is: # yaml-language-server: $schema=serve.schema.json
    """
    text = msgspec.json.format(msgspec.json.encode(made_schema()), indent=2).decode() + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    with open(output, "w", encoding="utf-8") as to:
        to.write(text)


COMMANDS = (validate, build, schema, answer_built)
