"""A program that mypy --strict takes with the plugin: decorate, bind, nest, change options."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, assert_type

from skate.authoring.deployment import Application, Deployment, deployment
from skate.authoring.graph import build


class SomeHandle:
    """Stands for a handle in a constructor."""


@deployment
class Model:
    def __init__(self, path: str, *, scale: float = 1.0) -> None:
        self.path, self.scale = path, scale

    async def __call__(self, number: int) -> float:
        return number * self.scale


@deployment(num_replicas=2, max_ongoing_requests=10)
class Driver:
    def __init__(self, model: SomeHandle, others: list[Any], *rest: int) -> None: ...


@deployment
class Bare:
    def __call__(self) -> str:
        return ""


class Written:
    def __init__(self, size: int) -> None: ...


@deployment
class Child(Written): ...


Called = deployment(Written)
Optioned = deployment(max_threads=2)(Written)


@deployment
def add_one(number: int) -> int:
    return number + 1


@deployment(name="other")
async def add_two(number: int) -> int:
    return number + 2


@deployment
async def count(number: int) -> AsyncIterator[int]:
    yield number


assert_type(Model.bind("a"), Application[Model])
assert_type(Model.bind("a", scale=2), Application[Model])
assert_type(Model.options(num_replicas=3).bind("a"), Application[Model])
assert_type(Driver.bind(Model.bind("a"), [Model.bind("b")], 1, 2), Application[Driver])
assert_type(Bare.bind(), Application[Bare])
assert_type(Child.bind(1), Application[Child])
assert_type(Called.bind(3), Application[Written])
assert_type(Optioned.options(name="x").bind(size=3), Application[Written])
assert_type(Called.num_replicas, int | str)

plain: Model = Model.func_or_class("a")
function: Deployment[[], Callable[[int], int]] = add_one
bound: Application[Callable[[int], int]] = add_one.bind()
add_two.bind()
count.bind()
build(Driver.bind(Model.bind("a"), []), "shop", "/shop")
