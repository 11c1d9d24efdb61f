"""What all connections of one proxy share: routes, options, the clock's date, limits, and the way from request to call.

Law: one timer for all of them, coarse, and only while there are any. Whatever looks at time on a connection
reads ``tick``, the time of its last turn; a request itself starts no timer and asks no clock for its timeouts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from email.utils import formatdate

import msgspec

from skate.core.clock import Clock
from skate.core.errors import DeploymentUnavailableError, PayloadTooLargeError
from skate.core.specs import HttpOptions, Route
from skate.dataplane.proxy.address import is_local
from skate.dataplane.proxy.answers import JSON_TYPE, Answer, not_found, not_ready
from skate.dataplane.proxy.connection import ANSWER, BODY, HEAD, Connection
from skate.dataplane.proxy.heads import Heads
from skate.dataplane.proxy.http_call import HttpCall
from skate.dataplane.proxy.request import REQUEST_ID, Request
from skate.dataplane.proxy.websocket import SocketCall, offered, shake_hands
from skate.dataplane.router import Router
from skate.dataplane.routing.routes import Mount, RouteTable
from skate.dataplane.wire.head import HTTP, WEBSOCKET, CallHead, HttpHead, encode_http
from skate.observe.metrics import CONTENT_TYPE as METRICS_TYPE

logger = logging.getLogger("skate.proxy")

CONNECTIONS_MAX = 10_000  # open at once; idle ones count
SWEEP_S = 1.0  # at most this late is it noticed that something takes too long
SWEEP_MIN_S = 0.05
COMPLAIN_S = 10.0  # between two lines in the log about too many connections

NOT_READY = "No application has been deployed yet."
NOT_LOADED = "No replica is ready yet."
DRAINING = "This proxy is being stopped."
BUSY = "The metrics are being asked for too often."
NO_METRICS = "The controller of this instance is away; the metrics come back with it."
FULL = "This server has as many open connections as it can hold."

METRICS = "/-/metrics"
METRICS_MAX = 8  # questions for the metrics that one proxy has under way
FORWARDED = frozenset((b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip"))  # headers of proxies in front

_OWN = "/-/"
_NO_SUBPROTOCOLS: list[str] = []


class Front:
    """Serves the applications behind one Router over HTTP and WebSocket; its connections come from ``connect``."""

    def __init__(self, router: Router, options: HttpOptions, clock: Clock) -> None:
        self.router = router
        self.options = options
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.root_path = options.root_path.rstrip("/")
        self.table = RouteTable()
        self.heads = Heads()
        self.ready = False  # an application was there once; stays true while the last one is replaced
        self.loaded = False  # a replica of one was ready once
        self.draining = False
        self.connections: set[Connection] = set()
        self.sockets: set[SocketCall] = set()
        self.tick = clock.now()
        self.empty = asyncio.Event()  # set while there is no connection
        self.empty.set()
        self.metrics: Callable[[], Awaitable[bytes]] | None = None  # asks for them
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._date = b""
        self._date_until = -1.0
        self._complained_at = -COMPLAIN_S
        router.on_routes = self.set_routes
        self.set_routes(router.routes)

    def connect(self) -> Connection:
        """A protocol for a new connection."""
        return Connection(self)

    def set_routes(self, routes: tuple[Route, ...]) -> None:
        """Takes the routes of a snapshot."""
        self.table = RouteTable(routes, self.root_path)
        self.ready = self.ready or bool(routes)

    # -- from a request to a call ---------------------------------------------------------------

    def call(self, request: Request, connection: Connection) -> HttpCall | Answer | None:
        """The call that a request becomes, or what it is answered without one; None: that comes later."""
        mount = self.mount_of(request)
        if mount is None:
            path = self.local_path(request.path)
            if path == METRICS and self._shows_metrics(request, connection):
                return self._metrics_later(request, connection)
            return self._own_answer(path)
        deadline = request.deadline
        if deadline is None and request.timeout_s is not None:
            deadline = self.clock.now() + request.timeout_s
        head = self._head(HTTP, request, connection, mount, _NO_SUBPROTOCOLS)
        return HttpCall(mount.deployment_key, head, deadline, connection, request)

    def socket(self, request: Request, connection: Connection) -> SocketCall | Answer:
        """The same for a WebSocket. Raises HandshakeError."""
        mount = self.mount_of(request)
        if mount is None or self.draining:
            return self.no_answer(self.local_path(request.path))
        shaken = shake_hands(request)
        head = self._head(WEBSOCKET, request, connection, mount, offered(request))
        head.timeout_s, head.stream = None, True
        return SocketCall(mount.deployment_key, head, connection, request, shaken)

    def mount_of(self, request: Request) -> Mount | None:
        """The application that answers a request; None: the proxy itself does."""
        path = request.path
        if self.root_path:
            path = self.local_path(path)
        return None if path.startswith(_OWN) else self.table.match(path)

    def local_path(self, path: str) -> str:
        """The path without the root path that a front proxy may have left in it."""
        root = self.root_path
        if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
            return path[len(root) :] or "/"
        return path

    def _head(
        self, kind: int, request: Request, connection: Connection, mount: Mount, subprotocols: list[str]
    ) -> CallHead:
        headers = request.headers
        if not request.given:
            headers.append((REQUEST_ID, request.request_id.encode("ascii")))
        path, raw_path = request.path, request.raw_path
        if self.root_path:
            root = self.root_path.encode()
            path = self.root_path + self.local_path(path)
            raw_path = raw_path if raw_path.startswith(root) else root + raw_path
        http = HttpHead(
            request.method,
            "http",
            path,
            raw_path,
            request.query,
            mount.root_path,
            headers,
            connection.client,
            connection.server,
            request.version,
            subprotocols,
        )
        raw = encode_http(http)
        return CallHead(kind, "__call__", request.request_id, request.timeout_s, False, mount.app, mount.prefix, raw)

    # -- what the proxy says itself -------------------------------------------------------------

    def _own_answer(self, path: str) -> Answer:
        if path not in ("/-/healthz", "/-/routes") or self.draining or not self.ready:
            return self.no_answer(path)
        if path == "/-/healthz":
            return Answer(200, "success") if self._has_answered() else not_ready(NOT_LOADED)
        return Answer(200, msgspec.json.encode(self.table.table()).decode(), [JSON_TYPE])

    def _shows_metrics(self, request: Request, connection: Connection) -> bool:
        """Only this machine may see them, and only itself: not whom a proxy in front speaks for."""
        spoken_for = any(name in FORWARDED for name, _ in request.headers)
        whole = connection.phase == ANSWER and request.method in ("GET", "HEAD")
        return whole and not spoken_for and self.metrics is not None and is_local(connection.client)

    def _metrics_later(self, request: Request, connection: Connection) -> Answer | None:
        if self.draining or len(self._tasks) >= METRICS_MAX:
            return not_ready(DRAINING if self.draining else BUSY)
        task = self.loop.create_task(self._answer_metrics(request, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return None

    async def _answer_metrics(self, request: Request, connection: Connection) -> None:
        assert self.metrics is not None
        try:
            answer = Answer(200, (await self.metrics()).decode(), [(b"content-type", METRICS_TYPE.encode())])
        except Exception as error:
            logger.debug("the metrics cannot be had: %s", error)
            answer = not_ready(NO_METRICS)
        connection.say_later(answer, request)

    def _has_answered(self) -> bool:
        """Whether an application could be served once; from then on what waits for a replica is no fault of ours."""
        if not self.loaded:
            keys = [f"{route.app}/{route.deployment}" for route in self.router.routes]
            lanes = self.router.lanes
            self.loaded = any(key in lanes and (lanes[key].links or lanes[key].target.asleep) for key in keys)
        return self.loaded

    def no_answer(self, path: str) -> Answer:
        """Why nobody answers at this path."""
        if self.draining:
            return not_ready(DRAINING)
        return not_found(path, self.root_path) if self.ready else not_ready(NOT_READY)

    def too_large(self, size: int) -> PayloadTooLargeError:
        """The error of a body above the limit."""
        most = self.options.max_body_bytes
        return PayloadTooLargeError(
            f"the body has at least {size} bytes, this server takes at most {most}; "
            "send less, or raise max_body_bytes in its HTTP options"
        )

    def full_answer(self) -> bytes:
        """For a connection above the limit."""
        now = self.clock.now()
        if now - self._complained_at >= COMPLAIN_S:
            self._complained_at = now
            logger.warning("connections are refused: %d are open, which is the most", len(self.connections))
        return (
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\nretry-after: 1"
            b"\r\ncontent-length: %d%b\r\nconnection: close\r\n\r\n%b"
        ) % (len(FULL), self.date_line(now), FULL.encode())

    def date_line(self, now: float) -> bytes:
        """The Date header. ``now`` is the clock's; the text is made once a second."""
        if now >= self._date_until:
            wall = self.clock.wall()
            self._date = b"\r\ndate: " + formatdate(wall, usegmt=True).encode()
            self._date_until = now + 1.0 - wall % 1.0
        return self._date

    # -- connections ----------------------------------------------------------------------------

    def enter(self, connection: Connection) -> bool:
        """A connection was opened. False: it may not stay."""
        if len(self.connections) >= CONNECTIONS_MAX:
            return False
        if self._timer is None:
            self._turn()
        connection.since = self.tick
        self.connections.add(connection)
        self.empty.clear()
        return True

    def leave(self, connection: Connection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if not self.connections:
            self.empty.set()

    def _sweep(self) -> None:
        if not self.connections:
            self._timer = None
            return
        self._turn()
        for connection in list(self.connections):
            try:
                connection.look(self.tick)
            except Exception:
                logger.exception("looking after the connection from %s failed", connection.client)

    def _turn(self) -> None:
        self.tick = self.clock.now()
        pause_s = min(SWEEP_S, max(SWEEP_MIN_S, self.options.keep_alive_timeout_s / 4))
        self._timer = self.loop.call_later(pause_s, self._sweep)

    # -- the end --------------------------------------------------------------------------------

    @property
    def busy(self) -> int:
        """Connections on which something is under way."""
        return sum(HEAD <= connection.phase <= ANSWER for connection in self.connections) + len(self.sockets)

    def drain(self) -> None:
        """From now on each connection is closed with its next answer; WebSockets at once."""
        self.draining = True
        for socket in list(self.sockets):
            socket.fail(DeploymentUnavailableError(DRAINING))

    def close_idle(self) -> None:
        """Closes the connections on which nothing is under way."""
        for connection in list(self.connections):
            connection.drain()

    def cut(self) -> None:
        """Ends the requests that are still under way; their clients are told that the service is not available."""
        for connection in list(self.connections):
            if connection.call is not None:
                connection.call.fail(DeploymentUnavailableError(DRAINING))
            elif connection.phase in (HEAD, BODY):
                connection.transport.abort()

    def close(self) -> None:
        """Cuts whatever connection there is."""
        for connection in list(self.connections):
            connection.transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._tasks:
            task.cancel()
