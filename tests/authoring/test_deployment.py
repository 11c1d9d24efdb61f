"""Decorate and bind: what comes out, and that every mistake is told where it is made."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest

from skate.authoring.deployment import Application, Deployment, deployment
from skate.core.errors import GraphError, OptionError
from skate.core.options import NotYetWarning


class Model:
    def __init__(self, path: str, *, scale: float = 1.0) -> None:
        raise AssertionError("bind must not run the constructor")


class Plain:
    pass


class Takes:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


class Slow:
    async def __init__(self, path: str) -> None:  # type: ignore[misc]  # the replica awaits it
        pass


class Born:
    def __new__(cls, size: int) -> Born:
        return super().__new__(cls)


class Configured:
    def reconfigure(self, config: Any) -> None:
        pass


def function(request: Any) -> int:
    return 1


async def coroutine(request: Any) -> int:
    return 1


def generator(request: Any) -> Iterator[int]:
    yield 1


async def async_generator(request: Any) -> AsyncIterator[int]:
    yield 1


def test_bare_with_options_and_called_make_the_same() -> None:
    bare, called, empty = deployment(Model), deployment(num_replicas=2)(Model), deployment()(Model)
    assert isinstance(bare, Deployment) and bare == empty and bare != called
    assert (bare.name, bare.num_replicas, called.num_replicas) == ("Model", 1, 2)
    assert bare.func_or_class is Model
    assert hash(bare) == hash(empty)


@pytest.mark.parametrize("target", [function, coroutine, generator, async_generator, Plain, lambda request: 1])
def test_every_kind_of_class_and_function_is_taken(target: Any) -> None:
    made = deployment(name="x")(target)
    assert made.func_or_class is target and isinstance(made.bind(), Application)


def test_the_properties_are_the_options() -> None:
    made = deployment(
        name="m",
        num_replicas=3,
        max_ongoing_requests=7,
        max_queued_requests=9,
        user_config={"a": 1},
        ray_actor_options={"num_cpus": 2},
        backpressure_config={"status_code": 429},
    )(Configured)
    assert (made.name, made.num_replicas, made.max_ongoing_requests, made.max_queued_requests) == ("m", 3, 7, 9)
    assert (made.user_config, made.ray_actor_options, made.logging_config) == ({"a": 1}, {"num_cpus": 2.0}, None)
    assert made.backpressure_config.status_code == 429
    assert made.configured == {
        "name", "num_replicas", "max_ongoing_requests", "max_queued_requests", "user_config", "ray_actor_options",
        "backpressure_config",
    }  # fmt: skip
    assert "num_replicas=3" in repr(made) and repr(deployment(Plain)) == "Deployment(Plain)"


def test_options_copies_and_keeps_the_rest() -> None:
    first = deployment(num_replicas=2, max_ongoing_requests=9)(Plain)
    second = first.options(num_replicas=4)
    assert (first.num_replicas, second.num_replicas, second.max_ongoing_requests) == (2, 4, 9)
    assert second.configured == {"num_replicas", "max_ongoing_requests"}
    assert first.options(func_or_class=Model).func_or_class is Model


def test_calling_a_deployment_or_a_node_tells_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"Plain is a deployment .*serve.run\(Plain.bind.*func_or_class"):
        deployment(Plain)()
    with pytest.raises(RuntimeError, match=r"Plain.bind\(\) is not running"):
        deployment(Plain).bind()()


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "said"),
    [
        (Model, (), {}, r"Model.bind\(\): missing a required argument: 'path'. The constructor is Model\(path"),
        (Model, ("a", 2), {}, "too many positional arguments"),
        (Model, ("a",), {"scales": 2}, "unexpected keyword argument 'scales'"),
        (Plain, (1,), {}, r"The constructor is Plain\(\)"),
        (Slow, (), {}, "missing a required argument: 'path'"),
        (Born, (), {}, "missing a required argument: 'size'"),
    ],
)
def test_wrong_arguments_are_told_at_bind(target: type, args: Any, kwargs: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        deployment(target).bind(*args, **kwargs)


def test_right_arguments_bind_without_running_anything() -> None:
    assert repr(deployment(Model).bind("a", scale=2)) == "Model.bind('a', scale=2)"
    assert repr(deployment(Takes).bind(1, [2], x=3)) == "Takes.bind(1, ..., x=3)"
    for target, args in [(Slow, ("p",)), (Born, (1,)), (Plain, ()), (dict, ()), (dict, (1, 2, 3))]:
        assert isinstance(deployment(target).bind(*args), Application)


def test_a_function_takes_no_arguments_at_bind() -> None:
    with pytest.raises(GraphError, match=r"function.bind\(\) takes no arguments"):
        deployment(function).bind(1)  # type: ignore[call-arg]


@pytest.mark.parametrize("target", [3, None, "Model", Plain(), partial(function), len])
def test_only_classes_and_functions_are_deployments(target: Any) -> None:
    with pytest.raises(TypeError, match="a class or a function"):
        deployment()(target)


def test_a_deployment_is_not_decorated_again() -> None:
    with pytest.raises(TypeError, match=r"change it with Plain.options"):
        deployment(deployment(Plain))
    base: Any = deployment(Plain)
    with pytest.raises(TypeError, match=r"inherit from Plain.func_or_class"):

        class Child(base): ...

    with pytest.raises(TypeError, match="is bound already"):
        deployment(deployment(Plain).bind())


def test_wrong_options_are_told_at_decoration_with_the_class() -> None:
    with pytest.raises(OptionError, match="num_replicas=0"):
        deployment(num_replicas=0)
    with pytest.raises(OptionError, match=r"@serve.deployment on Model: max_threads=0"):
        deployment(Model, max_threads=0)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match=r"Model.options: num_replica=2.*nearest is 'num_replicas'"):
        deployment(Model).options(num_replica=2)


def test_user_config_needs_reconfigure() -> None:
    with pytest.raises(OptionError, match=r"Plain.reconfigure"):
        deployment(user_config={})(Plain)
    with pytest.raises(OptionError, match="this is a function"):
        deployment(user_config={})(function)
    assert deployment(user_config={})(Configured).user_config == {}


def test_one_warning_at_the_users_line() -> None:
    with pytest.warns(NotYetWarning, match="on Plain") as seen:
        deployment(max_replicas_per_node=1)(Plain)
    assert [one.filename for one in seen] == [__file__]
    with warnings.catch_warnings(record=True) as seen_again:
        warnings.simplefilter("always")
        made = deployment(Plain, max_replicas_per_node=1)  # type: ignore[call-overload]
        made.options(num_replicas=2)
        made.options(max_replicas_per_node=2)
    assert [(one.category, one.filename) for one in seen_again] == [(NotYetWarning, __file__)] * 2


def test_no_web_framework_is_imported_by_authoring() -> None:
    program = (
        "import sys, types, pathlib, importlib.util\n"
        "root = types.ModuleType('skate')\n"  # the package without its __init__, which imports all floors
        "root.__path__ = list(importlib.util.find_spec('skate').submodule_search_locations)\n"
        "sys.modules['skate'] = root\n"
        "import skate.authoring.deployment, skate.authoring.graph, skate.authoring.code\n"
        "bad = {'fastapi', 'starlette', 'pydantic', 'asyncio', 'ray', 'grpc'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad - {'asyncio'} else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
