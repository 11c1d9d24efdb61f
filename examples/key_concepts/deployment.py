"""Deployment: a class, decorated; its constructor arguments, bound; and a call through the handle.

python -m examples.key_concepts.deployment
"""

from __future__ import annotations

from starlette.requests import Request

from skate import serve


@serve.deployment
class Greeter:
    def __init__(self, message: str) -> None:
        self.message = message

    def __call__(self, request: Request) -> str:
        return self.message


app = Greeter.bind("Hello world!")  # nothing runs yet: the constructor is called in the replica

if __name__ == "__main__":
    handle = serve.run(app)
    print(handle.remote().result())  # Hello world!
