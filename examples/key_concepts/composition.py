"""Handles: a deployment that is bound to others calls them, here two of them at the same time.

    python -m examples.key_concepts.composition

or over HTTP: ``skate run examples.key_concepts.composition:app``, then ``curl 'http://127.0.0.1:8000/?number=20'``.
"""

from __future__ import annotations

from starlette.requests import Request

from skate import serve


def number_in(request: Request) -> int:
    return int(request.query_params.get("number", "1"))


@serve.deployment
class AddsOne:
    def __call__(self, request: Request) -> int:
        return number_in(request) + 1


@serve.deployment
class Doubles:
    async def __call__(self, request: Request) -> int:
        return number_in(request) * 2


@serve.deployment
class Driver:
    """Where a bound deployment was given to ``bind``, the constructor gets a handle to it."""

    def __init__(self, adds_one: serve.DeploymentHandle[AddsOne], doubles: serve.DeploymentHandle[Doubles]) -> None:
        self.adds_one = adds_one
        self.doubles = doubles

    async def __call__(self, request: Request) -> int:
        more = self.adds_one.remote(request)  # both calls are under way from here on
        twice = self.doubles.remote(request)
        return (await more) + (await twice)


app = Driver.bind(AddsOne.bind(), Doubles.bind())  # three deployments; HTTP reaches the Driver

if __name__ == "__main__":
    handle = serve.run(app)
    print(handle.remote().result())  # (1 + 1) + (1 * 2) = 4
