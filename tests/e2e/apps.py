"""Applications that replicas find by their import path. It imports little, because every replica imports it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from skate import serve


@serve.deployment
class Leaf:
    async def __call__(self, request: Request) -> Any:
        body = await request.body()
        return [request.method, request.url.path, request.headers["x-own"], len(body), body[:4].decode()]


@serve.deployment
class Middle:
    def __init__(self, leaf: Any, first: str) -> None:
        self.leaf, self.first = leaf, first

    async def __call__(self, request: Request) -> Any:
        own = len(await request.body()) if self.first == "read" else None
        below = await self.leaf.remote(request)
        return [own if own is not None else len(await request.body()), below]


@serve.deployment
class Top:
    def __init__(self, a: Any, b: Any, first: str) -> None:
        self.a, self.b, self.first = a, b, first

    async def __call__(self, request: Request) -> Any:
        own = len(await request.body()) if self.first == "read" else None
        one, two = self.a.remote(request), self.b.remote(request=request)
        answers = [await one, await two]
        return [own if own is not None else len(await request.body()), *answers]
