"""Calls through handles that mypy --strict takes, with what they answer; it knows the answers with the plugin only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol, TypeVar, assert_type, overload

from fastapi import FastAPI
from starlette.requests import Request

import skate
from skate import serve

X = TypeVar("X")
Number = TypeVar("Number", bound=float)
api = FastAPI()


@serve.deployment
class Model:
    def __init__(self, path: str) -> None:
        self.path = path

    async def __call__(self, number: int) -> float:
        return number / 2

    def predict(self, values: list[float], *, scale: float = 1.0) -> str:
        return str(scale * sum(values))

    def nothing(self) -> None: ...

    async def count(self, until: int) -> AsyncIterator[int]:
        yield until

    def letters(self, text: str) -> Iterator[str]:
        yield text

    def written(self) -> Iterator[str]:
        return iter(("a", "b"))

    @overload
    def twice(self, value: int) -> int: ...

    @overload
    def twice(self, value: str) -> str: ...

    def twice(self, value: Any) -> Any:
        return value * 2

    @staticmethod
    def static(value: int) -> str:
        return str(value)

    @classmethod
    def of_class(cls, value: int) -> str:
        return str(value)

    def same(self, value: X) -> list[X]:
        return [value]

    def just(self, value: X) -> X:
        return value

    def number(self, value: Number) -> Number:
        return value

    def first(self, values: list[X]) -> X:
        return values[0]

    def untyped(self, value):  # type: ignore[no-untyped-def]
        return value


@serve.deployment
async def add_one(number: int) -> int:
    return number + 1


@serve.deployment
def hello(request: Request) -> str:
    return "hello"


@serve.deployment
class Page:
    def __call__(self, request: Request, depth: int = 0) -> bytes:
        return b""


@serve.deployment
@serve.ingress(api)
class Api:
    @api.get("/{name}")
    async def say_hi(self, name: str, times: int = 1) -> str:
        return name * times


class Predicts(Protocol):
    def predict(self, values: list[float]) -> str: ...


@serve.deployment
class Driver:
    def __init__(
        self,
        model: serve.DeploymentHandle[Model],
        any_model: serve.DeploymentHandle[Predicts],
        function: serve.DeploymentHandle[Callable[[int], int]] | None = None,
        *others: serve.DeploymentHandle[Model],
        untyped: serve.DeploymentHandle | None = None,
    ) -> None:
        self.model = model
        self.predict = any_model.predict
        self.stream = model.options(stream=True)
        self.count = model.count
        self.function = function

    async def __call__(self, number: int) -> float:
        assert_type(self.predict.remote([1.0]), serve.Response[str])
        assert_type(await self.model.remote(number), float)
        later = self.model.remote(number)
        assert_type(self.model.just.remote(later), serve.Response[float])
        async for one in self.stream.count.remote(number):
            assert_type(one, int)
        async for one in self.count.options(stream=True).remote(number):
            assert_type(one, int)
        if self.function is not None:
            assert_type(await self.function.remote(3), int)
        return await later


Driver.bind(Model.bind("a"), Model.bind("a"))
Driver.bind(Model.bind("a"), Model.bind("a"), None, Model.bind("b"), Model.bind("c"), untyped=add_one.bind())
Driver.options(name="x").bind(Model.bind("a"), any_model=Model.bind("a"))

handle = serve.run(Model.bind("a"))
assert_type(handle, serve.DeploymentHandle[Model])
assert_type(handle.remote(3), serve.Response[float])
assert_type(handle.remote(number=3).result(timeout_s=1), float)
assert_type(handle.predict.remote([1, 2], scale=2), serve.Response[str])
assert_type(handle.predict.remote([]), serve.Response[str])
assert_type(handle.nothing.remote(), serve.Response[None])
assert_type(handle.twice.remote(1), serve.Response[int])
assert_type(handle.twice.remote(handle.twice.remote("a")), serve.Response[str])
assert_type(handle.static.remote(1), serve.Response[str])
assert_type(handle.of_class.remote(1), serve.Response[str])
assert_type(handle.same.remote(1), serve.Response[list[int]])
assert_type(handle.first.remote(handle.same.remote(1)), serve.Response[int])
assert_type(handle.number.remote(handle.number.remote(1)), serve.Response[Any])
assert_type(handle.written.remote(), serve.Response[Iterator[str]])
assert_type(handle.options(timeout_s=2).remote(3), serve.Response[float])
assert_type(handle.options(method_name="predict").remote([1.0]), serve.Response[str])
assert_type(handle.options(stream=True).options(stream=False).remote(3), serve.Response[float])
assert_type(handle.options(stream=True).letters.remote("a"), serve.ResponseStream[str])
assert_type(handle.options(stream=True, method_name="letters").remote("a"), serve.ResponseStream[str])
assert_type(handle.options(stream=True).written.remote(), serve.ResponseStream[str])
for letter in handle.letters.options(stream=True).remote("a"):
    assert_type(letter, str)
predict = handle.predict
assert_type(predict.remote([1.0]), serve.Response[str])
handle.untyped.remote(1).result()

function = serve.run(add_one.bind())
assert_type(function.remote(3), serve.Response[int])
assert_type(function.remote(function.remote(3)), serve.Response[int])
assert_type(serve.run(hello.bind()).remote(), serve.Response[str])
assert_type(serve.run(Page.bind()).remote(), serve.Response[bytes])
assert_type(serve.run(Api.bind()).say_hi.remote("a", times=2), serve.Response[str])

assert_type(skate.get(handle.remote(3)), float)
assert_type(skate.get([handle.remote(3), handle.remote(4)], timeout_s=1), list[float])
assert_type(skate.get([handle.remote(3), function.remote(4)]), list[float])

anything: serve.DeploymentHandle[Any] = serve.get_app_handle("x")
anything.whatever.remote(1, a=2)
wider: serve.DeploymentHandle[Predicts] = handle


def unnamed(bare: serve.DeploymentHandle, flag: bool, name: str, options: dict[str, Any]) -> None:
    bare.remote(1).result()
    bare.options(stream=True).method.remote(2, a=3)
    handle.options(stream=flag).whatever.remote()
    handle.options(method_name=name).remote(1, 2, 3)
    handle.options(**options).whatever.remote()


def in_general(any_handle: serve.DeploymentHandle[X]) -> None:
    any_handle.whatever.remote(1)


def several(either: serve.DeploymentHandle[Model] | serve.DeploymentHandle[Driver] | None) -> None:
    if either is not None:
        assert_type(either.remote(3), serve.Response[float])


async def together() -> None:
    value, text = await asyncio.gather(handle.remote(1), handle.twice.remote("a"))
    assert_type(value, float)
    assert_type(text, str)
    assert_type(await asyncio.wait_for(handle.remote(1), 3), float)
