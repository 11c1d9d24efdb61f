"""The peer of the HTTP figures: uvicorn with uvloop and httptools, one worker, one Starlette route, no access log.

``python -m benchmarks.peers.hello PORT``
"""

from __future__ import annotations

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from benchmarks.processes import HOST, end_with_stdin


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("Hello, world!")


if __name__ == "__main__":
    end_with_stdin()
    app = Starlette(routes=[Route("/", hello)])
    uvicorn.run(
        app, host=HOST, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )
