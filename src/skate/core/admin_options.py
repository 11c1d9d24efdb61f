"""The options of the REST API, from what was given and where its token comes from.

Law: it deploys code, so whoever reaches it owns the instance. It is open to this machine alone, or it has a token; a
token never stands on a command line, where every user of the machine could read it.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import stat
from collections.abc import Mapping
from typing import Any

from skate.core.checks import read_option, shown, unknown_hint
from skate.core.environment import ADMIN_TOKEN
from skate.core.errors import OptionError
from skate.core.options import ADMIN_OPTIONS
from skate.core.specs import AdminOptions

logger = logging.getLogger("skate")

TOKEN_MIN = 16  # characters; what is shorter can be guessed over a network
TOKEN_MAX = 1024
_TOKEN = re.compile(rf"[\x21-\x7e]{{{TOKEN_MIN},{TOKEN_MAX}}}")
_MAKE = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


def admin_options(given: Mapping[str, Any], env_token: str | None, where: str = "admin_options") -> AdminOptions:
    """Options of the REST API from ``host``, ``port``, ``token_file`` and the token of the environment.

    Raises OptionError: an unknown name, a bad value, a file that cannot be read, a weak token, and an address that
    others can reach without a token.
    """
    for key, value in given.items():
        if key == "token":
            raise OptionError(f"{where}: the token comes from {ADMIN_TOKEN} or from the file that token_file names.")
        if key not in ADMIN_OPTIONS:
            raise OptionError(f"{where}: {key}={shown(value)}: {unknown_hint(key, ADMIN_OPTIONS)}.")
    read = {key: read_option(where, key, ADMIN_OPTIONS[key].check, value) for key, value in given.items()}
    path = read.pop("token_file", None)
    if path is not None:
        token = _checked(_from_file(path, where), f"{where}: the token in {path}")
    else:
        token = _checked(env_token, f"{where}: the token in {ADMIN_TOKEN}")
    options = AdminOptions(**read, token=token)
    if token is None and not is_loopback(options.host):
        raise OptionError(
            f"{where}: host={options.host!r} can be reached by others, and whoever reaches the REST API can run code "
            f"here: set a token in {ADMIN_TOKEN} or in a file (token_file), or listen on 127.0.0.1; {_MAKE}"
        )
    return options


def is_loopback(host: str) -> bool:
    """Whether the name or address means this machine only."""
    name = host.lower().removesuffix(".")
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _from_file(path: str, where: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRGRP | stat.S_IROTH):
                logger.warning("%s: others on this machine can read the token in %s; run: chmod 600 on it", where, path)
            return file.read(TOKEN_MAX + 2).strip()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is no text"
        raise OptionError(f"{where}: token_file={path!r} cannot be read: {said}") from None


def _checked(token: str | None, what: str) -> str | None:
    """The token if it is one; its text is never repeated."""
    if token is None:
        return None
    if not _TOKEN.fullmatch(token):
        raise OptionError(f"{what} must have {TOKEN_MIN} to {TOKEN_MAX} printable characters without spaces; {_MAKE}")
    return token
