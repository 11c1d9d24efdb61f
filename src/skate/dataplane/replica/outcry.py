"""One word to the controller from a thread, while the loop of the process cannot speak.

Law: nothing of the process's loop is touched; a loop of its own, a connection of its own, both gone afterwards.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from skate.core.errors import CallTimeoutError, NotRunningError, RequestCancelledError, SkateError
from skate.core.specs import HealthReport
from skate.dataplane.transport.peers import connect

logger = logging.getLogger("skate.replica")

LIMIT_S = 2.0  # for the connection, and for the answer: who waits looks at nothing meanwhile


def cry_out(controller: str, name: str, report: HealthReport) -> bool:
    """Tells the controller at that address how this process is; False when it was not heard. Blocks the thread."""
    try:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:  # whatever policy the user has set
            runner.run(_tell(controller, name, msgspec.msgpack.encode(report)))
    except (CallTimeoutError, NotRunningError, RequestCancelledError, OSError) as error:
        logger.debug("%s could not tell its health: %s", name, error)
        return False
    except SkateError as error:  # an answer all the same
        logger.debug("the controller did not take the health of %s: %s", name, error)
    return True


async def _tell(controller: str, name: str, report: bytes) -> None:
    peer = await connect(controller, name, LIMIT_S)
    try:
        await peer.ask("report_health", report, LIMIT_S)
    finally:
        peer.close()
        await asyncio.sleep(0)  # one turn, for the connection to close
