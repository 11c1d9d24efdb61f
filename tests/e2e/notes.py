"""How a handler in another process tells a test how far it is, and waits for the test's word: by files."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

POLL_S = 0.002
LIMIT_S = 20.0  # a handler that nobody frees any more ends by itself


class Notes:
    """Words in the order in which they were written, from any number of processes."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def add(self, word: object) -> None:
        with open(self.path, "ab", buffering=0) as file:
            file.write(f"{word}\n".encode())

    def read(self) -> list[str]:
        try:
            return Path(self.path).read_text().splitlines()
        except FileNotFoundError:
            return []

    def has(self, word: object, times: int = 1) -> bool:
        return self.read().count(str(word)) >= times


class Gate:
    """Shut until the test opens it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def open(self) -> None:
        Path(self.path).touch()

    def is_open(self) -> bool:
        return os.path.exists(self.path)

    def shut(self) -> None:
        os.unlink(self.path)

    async def passed(self) -> None:
        end = time.monotonic() + LIMIT_S
        while not os.path.exists(self.path) and time.monotonic() < end:
            await asyncio.sleep(POLL_S)

    def wait(self) -> None:
        end = time.monotonic() + LIMIT_S
        while not os.path.exists(self.path) and time.monotonic() < end:
            time.sleep(POLL_S)
