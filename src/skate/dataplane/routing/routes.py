"""Which application a path belongs to. Law: the longest prefix wins, and it ends at a "/" or at the path's end.

``/a`` takes ``/a``, ``/a/`` and ``/a/x``, never ``/ab``; ``/`` takes what nothing else took. The table is compiled
from the routes of a snapshot and never changes; a lookup walks the path from the front, one dictionary lookup for
each segment, and stops at the deepest prefix there is, so that a path of 100,000 slashes costs no more than another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from skate.core.specs import Route


class Mount(NamedTuple):
    """An application where HTTP finds it. ``prefix`` is as declared ("/" or "/a"), ``root_path`` as ASGI wants it."""

    app: str
    deployment_key: str
    prefix: str
    root_path: str  # what stands in front of the application's own paths, without a "/" at the end


class RouteTable:
    """The routes of one snapshot, ready for lookups."""

    __slots__ = ("_by_prefix", "_depth", "_longest", "_rest", "routes")

    def __init__(self, routes: Iterable[Route] = (), root_path: str = "") -> None:
        self.routes = tuple(routes)
        self._rest: Mount | None = None
        self._by_prefix: dict[str, Mount] = {}
        for route in self.routes:
            bare = route.prefix.rstrip("/")
            mount = Mount(route.app, f"{route.app}/{route.deployment}", bare or "/", root_path + bare)
            if bare:
                self._by_prefix[bare] = mount
            else:
                self._rest = mount
        self._depth = max((prefix.count("/") for prefix in self._by_prefix), default=0)
        self._longest = max(map(len, self._by_prefix), default=0)

    def match(self, path: str) -> Mount | None:
        """The application that a path (decoded, beginning with "/") belongs to; None: nobody's."""
        if not path.startswith("/"):
            return None  # "*" of OPTIONS and "" of CONNECT belong to the server itself
        best = self._rest
        end = 0
        for _ in range(self._depth):
            end = path.find("/", end + 1)
            if end < 0:
                return self._by_prefix.get(path, best)
            if end > self._longest:
                return best
            best = self._by_prefix.get(path[:end], best)
        return best

    def table(self) -> dict[str, str]:
        """Prefix to application, as ``/-/routes`` shows it."""
        return {route.prefix: route.app for route in self.routes}
