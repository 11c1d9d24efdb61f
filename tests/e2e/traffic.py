"""Clients that never stop, by HTTP and by handle, and what became of each of their requests."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from starlette.requests import Request

from skate import serve
from tests.e2e.world import client, until

CLIENTS = 4


class Traffic:
    """What happened to the requests of some clients, by HTTP and by handle."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, word: str) -> None:
        with self._lock:
            self.seen[word] += 1

    def by_http(self, url: str) -> None:
        with client(url) as http:
            while not self.over.is_set():
                try:
                    answer = http.get("/a1")
                    self.note(answer.text if answer.status_code == 200 else f"{answer.status_code} {answer.text}")
                except httpx.TransportError as error:
                    self.note(repr(error))

    def by_handle(self, handle: Any) -> None:
        while not self.over.is_set():
            try:
                self.note(handle.remote(None).result(timeout_s=10))
            except Exception as error:
                self.note(f"{type(error).__name__} {error}")

    def grows(self, by: int) -> None:
        goal = self.seen.total() + by
        until(lambda: self.seen.total() >= goal)

    def bad(self, *good: str) -> list[str]:
        return [word for word in self.seen if word not in good]


@contextmanager
def traffic(url: str, handle: Any) -> Iterator[Traffic]:
    made = Traffic()
    threads = [threading.Thread(target=made.by_http, args=(url,)) for _ in range(CLIENTS)]
    threads.append(threading.Thread(target=made.by_handle, args=(handle,)))
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        made.over.set()
        for thread in threads:
            thread.join(15)


def version(word: str, **options: Any) -> Any:
    @serve.deployment(name="Version", **options)
    class Version:
        async def __call__(self, request: Request) -> str:
            await asyncio.sleep(0.002)
            return word

    return Version.bind()


def ready() -> list[int]:
    """The pids of the replicas that serve."""
    replicas = serve.status().applications["a1"].deployments["Version"].replicas
    return [replica.pid for replica in replicas if replica.phase == "ready"]
