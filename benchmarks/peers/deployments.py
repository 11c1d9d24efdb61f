"""How a program of Ray Serve's programming model is driven: Ray Serve and Skate run this very source.

Law: nothing here knows which of the two it is; ``serve`` is handed in, and so are options that only one of them has.
The applications live in plain.py, composed.py and calls.py, imported when they are wanted: a start costs what it needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from time import perf_counter
from typing import Any

from benchmarks.peers.program import WIDE

HOMES = {
    **dict.fromkeys(("hello", "http", "models", "fairness", "big", "scale"), "plain"),
    **dict.fromkeys(("streams", "fastapi"), "composed"),
    "handles": "calls",
}
CALL_MAX_S = 30.0  # beyond the time of a measurement


Options = dict[str, Any]


def apps(name: str, serve: Any, extra: Options, robin: Options | None = None) -> dict[str | None, Any]:
    """The bound applications of one group of work by route prefix. ``extra``: options for every deployment; ``robin``:
    those that choose replicas by turns, None where the framework has none of its own."""

    def deployment(cls: type, by_turns: bool = False, **options: Any) -> Any:
        if by_turns:
            if robin is None:
                return None
            options = {**options, **robin}
        given = {"max_ongoing_requests": WIDE, **options, **extra}
        if given["max_ongoing_requests"] is None:
            del given["max_ongoing_requests"]
        return serve.deployment(name=cls.__name__, **given)(cls)

    return getattr(importlib.import_module(f"benchmarks.peers.{HOMES[name]}"), name)(serve, deployment)


class Deploys:
    """What a program of this kind answers to its lines."""

    def __init__(self, serve: Any, extra: Options, robin: Options | None = None) -> None:
        self._serve, self._extra, self._robin = serve, extra, robin
        self._handles: dict[str, Any] = {}

    def deploy(self, app: str) -> None:
        """Returns when all of it is ready."""
        for prefix, bound in apps(app, self._serve, self._extra, self._robin).items():
            name = (prefix or app).strip("/")
            self._handles[name] = self._serve.run(bound, name=name, route_prefix=prefix)

    def delete(self, app: str) -> None:
        """The counterpart."""
        for prefix in apps(app, self._serve, self._extra, self._robin):
            name = (prefix or app).strip("/")
            self._serve.delete(name)
            del self._handles[name]

    def measure(self, what: str, seconds: float, **how: Any) -> dict[str, float]:
        """Lets the driver measure."""
        response = getattr(self._handles["handles"], what).remote(seconds=seconds, **how)
        return response.result(timeout_s=seconds + CALL_MAX_S)

    def scale(self, count: int) -> float:
        """Seconds until ``/hello`` has so many replicas."""
        (bound,) = apps("hello", self._serve, {**self._extra, "num_replicas": count}).values()
        began = perf_counter()
        self._serve.run(bound, name="hello", route_prefix="/hello")
        return perf_counter() - began

    def answers(self) -> dict[str, Callable[..., Any]]:
        """By the word of the line."""
        return {
            "ping": lambda: None,
            "deploy": self.deploy,
            "delete": self.delete,
            "measure": self.measure,
            "scale": self.scale,
        }
