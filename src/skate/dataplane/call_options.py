"""What ``handle.options()`` takes. Law: a wrong name or value is an error at the line where it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from skate.core.errors import OptionError
from skate.core.options import RETRIES_MAX

ROUTING_KEY_MAX = 1024  # characters


class CallOptions(NamedTuple):
    """How the calls of one handle are made. None: as the deployment, or the request around it, says."""

    method_name: str = "__call__"
    stream: bool = False
    timeout_s: float | None = None
    retry: int | None = None
    routing_key: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the router need not look at any of them."""
        return self.retry is None and self.routing_key is None


PLAIN_CALL = CallOptions()


def read_call_options(given: Mapping[str, Any], base: CallOptions) -> CallOptions:
    """The options ``given``, laid over ``base``. Raises OptionError."""
    for name, value in given.items():
        if name not in CallOptions._fields:
            raise OptionError(f"handle.options() knows no {name!r}; it knows {', '.join(CallOptions._fields)}")
        takes = _refused(name, value)
        if takes:
            raise OptionError(f"{name} must be {takes}, not {value!r}")
    return base._replace(**given)


def _refused(name: str, value: Any) -> str:
    """What the option takes, if it does not take this value."""
    if value is None and name in ("timeout_s", "retry", "routing_key"):
        return ""
    if name == "method_name":
        return "" if isinstance(value, str) and value else "the name of a method"
    if name == "stream":
        return "" if isinstance(value, bool) else "True or False"
    if name == "timeout_s":
        good = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        return "" if good else "a number of seconds above 0 or None"
    if name == "retry":
        good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= RETRIES_MAX
        return "" if good else f"a whole number from 0 to {RETRIES_MAX}, or None for what the deployment says"
    good = isinstance(value, str) and len(value) <= ROUTING_KEY_MAX
    return "" if good else f"a string of at most {ROUTING_KEY_MAX} characters or None"
