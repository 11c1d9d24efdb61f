"""Mistaken calls through handles; the comment names the error code of mypy that must stand at that line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol, assert_type

from fastapi import FastAPI
from starlette.requests import Request

import skate
from skate import serve

api = FastAPI()


@serve.deployment
class Model:
    def __init__(self, path: str) -> None:
        self.path = path

    async def __call__(self, number: int) -> float:
        return number / 2

    def predict(self, values: list[float], *, scale: float = 1.0) -> str:
        return str(scale * sum(values))

    async def count(self, until: int) -> AsyncIterator[int]:
        yield until

    def letters(self, text: str) -> Iterator[str]:
        yield text

    def page(self, request: Request) -> bytes:
        return b""

    @property
    def size(self) -> int:
        return 1

    def _own(self) -> None: ...


@serve.deployment
async def add_one(number: int) -> int:
    return number + 1


@serve.deployment
@serve.ingress(api)
class Api:
    @api.get("/{name}")
    async def say_hi(self, name: str) -> str:
        return name


class Guesses(Protocol):
    def guess(self, value: int) -> int: ...


@serve.deployment
class Driver:
    def __init__(
        self,
        model: serve.DeploymentHandle[Model],
        function: serve.DeploymentHandle[Callable[[int], int]] | None = None,
        *others: serve.DeploymentHandle[Guesses],
    ) -> None:
        self.model = model
        self.predict = model.predict
        self.letters = model.letters

    async def __call__(self) -> int:
        await self.predict.remote("a")  # E: arg-type
        self.letters.remote("a")  # E: misc
        return await self.model.remote(1)  # E: return-value


handle = serve.run(Model.bind("a"))
function = serve.run(add_one.bind())

handle.remote("a")  # E: arg-type
handle.remote()  # E: call-arg
handle.remote(1, 2)  # E: call-arg
handle.remote(handle.predict.remote([]))  # E: arg-type
handle.predict.remote(["a"])  # E: list-item
handle.predict.remote([1.0], scale="a")  # E: arg-type
handle.predict.remote([handle.remote(1)])  # E: list-item
assert_type(handle.remote(1), serve.Response[str])  # E: assert-type
handle.nope  # E: attr-defined
handle.predikt.remote([])  # E: attr-defined
handle.path  # E: attr-defined
handle.size.remote()  # E: attr-defined
handle._own  # E: attr-defined
handle.bind.remote("a")  # E: attr-defined
handle.__name__  # E: attr-defined
handle.predict.more  # E: attr-defined
handle.page.remote()  # E: call-arg
handle.count.remote(3)  # E: misc
handle.letters.remote("a")  # E: misc
handle.options(stream=True).remote(3)  # E: misc
handle.options(stream=True).count.remote("a")  # E: arg-type
handle.options(stream=True).nope  # E: attr-defined
handle.options(strem=True)  # E: call-arg
handle.options(stream=1)  # E: arg-type
handle.options(timeout_s="2")  # E: arg-type
handle.options(method_name="nope")  # E: attr-defined
handle.options(method_name="predict").remote(3)  # E: arg-type
handle(3)  # E: misc
function.remote("a")  # E: arg-type
function.remote(handle.remote(3))  # E: arg-type
function.method  # E: attr-defined
serve.run(Api.bind()).remote()  # E: attr-defined
serve.run(Api.bind()).say_hi.remote(1)  # E: arg-type
skate.get(3)  # E: call-overload
wrong: list[str] = skate.get([handle.remote(3)])  # E: list-item
narrower: serve.DeploymentHandle[Guesses] = handle  # E: assignment

Driver.bind(add_one.bind())  # E: arg-type
Driver.bind(Model.bind("a"), Model.bind("a"))  # E: arg-type
Driver.bind(Model.bind("a"), None, Model.bind("a"))  # E: arg-type
Driver.options(name="x").bind(model=Api.bind())  # E: arg-type


def perhaps(maybe: serve.DeploymentHandle[Model] | None) -> None:
    maybe.predict.remote([1.0])  # E: union-attr


async def waits() -> None:
    for one in handle.options(stream=True).count.remote(3):
        one.upper()  # E: attr-defined
