"""Statuses as they change, for a command that waits: over as many controllers as it takes, until the instance is gone.

Law: one thread waits and shows; whoever watches only posts what came. Nothing is asked twice that is told anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skate.cli.inbox import Inbox
from skate.controlplane.instance import Instance
from skate.core.clock import Clock
from skate.core.errors import SkateError
from skate.core.specs import ServeStatus
from skate.engine.runtime_dir import running_pid

AGAIN_S = 0.2  # after the controller was lost
TRIES_MAX = 50


@dataclass(frozen=True)
class Seen:
    """The instance as it is. ``round``: that of the ``follow`` that saw it."""

    status: ServeStatus
    round: int = 0


@dataclass(frozen=True)
class Gone:
    """The instance has ended."""


async def follow(instance: Instance, inbox: Inbox[Any], clock: Clock, round: int = 0) -> None:
    """Posts every status from now on as ``Seen``, the last one wins; ``Gone`` at the end."""
    tries = 0
    while tries < TRIES_MAX:
        try:
            async for status in (await instance.client()).watch_status():
                tries = 0
                inbox.post(Seen(status, round), latest=True)
        except (SkateError, OSError):
            pass
        if running_pid(instance.runtime_dir) is None:
            break
        tries += 1
        await clock.sleep(AGAIN_S)
    inbox.post(Gone())
