"""Files as REST takes and shows them: from JSON to checked values and back, without what is secret.

Law: a value of an environment variable never leaves; what was shown in its place is never taken for a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from skate.admin.answers import Failure
from skate.authoring.config import plain, read_plain
from skate.core.config import ServeConfig

REDACTED = "<redacted>"
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")  # of an address


def read_file(body: Any, where: str = "the body") -> ServeConfig:
    """The content of a file. Raises ConfigError with all mistakes in it, Failure."""
    if not isinstance(body, Mapping):
        raise Failure(
            400, "MalformedBody", f"{where} must be an object with the content of a file: applications: [...]"
        )
    if hidden := ", ".join(_redacted_paths(body)):
        raise Failure(
            400,
            "RedactedValue",
            f"{hidden} says {REDACTED!r}, which stands for a value that is not shown; write the value itself",
        )
    return read_plain(body, where)


def read_application(body: Any, name: str) -> ServeConfig:
    """One application as a file has it; its name may be left out. Raises ConfigError, Failure."""
    if not isinstance(body, Mapping):
        raise Failure(400, "MalformedBody", "the body must be an object: one application, as a file has it")
    if body.get("name", name) != name:
        raise Failure(400, "OtherName", f"the body names application {body['name']!r}, the address {name!r}")
    return read_file({"applications": [{**body, "name": name}]})


def shown_file(config: ServeConfig) -> dict[str, Any]:
    """The file that would say this, without secrets."""
    shown: dict[str, Any] = _redacted(plain(config))
    return shown


def shown_applications(config: ServeConfig) -> dict[str, dict[str, Any]]:
    """Its applications by name, without secrets."""
    return {str(app["name"]): app for app in shown_file(config).get("applications", ())}


def _redacted(value: Any, key: str = "", inside: bool = False) -> Any:
    """A copy; ``inside`` a runtime_env."""
    inside = inside or key == "runtime_env"
    if inside and key == "env_vars" and isinstance(value, Mapping):
        return dict.fromkeys(value, REDACTED)
    if isinstance(value, Mapping):
        return {name: _redacted(one, name, inside) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(one, "", inside) for one in value]
    return _CREDENTIALS.sub(REDACTED, value) if inside and isinstance(value, str) else value


def _redacted_paths(value: Any, path: str = "", inside: bool = False) -> Iterator[str]:
    inside = inside or path.endswith("runtime_env")
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _redacted_paths(one, f"{path}.{name}" if path else str(name), inside)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _redacted_paths(one, f"{path}[{index}]", inside)
    elif inside and isinstance(value, str) and REDACTED in value:
        yield path
