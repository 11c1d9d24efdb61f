"""BentoML: ``python -m benchmarks.peers.bentoml_server PORT APP`` starts its own command, ``bentoml serve``.

One worker for the plain handlers, four for the model; no access log, no metrics. Its APIs are POST with JSON. The
annotations of the APIs are read at run time: no postponed ones in this file.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType

from benchmarks.peers.program import CHUNK, CHUNKS, HELLO, HOST, REPLICAS, SLEEP_S

QUIET: dict[str, Any] = {
    "traffic": {"timeout": 60},
    "logging": {"access": {"enabled": False}},
    "metrics": {"enabled": False},
}


@bentoml.service(workers=1, **QUIET)
class Http:
    @bentoml.api(route="/hello")
    async def hello(self) -> str:
        return HELLO

    @bentoml.api(route="/json")
    async def json(self, value: dict[str, Any]) -> dict[str, Any]:
        return value

    @bentoml.api(route="/length")
    async def length(self, data: Annotated[bytes, ContentType("application/octet-stream")], /) -> str:
        return str(len(data))

    @bentoml.api(route="/stream")
    async def stream(self) -> AsyncIterator[str]:
        for _ in range(CHUNKS):
            yield CHUNK.decode()


@bentoml.service(workers=REPLICAS, threads=1, **QUIET)
class Models:
    @bentoml.api(route="/sleep")
    def sleep(self) -> str:
        time.sleep(SLEEP_S)
        return HELLO

    @bentoml.api(route="/async_sleep")
    async def async_sleep(self) -> str:
        await asyncio.sleep(SLEEP_S)
        return HELLO


def main() -> None:
    port, app = sys.argv[1:]
    service = "Models" if app == "models" else "Http"
    command = [str(Path(sys.executable).parent / "bentoml"), "serve"]
    command += [f"benchmarks.peers.bentoml_server:{service}", "--host", HOST, "--port", port]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as served:
        while os.read(0, 4096):
            pass
        served.terminate()


if __name__ == "__main__":
    main()
