"""Ingress: the deployment at the top gets the HTTP request; what it returns becomes the response.

python -m examples.key_concepts.ingress
curl -X GET http://127.0.0.1:8000/ -d '{"name": "Corey"}'
"""

from __future__ import annotations

from starlette.requests import Request

from skate import serve


@serve.deployment
class BasicIngress:
    async def __call__(self, request: Request) -> str:
        # Starlette's annotations, and so mypy, know only the longer way: (await request.json())["name"]
        name = await request.json()["name"]  # type: ignore[index]
        return f"Hello {name}"


app = BasicIngress.bind()

if __name__ == "__main__":
    serve.run(app, blocking=True)  # until Ctrl-C
