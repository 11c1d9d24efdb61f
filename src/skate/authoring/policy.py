"""An autoscaling policy of a user's own, from what its import path leads to. Law: what comes out of ``made`` can be
called with (context, memory); for what cannot there is a ``TypeError`` that says what a policy is. A deploy asks this,
and the controller when it loads the policy, so both mean the same.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

FORM = "a policy is called with (context, memory) and returns (number of replicas, memory)"


def made(found: Any, kwargs: Mapping[str, Any]) -> Callable[[Any, Any], Any]:
    """A function with its keyword arguments, or an object of the class that was made with them."""
    if not callable(found):
        raise TypeError(f"it is {type(found).__name__} and cannot be called; {FORM}")
    is_class = isinstance(found, type)
    policy: Callable[[Any, Any], Any] = found(**kwargs) if is_class else functools.partial(found, **kwargs)
    if not callable(policy):
        raise TypeError(f"objects of this class cannot be called; {FORM}")
    called = type(policy).__call__ if is_class else found
    if inspect.iscoroutinefunction(called):
        raise TypeError(f"it is async; {FORM}, without awaiting anything")
    try:
        signature = inspect.signature(policy)
    except ValueError:  # written in C, and says nothing
        return policy
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(f"{error}; {FORM}") from None
    return policy
