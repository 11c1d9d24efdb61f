"""What the machine itself can do: a byte there and back between two processes that have nothing of Skate in them.

Others may use the machine while a soak runs. When this slows down, everything does, and latency says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

BEATS = 5  # there and back, for one beat of the pulse
ECHO = "import os\nwhile data := os.read(0, 1): os.write(1, data)"


class Pulse:
    """An echo process and the way to it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def beat(self) -> None:
        """Some round trips, and some work in this loop."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        for _ in range(BEATS):
            process.stdin.write(b"x")
            await process.stdout.readexactly(1)
            sum(range(5000))
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def pulse() -> AsyncIterator[Pulse]:
    """The echo process lives as long as the block."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", ECHO, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    try:
        yield Pulse(process)
    finally:
        process.stdin.close()
        await process.wait()
