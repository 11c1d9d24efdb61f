"""What a user names on the command line, a file or an import path, as an order to an instance.

Law: nothing is imported here but the file's text; the code is found by whoever builds it, along the same path as it
would be found from here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import click

from skate.authoring.config import read_file
from skate.authoring.load import parsed, put_first
from skate.cli.group import me, typed, warn
from skate.core.config import AppConfig, ApplyRequest, ServeConfig
from skate.core.environment import variables
from skate.core.errors import OptionError
from skate.core.options import check_name, check_route_prefix

ENDINGS = (".yaml", ".yml", ".json")
OF_IMPORT_PATH = {"name": "--name", "route_prefix": "--route-prefix"}


def is_file(target: str) -> bool:
    """Whether it names a config file. A Python file is taken for an import path, whose check says what to write."""
    return target.endswith(ENDINGS) or (os.path.isfile(target) and not target.endswith(".py"))


def pairs(words: tuple[str, ...]) -> Mapping[str, str]:
    """``key=value`` words as a dict."""
    found: dict[str, str] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise click.UsageError(f"{word!r} is no argument for a builder; write key=value")
        if key in found:
            raise click.UsageError(f"{key!r} is given twice")
        found[key] = value
    return found


def config(target: str, arguments: Mapping[str, str], name: str, route_prefix: str) -> ServeConfig:
    """The applications that the target means. Raises what is wrong with the file or the words."""
    if not is_file(target):
        parsed(target)
        check_name(name, where="--name")
        prefix = check_route_prefix(route_prefix, "--route-prefix")
        return ServeConfig((AppConfig(name, target, prefix, dict(arguments)),))
    refuse_words(target, arguments)
    return read(target)


def read(file: str) -> ServeConfig:
    """The applications of a file. Raises ConfigError with all mistakes in it."""
    found, notes = read_file(file, variables())
    for note in notes:
        warn(note)
    if not found.applications:
        raise OptionError(f"{file} has no applications")
    return found


def of_instance(config: ServeConfig) -> list[str]:
    """What the file says that only counts for an instance that it starts."""
    return [*(["http_options"] if config.http_options else []), *(["proxy_location"] if without_http(config) else [])]


def without_http(config: ServeConfig) -> bool:
    """Whether the file wants no HTTP at all."""
    return config.proxy_location == "Disabled"


def refuse_words(target: str, arguments: Mapping[str, str]) -> None:
    """A file says these things itself."""
    if arguments:
        raise click.UsageError(f"{target} is a file; write the arguments ({', '.join(arguments)}) under args in it")
    if misplaced := [OF_IMPORT_PATH[name] for name in typed(*OF_IMPORT_PATH)]:
        raise click.UsageError(f"{target} is a file; write there what {' and '.join(misplaced)} would say")


def order(command: str, target: str, config: ServeConfig, app_dir: str, *, prune: bool = False) -> ApplyRequest:
    """The order for what ``config`` read; modules are looked for in ``app_dir``, then here, then as Python does."""
    put_first(app_dir)
    path = tuple(os.path.abspath(entry or ".") for entry in sys.path if not entry.endswith(".zip"))
    by = me(command, target)
    return ApplyRequest(config, tuple(dict.fromkeys(path)), os.getcwd(), prune, by)
