"""LitServe: ``python -m benchmarks.peers.litserve_server PORT APP``.

One worker per plain handler, four for the model, one API server process, the fast queue (ZeroMQ) that its makers advise
under load. The annotations of ``decode_request`` are read at run time: no postponed ones in this file.
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Annotated, Any

import litserve as ls
from fastapi import Body
from starlette.responses import JSONResponse, PlainTextResponse

from benchmarks.peers.program import CHUNK, CHUNKS, HELLO, HOST, REPLICAS, SLEEP_S, end_with_stdin, told

LARGEST = 64 * 1024 * 1024  # bytes of a body


class Plain(ls.LitAPI):
    """Text out."""

    def setup(self, device: Any) -> None:
        pass

    def decode_request(self, request: dict) -> Any:
        return request

    def encode_response(self, output: Any) -> Any:
        return PlainTextResponse(output)


class Hello(Plain):
    def predict(self, value: Any) -> str:
        return HELLO


class Sleep(Plain):
    def predict(self, value: Any) -> str:
        time.sleep(SLEEP_S)
        return HELLO


class AsyncSleep(ls.LitAPI):
    def setup(self, device: Any) -> None:
        pass

    async def decode_request(self, request: dict) -> Any:
        return request

    async def predict(self, value: Any) -> str:
        await asyncio.sleep(SLEEP_S)
        return HELLO

    async def encode_response(self, output: Any) -> Any:
        return PlainTextResponse(output)


class Json(Plain):
    def predict(self, value: Any) -> Any:
        return value

    def encode_response(self, output: Any) -> Any:
        return JSONResponse(output)


class Length(Plain):
    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Any:
        return request

    def predict(self, value: bytes) -> str:
        return str(len(value))


class Stream(ls.LitAPI):
    def setup(self, device: Any) -> None:
        pass

    def decode_request(self, request: dict) -> Any:
        return request

    def predict(self, value: Any) -> Iterator[str]:
        for _ in range(CHUNKS):
            yield CHUNK.decode()

    def encode_response(self, output: Any):  # LitServe would make the annotation a FastAPI response type
        yield from output


def apis(app: str) -> tuple[list[ls.LitAPI], int]:
    """What is served, and the workers of each."""
    if app == "hello":
        return [Hello(api_path="/hello")], 1
    if app == "http":
        return [Hello(api_path="/hello"), Json(api_path="/json"), Length(api_path="/length")], 1
    if app == "models":
        return [Sleep(api_path="/sleep"), AsyncSleep(api_path="/async_sleep", enable_async=True)], REPLICAS
    return [Stream(api_path="/stream", stream=True)], 1


if __name__ == "__main__":
    port, app = told()
    end_with_stdin()
    served, workers = apis(app)
    server = ls.LitServer(
        served, accelerator="cpu", workers_per_device=workers, fast_queue=True, max_payload_size=LARGEST, timeout=60
    )
    server.run(host=HOST, port=port, num_api_servers=1, log_level="error", generate_client_file=False)
