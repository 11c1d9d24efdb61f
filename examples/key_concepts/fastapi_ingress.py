"""FastAPI ingress: routes, typed parameters and documentation pages, on methods of a deployment.

python -m examples.key_concepts.fastapi_ingress
curl http://127.0.0.1:8000/Corey        (and http://127.0.0.1:8000/docs in a browser)
"""

from __future__ import annotations

from fastapi import FastAPI

from skate import serve

api = FastAPI()


@serve.deployment
@serve.ingress(api)
class Greeter:
    @api.get("/{name}")
    async def say_hi(self, name: str) -> str:
        return f"Hello {name}"


app = Greeter.bind()

if __name__ == "__main__":
    serve.run(app, blocking=True)  # until Ctrl-C
