"""A deployment that keeps, gives and spoils large values; replicas find it by its import path."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import numpy as np

from skate import serve
from skate.dataplane.shared.pool import pool
from tests.e2e.notes import Gate

MB = 1 << 20


def array(seed: int, size: int = MB) -> Any:
    """An array of ``size`` bytes that says where it came from."""
    return np.random.default_rng(seed).integers(0, 255, size, np.uint8)


@serve.deployment
class Store:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    async def keep(self, value: Any) -> bool:
        self.kept.append(value)
        return bool(value.flags.writeable)

    def keep_sync(self, value: Any) -> bool:
        self.kept.append(value)
        return bool(value.flags.writeable)

    async def sums(self) -> list[int]:
        return [int(value.sum()) for value in self.kept]

    async def forget(self) -> None:
        self.kept.clear()

    async def spoil(self, value: Any) -> int:
        value[:] = 0
        return int(value.sum())

    async def sum(self, value: Any, *, more: Any = None) -> int:
        return int(value.sum()) + (int(more.sum()) if more is not None else 0)

    async def give(self, seed: int, size: int = MB) -> Any:
        return array(seed, size)

    def give_sync(self, seed: int) -> Any:
        return array(seed)

    async def give_late(self, gate: Gate, seed: int) -> Any:
        await gate.passed()
        return array(seed)

    async def echo(self, value: Any) -> Any:
        return value

    async def items(self, count: int) -> Any:
        for seed in range(count):
            yield array(seed)

    def items_sync(self, count: int) -> Any:
        for seed in range(count):
            yield array(seed)

    async def mixed(self, count: int) -> Any:
        for seed in range(count):
            yield seed
            yield "small"
            yield array(seed)

    async def relay(self, other: serve.DeploymentHandle, method: str, count: int) -> Any:
        return getattr(other.options(stream=True), method).remote(count)  # passed on, unopened

    async def relay_twice(self, other: serve.DeploymentHandle, method: str, count: int) -> Any:
        return other.options(stream=True).relay.remote(other, method, count)

    async def pid(self) -> int:
        return os.getpid()

    async def lent(self) -> list[int]:
        return [pool.spent, pool.awaited()]

    async def give_and_die(self, gate: Gate, seed: int) -> Any:
        await gate.passed()
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return array(seed)
