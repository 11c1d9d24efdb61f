"""What ``handle.options()`` takes and refuses."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest

from skate.core.errors import OptionError
from skate.dataplane.call_options import PLAIN_CALL, CallOptions, read_call_options
from skate.dataplane.handle import DeploymentHandle


def test_options_are_laid_over_those_before() -> None:
    first = read_call_options({"stream": True, "retry": 2, "routing_key": "u1"}, PLAIN_CALL)
    assert first == CallOptions("__call__", True, None, 2, "u1") and not first.is_plain
    assert read_call_options({"retry": None, "routing_key": None, "timeout_s": 3}, first) == CallOptions(
        "__call__", True, 3
    )
    assert PLAIN_CALL.is_plain and not read_call_options({"retry": 0}, PLAIN_CALL).is_plain


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"retries": 1}, "knows no 'retries'; it knows method_name, stream, timeout_s, retry, routing_key"),
        ({"retry": -1}, "retry must be a whole number from 0 to 10, or None"),
        ({"retry": 11}, "retry must be"),
        ({"retry": True}, "retry must be"),
        ({"retry": 1.0}, "retry must be"),
        ({"routing_key": 3}, "routing_key must be a string of at most 1024 characters or None"),
        ({"routing_key": "x" * 1025}, "routing_key must be"),
        ({"stream": None}, "stream must be True or False"),
        ({"timeout_s": 0}, "timeout_s must be a number of seconds above 0 or None"),
        ({"timeout_s": math.nan}, "timeout_s must be"),
        ({"method_name": ""}, "method_name must be the name of a method"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as error:
        read_call_options(given, PLAIN_CALL)
    assert said in str(error.value)


def test_a_handle_keeps_them_through_methods_and_pickles() -> None:
    handle: DeploymentHandle[Any] = DeploymentHandle("app", "D", address="memory:x").options(retry=1, routing_key="k")
    method = handle.predict
    assert method == handle.options(method_name="predict") != handle
    assert pickle.loads(pickle.dumps(method)) == method and hash(method) == hash(pickle.loads(pickle.dumps(method)))
