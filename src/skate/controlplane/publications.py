"""What routers are sent: everything at first, then what changed since they were last told.

Law: keyed, the last one wins; whoever is slow gets fewer and larger changes. What many ask for is encoded once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import msgspec

from skate.controlplane.broadcast import Signal
from skate.controlplane.decide.publish import Published
from skate.core.specs import DeploymentTarget, Route, Snapshot

CHANGES_MAX = 256  # that are remembered; whoever is further behind gets everything
ENCODED_MAX = 16  # messages kept for others who ask for the same

_encode = msgspec.msgpack.Encoder().encode


class Publications:
    """The published state and its latest changes."""

    def __init__(self) -> None:
        self.state = Published()
        self.signal = Signal()  # its count is the generation
        self._changes: deque[tuple[frozenset[str], bool]] = deque(maxlen=CHANGES_MAX)  # keys, and whether the routes
        self._encoded: dict[tuple[int, int], bytes] = {}

    @property
    def generation(self) -> int:
        """How often the state has changed; 0: nothing was published yet."""
        return self.signal.count

    def put(self, news: Mapping[str, DeploymentTarget | None], routes: tuple[Route, ...]) -> None:
        """These deployments are so now (None: gone), whatever they were."""
        before = self.state
        changed = frozenset(key for key, target in news.items() if before.deployments.get(key) != target)
        if not changed and routes == before.routes and self.generation:
            return
        deployments = before.deployments
        if changed:
            latest = {**deployments, **{key: news[key] for key in changed}}
            deployments = {key: target for key, target in latest.items() if target is not None}
        self.state = Published(deployments, routes)
        self._changes.append((changed, routes != before.routes))
        self._encoded.clear()
        self.signal.bump()

    def since(self, generation: int) -> bytes | None:
        """A Snapshot of what changed after that generation (0: everything), encoded; None when nothing did."""
        behind = self.generation - generation
        if behind <= 0:
            return None
        known = self._encoded.get((generation, self.generation))
        if known is None:
            whole = generation == 0 or behind > len(self._changes)
            known = _encode(self._whole() if whole else self._delta(behind))
            if len(self._encoded) < ENCODED_MAX:
                self._encoded[generation, self.generation] = known
        return known

    def _whole(self) -> Snapshot:
        return Snapshot(self.generation, True, dict(self.state.deployments), self.state.routes)

    def _delta(self, behind: int) -> Snapshot:
        recent = list(self._changes)[-behind:]
        keys = frozenset[str]().union(*(keys for keys, _ in recent))
        routes = self.state.routes if any(changed for _, changed in recent) else None
        return Snapshot(self.generation, False, {key: self.state.deployments.get(key) for key in keys}, routes)
