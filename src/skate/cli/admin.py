"""The options of the REST API on the command line. Law: declared in ``core.options``; a token is none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from skate.core.admin_options import admin_options
from skate.core.environment import environment
from skate.core.options import ADMIN_OPTIONS
from skate.core.specs import AdminOptions

F = TypeVar("F", bound=Callable[..., Any])

_PARAMETERS = {"host": "admin_host", "port": "admin_port", "token_file": "admin_token_file"}  # by option
OF_ADMIN = (*_PARAMETERS.values(), "no_admin")


def of_admin(command: F) -> F:
    """Adds ``--admin-*`` and ``--no-admin``."""
    command = click.option("--no-admin", is_flag=True, help="No REST API.")(command)
    for name, parameter in reversed(_PARAMETERS.items()):
        kind = click.INT if name == "port" else click.STRING
        metavar = "FILE" if name == "token_file" else None
        flag, about = "--" + parameter.replace("_", "-"), ADMIN_OPTIONS[name].about
        command = click.option(flag, type=kind, metavar=metavar, help=about)(command)
    return command


def chosen_admin(given: Mapping[str, Any], by_default: bool) -> AdminOptions | None:
    """Where the REST API is served: where it was asked for, or by default; None: nowhere. Raises OptionError."""
    asked = {name: given[parameter] for name, parameter in _PARAMETERS.items() if given[parameter] is not None}
    if given["no_admin"]:
        if asked:
            raise click.UsageError("--no-admin contradicts the other options of the REST API")
        return None
    if not asked and not by_default:
        return None
    return admin_options(asked, environment().admin_token, "the REST API")
