"""What a process says of itself reaches a controller that was away, however long."""

from __future__ import annotations

import asyncio

import msgspec

from skate.core.clock import SystemClock
from skate.dataplane.router import Router
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.peers import listen
from skate.dataplane.uplink import Uplink
from tests.router.test_router import LIMIT_S, until

ADDRESS = "memory:reports"


def test_what_was_told_to_nobody_is_told_to_the_next_controller_and_the_latest_word_is_the_last() -> None:
    heard: list[str] = []

    def accept(exchange: Exchange) -> None:
        if exchange.head.method == "phase":
            heard.append(msgspec.msgpack.decode(exchange.body, type=str))
            exchange.reply(b"")

    async def main() -> None:
        router = Router("driver", SystemClock())
        uplink = Uplink(ADDRESS, "driver", router, SystemClock())
        uplink.start()
        await uplink.told("phase", "loading", 0.001)
        await uplink.told("phase", "ready", 0.001)  # the controller is away for longer than anybody waits
        last = asyncio.create_task(uplink.told("phase", "ready"))
        await asyncio.sleep(0)
        uplink.report("phase", "draining")
        listener = await listen(ADDRESS, accept, "controller")
        await last
        await until(lambda: heard)
        assert set(heard) == {"draining"}
        await router.close()
        await uplink.close()
        await listener.close()

    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await main()

    asyncio.run(limited())
