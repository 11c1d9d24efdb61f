"""A program that mypy --strict takes without the plugin: handles take everything, what they answer is Any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_type

import skate
from skate import serve


class Model:
    async def __call__(self, number: int) -> float:
        return number / 2


@serve.deployment
def add_one(number: int) -> int:
    return number + 1


async def use(model: serve.DeploymentHandle[Model], bare: serve.DeploymentHandle) -> None:
    assert_type(model.remote("a", 2), Any)
    assert_type(model.nope.remote(), Any)
    assert_type(model.options(stream=True, timeout_s=2).nope.remote(), Any)
    async for _ in bare.options(stream=True).generate.remote(3):
        ...
    await bare.method.remote(model.remote(3))


handle = serve.run(add_one.bind())
annotated: serve.DeploymentHandle[Callable[[int], int]] = handle
response: serve.Response[int] = handle.remote(handle.remote("a"))
assert_type(response.result(), int)
assert_type(skate.get([response]), list[int])
assert_type(skate.get(response), int)
