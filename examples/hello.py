"""The smallest application: one function behind HTTP.

skate run examples.hello:app
curl http://127.0.0.1:8000/?name=Ada
"""

from __future__ import annotations

from starlette.requests import Request

from skate import serve


@serve.deployment
def hello(request: Request) -> str:
    return f"Hello {request.query_params.get('name', 'world')}!"


app = hello.bind()
