"""A Request that is passed on through handles: its body is there in every receiver, read before or not."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.requests import Request

from skate import serve
from tests.e2e.apps import Leaf, Middle, Top
from tests.e2e.conftest import Deploy

BIG = b"x" * 3_000_000  # comes in pieces, more than the credit of a connection


@pytest.mark.parametrize("first", ["read", "pass on"])
@pytest.mark.parametrize("body", [b"", b"small", BIG], ids=["empty", "small", "big"])
def test_two_handles_and_two_floors(deploy: Deploy, http: httpx.Client, body: bytes, first: str) -> None:
    leaf = Leaf.bind()
    deploy(Top.bind(Middle.bind(leaf, first), Middle.bind(leaf, first), first))
    answer = http.post("/a1/x", content=body, headers={"x-own": "mine"})
    seen = [len(body), ["POST", "/a1/x", "mine", len(body), body[:4].decode()]]
    assert answer.json() == [len(body), seen, seen]


def test_a_get_with_json_goes_to_both_models(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    class Model:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        async def __call__(self, request: Request) -> int:
            number: int = await request.json()["n"]  # type: ignore[index]
            return number * self.factor

    @serve.deployment
    class Driver:
        def __init__(self, a: Any, b: Any) -> None:
            self.a, self.b = a, b

        async def __call__(self, request: Request) -> int:
            a, b = self.a.remote(request), self.b.remote(request)
            total: int = (await a) + (await b)
            return total

    deploy(Driver.bind(Model.bind(2), Model.bind(30)))
    assert http.request("GET", "/a1", json={"n": 3}).json() == 96


def test_a_sync_handler_passes_it_on(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    class Sync:
        def __init__(self, leaf: Any) -> None:
            self.leaf = leaf

        def __call__(self, request: Request) -> Any:
            return self.leaf.remote(request).result()

    deploy(Sync.bind(Leaf.bind()))
    answer = http.post("/a1", content=BIG, headers={"x-own": "me"})
    assert answer.json() == ["POST", "/a1", "me", len(BIG), "xxxx"]
