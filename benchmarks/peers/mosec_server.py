"""Mosec: ``python -m benchmarks.peers.mosec_server PORT APP``. Its front is Rust, its workers are synchronous.

One worker per plain handler, four for the model, no batching; answers leave as they are (text) where the work is text.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from mosec import Runtime, Server, Worker

from benchmarks.peers.program import HELLO, HOST, REPLICAS, SLEEP_S, end_with_stdin, told

LARGEST = 32 * 1024 * 1024


class Plain(Worker):
    """Bytes in, text out."""

    resp_mime_type = "text/plain"

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: str) -> bytes:
        return data.encode()


class Hello(Plain):
    def forward(self, data: bytes) -> str:
        return HELLO


class Length(Plain):
    def forward(self, data: bytes) -> str:
        return str(len(data))


class Sleep(Plain):
    def forward(self, data: bytes) -> str:
        time.sleep(SLEEP_S)
        return HELLO


class Json(Worker):
    def deserialize(self, data: bytes) -> Any:
        return json.loads(data)

    def serialize(self, data: Any) -> bytes:
        return json.dumps(data).encode()

    def forward(self, data: Any) -> Any:
        return data


APPS: dict[str, dict[str, Runtime]] = {
    "hello": {"/hello": Runtime(Hello, num=1)},
    "http": {"/hello": Runtime(Hello, num=1), "/json": Runtime(Json, num=1), "/length": Runtime(Length, num=1)},
    "models": {"/sleep": Runtime(Sleep, num=REPLICAS)},
}

if __name__ == "__main__":
    port, app = told()
    end_with_stdin()
    sys.argv[1:] = ["--address", HOST, "--port", str(port), "--log-level", "error"]
    sys.argv += ["--max-request-size", str(LARGEST), "--timeout", "20000"]
    server = Server()
    server.register_runtime({route: [runtime] for route, runtime in APPS[app].items()})
    server.run()
