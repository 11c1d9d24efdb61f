"""Commands that change applications of the running instance, and the one that says beforehand what they would change.

Law: a command says what it asked for, waits as long as its user does, and ends nothing that it did not start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from skate import serve
from skate.cli import target as targets
from skate.cli.group import (
    application,
    as_json,
    asked,
    complete_app,
    complete_deployment,
    confirm,
    me,
    of_target,
    ordered,
    show_json,
    verbose,
    warn,
    warn_of_others,
)
from skate.cli.screen import screen
from skate.cli.table import aligned
from skate.cli.waiting import Wait
from skate.cli.words import coloured, duration, short_version
from skate.controlplane import instance as instances
from skate.core.clock import SystemClock
from skate.core.errors import NotFoundError
from skate.core.specs import AppPlan, Change, Revision

WAIT_S = 3600.0
CHANGES_CODE = 2  # of plan --exit-code, as diff-like programs say it

ACTION_COLOURS = {
    "add": "green",
    "restart": "yellow",
    "reconfigure": "cyan",
    "scale": "cyan",
    "settings": "cyan",
    "remove": "red",
}


def of_wait(command: Any) -> Any:
    """Adds the options of a wait."""
    for option in (
        click.option(
            "--timeout",
            "limit_s",
            type=click.FloatRange(0, 86_400, min_open=True),
            default=WAIT_S,
            show_default=True,
            metavar="SECONDS",
            help="How long to wait.",
        ),
        click.option("--no-wait", is_flag=True, help="Return as soon as it is stored."),
    ):
        command = option(command)
    return command


# -- deploy and plan ----------------------------------------------------------------------------------


@click.command()
@of_target
@click.option("--prune", is_flag=True, help="Delete applications of former files that this one does not name.")
@of_wait
@verbose
def deploy(
    target: str,
    arguments: tuple[str, ...],
    name: str,
    route_prefix: str,
    app_dir: str,
    prune: bool,
    no_wait: bool,
    limit_s: float,
) -> None:
    """Deploys applications to the running instance, and waits until they run.

    FILE_OR_IMPORT_PATH is a config file, or module:attribute as `skate run` takes it. Applications that are not named
    stay as they are. Ends with 0 when all run, with 1 when one does not; what ran before goes on serving then.
    """
    instance = instances.find()
    config = targets.config(target, targets.pairs(arguments), name, route_prefix)
    order = targets.order("deploy", target, config, app_dir, prune=prune)
    status = instance.status()
    warn_of_others(status, [app.name for app in config.applications], order.by)
    if unused := targets.of_instance(config):
        warn(f"{' and '.join(unused)} of {target} count when an instance is started; this one keeps its own")
    numbers = ordered(lambda client: client.apply(order))
    _wait_or_go(dict.fromkeys(numbers), order.by, no_wait, limit_s)


def _wait_or_go(wanted: Mapping[str, int | None], by: str, no_wait: bool, limit_s: float) -> None:
    if no_wait:
        click.echo(f"Stored: {', '.join(wanted)}. See how it goes: skate status")
        return
    code = Wait(instances.find(), wanted, by, screen(), SystemClock()).run(limit_s)
    click.get_current_context().exit(code)


@click.command()
@of_target
@click.option("--prune", is_flag=True, help="As of deploy: what it would delete is shown, too.")
@click.option("--exit-code", "says_code", is_flag=True, help="End with 2 if something would change, with 0 if not.")
@as_json
@verbose
def plan(
    target: str,
    arguments: tuple[str, ...],
    name: str,
    route_prefix: str,
    app_dir: str,
    prune: bool,
    says_code: bool,
    as_json: bool,
) -> None:
    """Shows what a deploy would start, restart, reconfigure, scale, leave and remove, and why. Changes nothing."""
    config = targets.config(target, targets.pairs(arguments), name, route_prefix)
    order = targets.order("plan", target, config, app_dir, prune=prune)
    plans = asked(lambda client: client.plan(order))
    if as_json:
        show_json(plans)
    else:
        click.echo("\n".join(line for one in plans for line in plan_lines(one)))
    if any(one.error for one in plans):
        click.get_current_context().exit(1)
    if says_code and any(one.action != "leave" for one in plans):
        click.get_current_context().exit(CHANGES_CODE)


def plan_lines(plan: AppPlan) -> list[str]:
    """What a deploy does to one application."""
    words = {"add": "is new", "change": "changes", "leave": "stays as it is", "remove": "is deleted"}
    name = click.style(plan.app, bold=True)
    if plan.error:
        return [f"Application {name} cannot be built:", *(f"  {line}" for line in plan.error.splitlines())]
    rows = [_change(change) for change in plan.changes]
    return [f"Application {name} {words[plan.action]}", *(f"  {line}" for line in aligned(rows))]


def _change(change: Change) -> list[str]:
    colour = ACTION_COLOURS.get(change.action)
    action = click.style(change.action, fg=colour) if colour else change.action
    return [change.deployment, action, "; ".join(change.why)]


# -- one application ----------------------------------------------------------------------------------


@click.command()
@click.argument("name", shell_complete=complete_app)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@verbose
def delete(name: str, yes: bool) -> None:
    """Deletes one application and waits until its replicas have ended."""
    found = instances.find().status().applications
    if name in found:
        confirm(yes, f"Delete application {name}?")
    serve.delete(name)
    click.echo(f"Application {name} is deleted.")


@click.command()
@click.argument("deployment", metavar="APP/DEPLOYMENT", shell_complete=complete_deployment)
@click.argument("replicas", type=click.IntRange(0, 10_000))
@verbose
def scale(deployment: str, replicas: int) -> None:
    """Wants another number of replicas of one deployment; those that run and are wanted stay."""
    app_name, sign, name = deployment.partition("/")
    app = application(instances.find().status(), app_name) if sign else None
    if app is None:
        raise click.UsageError(f"{deployment!r} names no deployment; write application/deployment")
    if name not in app.deployments:
        known = ", ".join(app.deployments)
        raise NotFoundError(f"application {app_name!r} has no deployment {name!r}; it has: {known}")
    before = app.deployments[name].target_replicas
    ordered(lambda client: client.scale(app_name, name, replicas, me("scale", deployment, str(replicas))))
    click.echo(f"{deployment}: {before} → {replicas} replica{'s' * (replicas != 1)}")


@click.command()
@click.argument("app", shell_complete=complete_app)
@as_json
@verbose
def history(app: str, as_json: bool) -> None:
    """Lists the revisions of an application that are kept, the newest last."""
    revisions = asked(lambda client: client.history(app))
    if as_json:
        show_json(revisions)
    else:
        click.echo("\n".join(history_lines(revisions, SystemClock().wall())))


def history_lines(revisions: list[Revision], now: float) -> list[str]:
    """One line for each; of the versions those that differ from the revision before."""
    rows, before = [], dict[str, str]()
    for one in revisions:
        changed = [name for name, version in one.versions.items() if before.get(name) != version]
        gone = [name for name in before if name not in one.versions]
        new = ", ".join(f"{name} {short_version(one.versions[name])}" for name in changed)
        new += "".join(f"{', ' if new or place else ''}without {name}" for place, name in enumerate(gone))
        mark = coloured("current") if one.current else "" if one.worked else "never ready"
        age = duration(max(0.0, now - one.at))
        rows.append([str(one.revision), mark, f"{age} ago", one.cause, new or "no version changed", one.by])
        before = one.versions
    return aligned([["revision", "", "when", "cause", "versions", "by"], *rows])


@click.command()
@click.argument("app", shell_complete=complete_app)
@click.option("--to", "revision", type=click.IntRange(min=1), help="A revision of `skate history`.")
@of_wait
@verbose
def rollback(app: str, revision: int | None, no_wait: bool, limit_s: float) -> None:
    """Wants a former revision of an application again, and waits until it runs.

    Without --to the last one that worked. It becomes a new revision; so a rollback can be rolled back.
    """
    status = instances.find().status()
    by = me("rollback", app)
    if app in status.applications and status.applications[app].status == "DELETING":
        warn(f"application {app} is being deleted")
    number = ordered(lambda client: client.rollback(app, revision, by))
    goes_on = app in status.applications and status.applications[app].revision == number
    what = f"revision {revision}" if revision else "what serves already" if goes_on else "the one before that worked"
    click.echo(f"Application {app}: revision {number} is {what}")
    _wait_or_go({app: number}, by, no_wait, limit_s)
