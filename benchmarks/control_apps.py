"""What the benchmark of the control plane serves. Replicas find it by its import path."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from skate import serve

HELLO = "Hello, world!"


@serve.deployment(max_ongoing_requests=64)
class Light:
    """A light replica; another ``version`` is another constructor argument, so another version of the deployment."""

    def __init__(self, version: int = 0) -> None:
        self.version = version
        self.factor = 0

    def reconfigure(self, config: Any) -> None:
        self.factor = config["factor"]

    async def __call__(self, request: Request) -> str:
        return HELLO

    async def state(self) -> tuple[int, int]:
        return self.version, self.factor
