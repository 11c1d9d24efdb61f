"""Tells running replicas a new configuration. Law: what a replica runs with is what it reports; this only carries the
wish, once at a time for each, and whoever was not reached is asked for again by the next decision.
"""

from __future__ import annotations

import logging

import msgspec

from skate.controlplane.broadcast import Tasks
from skate.controlplane.decide.publish import address_of
from skate.controlplane.decide.values import Reconfigure
from skate.controlplane.state import State
from skate.core.errors import SkateError
from skate.core.specs import Reconfiguration
from skate.dataplane.transport.peers import connect

logger = logging.getLogger("skate.controller")

TELL_MAX_S = 3600.0  # the user's reconfigure() may load a model; this only bounds a hang
TELL_AGAIN_S = 0.2  # after a replica could not be reached

_encode = msgspec.msgpack.Encoder().encode


class Tellings:
    """The configurations that are on their way."""

    def __init__(self, state: State, place: str, tasks: Tasks) -> None:
        self._state = state
        self._place = place
        self._tasks = tasks

    def begin(self, action: Reconfigure) -> None:
        """Tells one replica what is wanted now; returns at once."""
        spec = self._state.desired.wanted[action.key].spec
        self._state.sightings.telling(action.id, spec.config)
        self._tasks.start(self._tell(action.id, Reconfiguration(spec.config, spec.options)))

    async def _tell(self, id: str, wish: Reconfiguration) -> None:
        try:
            peer = await connect(address_of(id, self._place), "controller")
            try:
                await peer.ask("reconfigure", _encode(wish), TELL_MAX_S)
            finally:
                peer.close()
        except (SkateError, OSError) as error:
            logger.debug("replica %s was not reconfigured: %s", id, error)
            await self._state.clock.sleep(TELL_AGAIN_S)
        finally:
            self._state.sightings.told(id, wish.config)
            self._state.touch()
