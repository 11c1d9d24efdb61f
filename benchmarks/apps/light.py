"""A light application as a user writes it: ``python light.py PORT``. Its start is measured, then its idleness.

It prints the monotonic time of the first answer of its handle and lives until its stdin closes. It stands in a folder
of its own and imports nothing of the benchmarks: what it costs is what Skate costs.
"""

import sys
import time

from starlette.requests import Request

from skate import serve


@serve.deployment
class Light:
    async def __call__(self, request: Request) -> str:
        return "Hello, world!"

    async def name(self) -> str:
        return "light"


if __name__ == "__main__":
    serve.start(http_options={"port": int(sys.argv[1])})
    handle = serve.run(Light.bind())
    answer = handle.name.remote().result()
    print(answer, time.monotonic(), flush=True)
    sys.stdin.read()
    serve.shutdown()
