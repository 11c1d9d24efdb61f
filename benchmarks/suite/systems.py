"""Who is measured: every system, where it lives and what it is asked. Law: values only; nothing starts here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import msgspec

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENTS = ROOT / ".venv-peers"
REQUIREMENTS = ROOT / "benchmarks" / "peers"

Body = Literal["", "json", "bytes"]


class Request(msgspec.Struct, frozen=True):
    """One request of a load."""

    path: str
    method: str = "GET"
    kind: str = ""  # the content type
    body: bytes = b""


class System(msgspec.Struct, frozen=True):
    """One system under test. ``name`` is its column, ``package`` what its version is read from."""

    name: str
    module: str  # below benchmarks.peers
    package: str
    venv: str = ""  # empty: Skate's own
    environment: dict[str, str] = {}  # {home}: a folder of its own, which goes with the run
    apps: tuple[str, ...] = ()  # what it can serve
    deploys: bool = False  # applications come and go while it runs; else it is started once for each
    pauses: bool = False  # is busy while nobody asks: stopped while others are measured
    posts: bool = False  # answers POST with JSON only
    wraps: bool = False  # wants its JSON as the value of a name
    start_max_s: float = 30.0
    lacks: dict[str, str] = {}  # why a work is not done, by path
    quick_apps: tuple[str, ...] = ()  # what it serves in a quick run, if less

    def request(self, path: str, body: Body = "", size: int = 0) -> Request:
        """The request of a work, as this system wants it."""
        if body == "json":
            document = document_of(size)
            return Request(path, "POST", "application/json", self._wrapped(document))
        if body == "bytes":
            return Request(path, "POST", "application/octet-stream", bytes(size))
        return Request(path, "POST", "application/json", b"{}") if self.posts else Request(path)

    def _wrapped(self, document: bytes) -> bytes:
        return b'{"value":' + document + b"}" if self.wraps else document


def document_of(size: int) -> bytes:
    """A JSON object of about so many bytes, as a client of a model sends: names, numbers, a text."""
    head = {"id": 1234567, "model": "resnet", "threshold": 0.75, "labels": ["cat", "dog", "bird"], "features": []}
    features: list[float] = []
    while len(json.dumps({**head, "features": features})) < size - 8:
        features.append(round(0.125 * (len(features) % 80), 3))
    return json.dumps({**head, "features": features}).encode()


WHOLE = ("hello", "http", "models", "streams", "fastapi", "handles", "fairness", "big", "scale")
NO_WEBSOCKET = {"/ws/echo": "it has no WebSockets"}
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "600",  # it pauses while others are measured
    "RAY_health_check_timeout_ms": "600000",
    "RAY_TMPDIR": "{home}",
}
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "{home}/haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "{home}/admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "{home}/metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "{home}",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "{home}/server-state",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # only for who waits for the end of an application
}

SKATE = System("Skate", "skate_serve", "skate", apps=WHOLE, deploys=True)
RAY_SERVE = System(
    "Ray Serve",
    "ray_serve",
    "ray",
    "ray",
    RAY,
    WHOLE,
    deploys=True,
    pauses=True,
    start_max_s=180.0,
    quick_apps=("hello", "http", "fastapi", "handles"),
)
PEERS = (
    RAY_SERVE,
    msgspec.structs.replace(
        RAY_SERVE, name="Ray Serve, HAProxy", environment={**RAY, **HAPROXY}, quick_apps=("hello", "http")
    ),
    System(
        "Mosec",
        "mosec_server",
        "mosec",
        "mosec",
        apps=("hello", "http", "models"),
        posts=True,
        lacks={"/async_sleep": "its workers are synchronous"},
    ),
    System(
        "LitServe",
        "litserve_server",
        "litserve",
        "litserve",
        apps=("hello", "http", "models", "streams"),
        posts=True,
        lacks=NO_WEBSOCKET,
    ),
    System(
        "BentoML",
        "bentoml_server",
        "bentoml",
        "bentoml",
        apps=("hello", "http", "models", "streams"),
        posts=True,
        wraps=True,
        start_max_s=60.0,
        lacks={"/ws/echo": "only an ASGI application mounted beside its APIs has WebSockets"},
    ),
    System(
        "uvicorn + Starlette",
        "asgi",
        "starlette",
        "uvicorn",
        {"BENCHMARK_ASGI": "starlette"},
        apps=("hello", "http", "streams", "big"),
    ),
    System(
        "uvicorn + FastAPI",
        "asgi",
        "fastapi",
        "uvicorn",
        {"BENCHMARK_ASGI": "fastapi"},
        apps=("hello", "http", "streams", "fastapi"),
    ),
    System("grpc.aio", "grpc_aio", "grpcio", "grpc", apps=("handles",)),
    System("the limit", "limit", "httptools", apps=("hello", "http", "streams"), lacks=NO_WEBSOCKET),
)
ALL = (SKATE, *PEERS)
