"""HTTP to a plain handler: what it is given, what becomes of what it returns, how requests find it."""

from __future__ import annotations

import http.client
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response

from skate import serve
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate, Notes
from tests.e2e.world import Instance, client, until

PRELOAD = ("fastapi", "numpy")


@dataclass
class Point:
    x: int
    y: float


def returned(name: str) -> Any:
    from pydantic import BaseModel

    class Fruit(BaseModel):
        name: str
        price: float

    return {
        "none": None,
        "text": "plain",
        "umlaut": "Grüße",
        "empty": "",
        "bytes": b"\x00\xff",
        "dict": {"a": [1, 2.5, None]},
        "list": [1, "two"],
        "tuple": (1, 2),
        "true": True,
        "int": 7,
        "model": Fruit(name="pear", price=4),
        "dataclass": Point(1, 2.0),
        "array": np.arange(3),
        "scalar": np.float32(0.5),
        "mixed": {"a": np.ones((1, 2)), "b": b"raw"},
        "error": [ValueError("wrong")],
        "html": HTMLResponse("<b>hi</b>", status_code=201),
        "json": JSONResponse({"a": 1}, headers={"x-own": "yes"}),
        "teapot": PlainTextResponse("short and stout", status_code=418),
        "redirect": RedirectResponse("/elsewhere"),
        "nothing": Response(status_code=204),
    }[name]


RETURNED = [
    ("none", 200, "text/plain", b""),
    ("text", 200, "text/plain; charset=utf-8", b"plain"),
    ("umlaut", 200, "text/plain; charset=utf-8", "Grüße".encode()),
    ("empty", 200, "text/plain; charset=utf-8", b""),
    ("bytes", 200, "text/plain", b"\x00\xff"),
    ("dict", 200, "application/json", b'{"a":[1,2.5,null]}'),
    ("list", 200, "application/json", b'[1,"two"]'),
    ("tuple", 200, "application/json", b"[1,2]"),
    ("true", 200, "application/json", b"true"),
    ("int", 200, "application/json", b"7"),
    ("model", 200, "application/json", b'{"name":"pear","price":4.0}'),
    ("dataclass", 200, "application/json", b'{"x":1,"y":2.0}'),
    ("array", 200, "application/json", b"[0,1,2]"),
    ("scalar", 200, "application/json", b"0.5"),
    ("mixed", 200, "application/json", b'{"a":[[1.0,1.0]],"b":"raw"}'),
    ("error", 200, "application/json", b'["wrong"]'),
    ("html", 201, "text/html; charset=utf-8", b"<b>hi</b>"),
    ("json", 200, "application/json", b'{"a":1}'),
    ("teapot", 418, "text/plain; charset=utf-8", b"short and stout"),
    ("redirect", 307, None, b""),
    ("nothing", 204, None, b""),
]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_return_values(deploy: Deploy, http: httpx.Client, kind: str) -> None:
    @serve.deployment
    def plain(request: Request) -> Any:
        return returned(request.query_params["name"])

    @serve.deployment
    async def asynchronous(request: Request) -> Any:
        return returned(request.query_params["name"])

    deploy((plain if kind == "def" else asynchronous).bind())
    for name, status, content_type, body in RETURNED:
        answer = http.get("/a1", params={"name": name})
        seen = (name, answer.status_code, answer.headers.get("content-type"), answer.content)
        assert seen == (name, status, content_type, body)
        assert status == 204 or answer.headers["content-length"] == str(len(body))
    assert http.get("/a1?name=json").headers["x-own"] == "yes"
    assert http.get("/a1?name=redirect").headers["location"] == "/elsewhere"


def test_query_params_are_an_object(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    class Echo:
        def __call__(self, request: Request) -> Any:
            return request.query_params

    deploy(Echo.bind())
    assert http.get("/a1?a=b&c=d").json() == {"a": "b", "c": "d"}


def test_a_function_without_parameters_answers_http(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    def one() -> int:
        return 1

    handle = deploy(one.bind())
    assert http.get("/a1").text == "1"
    assert handle.remote().result() == 1
    with pytest.raises(TypeError, match="0 positional arguments but 1"):
        handle.remote(5).result()


def test_a_method_without_parameters_answers_http(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    class One:
        async def __call__(self) -> str:
            return "one"

    deploy(One.bind())
    assert http.get("/a1").text == "one"


def test_a_call_with_nothing_gets_an_empty_request(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    class Hello:
        def __init__(self, message: str) -> None:
            self.message = message

        async def __call__(self, request: Request) -> str:
            return f"{self.message} {request.method} {request.url.path} {await request.body()!r}"

    handle = deploy(Hello.bind("Hello world!"))
    assert handle.remote().result() == "Hello world! GET / b''"
    assert http.get("/a1").text == "Hello world! GET /a1 b''"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_both_spellings_of_json(deploy: Deploy, http: httpx.Client, method: str) -> None:
    @serve.deployment
    class Both:
        async def __call__(self, request: Request) -> str:
            first = await request.json()["name"]  # type: ignore[index]
            return f"{request.method} {first} {(await request.json())['name']}"

    deploy(Both.bind())
    assert http.request(method, "/a1", json={"name": "Corey"}).text == f"{method} Corey Corey"


def test_the_request_is_starlettes(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    async def look(request: Request) -> Any:
        assert isinstance(request, Request)
        form = await request.form()
        return {
            "path": request.url.path,
            "root": request.scope["root_path"],
            "host": request.headers["host"],
            "cookies": request.cookies,
            "client": request.client is not None and request.client.host,
            "form": dict(form),
            "raw": request.scope["raw_path"].decode(),
        }

    deploy(look.bind(), route_prefix="/deep/er")
    answer = http.post("/deep/er/x%20y?q=1", data={"a": "1"}, headers={"cookie": "k=v"}).json()
    assert answer == {
        "path": "/deep/er/x y",
        "root": "/deep/er",
        "host": http.base_url.netloc.decode(),
        "cookies": {"k": "v"},
        "client": "127.0.0.1",
        "form": {"a": "1"},
        "raw": "/deep/er/x%20y",
    }


def test_large_bodies_both_ways(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    async def echo(request: Request) -> bytes:
        return await request.body()

    deploy(echo.bind())
    body = bytes(range(256)) * 40_000  # 10 MB
    assert http.post("/a1", content=body).content == body
    assert http.post("/a1", content=iter([body[:100], body[100:200_000], b"end"])).content == body[:200_000] + b"end"
    assert http.post("/a1", content=b"").content == b""


def test_a_body_is_read_as_it_comes(deploy: Deploy, instance: Instance, notes: Notes) -> None:
    @serve.deployment
    async def count(request: Request) -> Any:
        sizes = 0
        async for chunk in request.stream():
            sizes += len(chunk)
            notes.add(sizes)
        return sizes

    deploy(count.bind())

    def pieces() -> Any:
        yield b"a" * 1000
        until(lambda: notes.has(1000))  # it is there before the rest is sent
        yield b"b" * 500

    with client(instance.url) as own:
        assert own.post("/a1", content=pieces()).json() == 1500


def test_head_has_no_body(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    def hi(request: Request) -> str:
        return "hi"

    deploy(hi.bind())
    answer = http.head("/a1")
    assert (answer.status_code, answer.content) == (200, b"")


# -- routing ----------------------------------------------------------------------------------------


def echo_of(word: str) -> Any:
    @serve.deployment(name="Echo")
    def echo(request: Request) -> str:
        return f"{word} {request.url.path}"

    return echo.bind()


def test_the_longest_prefix_on_a_segment_boundary_wins(deploy: Deploy, http: httpx.Client) -> None:
    deploy(echo_of("a"), "a", "/a")
    deploy(echo_of("ab"), "ab", "/a/b")
    assert [http.get(path).text for path in ("/a", "/a/", "/a/x", "/a/b", "/a/b/c", "/a/bc")] == [
        "a /a",
        "a /a/",
        "a /a/x",
        "ab /a/b",
        "ab /a/b/c",
        "a /a/bc",
    ]
    missed = http.get("/ab")
    assert missed.status_code == 404
    assert "'/ab'" in missed.text and "/-/routes" in missed.text
    assert missed.headers["x-request-id"]
    deploy(echo_of("rest"), "rest", "/")
    assert [http.get(path).text for path in ("/ab", "/", "/a")] == ["rest /ab", "rest /", "a /a"]
    assert http.get("/-/routes").json() == {"/": "rest", "/a": "a", "/a/b": "ab"}
    assert (http.get("/-/healthz").status_code, http.get("/-/healthz").text) == (200, "success")
    assert http.get("/-/nothing").status_code == 404


def test_an_application_without_a_prefix_has_no_http(deploy: Deploy, http: httpx.Client) -> None:
    handle = deploy(echo_of("quiet"), route_prefix=None)
    assert http.get("/-/routes").json() == {}
    assert http.get("/a1").status_code == 404
    assert handle.app_name == "a1"
    assert serve.status().applications["a1"].route_prefix is None


def test_a_new_prefix_replaces_the_old_one_and_a_deleted_one_is_gone(deploy: Deploy, http: httpx.Client) -> None:
    deploy(echo_of("one"), "moving", "/one")
    deploy(echo_of("one"), "moving", "/two")
    assert (http.get("/one").status_code, http.get("/two").text) == (404, "one /two")
    serve.delete("moving")
    assert http.get("/two").status_code == 404
    assert http.get("/-/healthz").status_code == 200  # an application was there once


def test_a_prefix_belongs_to_one_application(deploy: Deploy, http: httpx.Client) -> None:
    deploy(echo_of("first"), "first", "/same")
    with pytest.raises(Exception, match=r"/same.*first"):
        deploy(echo_of("second"), "second", "/same")
    assert http.get("/same").text == "first /same"
    assert set(serve.status().applications) == {"first"}


# -- the request id ---------------------------------------------------------------------------------


def test_the_request_id_is_taken_given_and_inherited(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    class Child:
        def sync(self) -> str:
            return serve.get_request_context().request_id

        async def __call__(self) -> str:
            return serve.get_request_context().request_id

    @serve.deployment
    class Parent:
        def __init__(self, child: Any) -> None:
            self.child = child

        async def __call__(self, request: Request) -> Any:
            here = serve.get_request_context()
            children = [await self.child.remote(), await self.child.sync.remote()]
            return [here.request_id, *children, here.route, here.app, here.deployment]

    deploy(Parent.bind(Child.bind()))
    answer = http.get("/a1", headers={"X-Request-Id": "mine-1"})
    assert answer.json() == ["mine-1"] * 3 + ["/a1", "a1", "Parent"]
    assert answer.headers["x-request-id"] == "mine-1"
    given = [http.get("/a1") for _ in range(2)]
    for answer in given:
        assert set(answer.json()[:3]) == {answer.headers["x-request-id"]}
    assert given[0].headers["x-request-id"] != given[1].headers["x-request-id"]


def test_two_requests_of_one_id_do_not_mix(deploy: Deploy, instance: Instance, gate: Gate, notes: Notes) -> None:
    @serve.deployment
    async def echo(request: Request) -> str:
        notes.add("here")
        await gate.passed()
        return request.query_params["n"]

    deploy(echo.bind())
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(get, f"{instance.url}/a1?n={n}", {"x-request-id": "same"}) for n in range(4)]
        until(lambda: notes.has("here", 4))
        gate.open()
        assert [answer.result().text for answer in answers] == ["0", "1", "2", "3"]


def get(url: str, headers: Any = None) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False, timeout=10)


# -- errors -----------------------------------------------------------------------------------------


def test_an_exception_is_500_without_its_traceback(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    class Fails:
        def __call__(self, request: Request) -> float:
            if request.query_params.get("fine"):
                return 1.0
            return 1 / 0

        async def other(self) -> None:
            raise KeyError("secret")

    deploy(Fails.bind())
    answer = http.get("/a1", headers={"x-request-id": "bad-1"})
    assert answer.status_code == 500
    assert answer.headers["content-type"].startswith("text/plain")
    assert "ZeroDivisionError" in answer.text and "bad-1" in answer.text
    assert "Traceback" not in answer.text and "1 / 0" not in answer.text
    assert http.get("/a1?fine=1").text == "1.0"


def test_what_json_cannot_say_is_500(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    async def odd(request: Request) -> Any:
        return {"a": {1j: object}} if request.query_params.get("bad") else {"a": 1}

    deploy(odd.bind())
    assert http.get("/a1?bad=1").status_code == 500
    assert http.get("/a1").json() == {"a": 1}


def test_an_unusable_status_or_header_is_500(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    async def odd(request: Request) -> Any:
        if request.query_params["what"] == "status":
            return Response("x", status_code=7)
        return Response("x", headers={"x-bad": "a\nb"})

    deploy(odd.bind())
    assert [http.get("/a1", params={"what": what}).status_code for what in ("status", "header")] == [500, 500]
    assert http.get("/-/healthz").status_code == 200


def raw(instance: Instance, data: bytes, half_close: bool = True) -> bytes:
    """What the server says to these bytes until it closes the connection."""
    with socket.create_connection(("127.0.0.1", instance.port), timeout=10) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /a1 HTTP/1.1\r\nhost: x\r\ncontent-length: abc\r\n\r\n",
        b"GET /a1 HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /a1 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /a1 HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\ncut off",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello
        b"",
    ],
    ids=["nonsense", "version", "length", "two lengths", "chunk", "cut body", "tls", "nothing"],
)
def test_malformed_http_disturbs_nobody(deploy: Deploy, http: httpx.Client, instance: Instance, data: bytes) -> None:
    @serve.deployment
    async def echo(request: Request) -> bytes:
        return await request.body()

    deploy(echo.bind())
    answer = raw(instance, data)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
    assert http.post("/a1", content=b"fine").content == b"fine"


def test_a_bad_timeout_header_is_400(deploy: Deploy, http: httpx.Client) -> None:
    deploy(echo_of("x"))
    answer = http.get("/a1", headers={"X-Request-Timeout-Seconds": "soon"})
    assert answer.status_code == 400 and "'soon'" in answer.text


def test_keep_alive_and_pipelined_requests(deploy: Deploy, instance: Instance) -> None:
    deploy(echo_of("x"))
    connection = http.client.HTTPConnection("127.0.0.1", instance.port, timeout=10)
    try:
        for n in range(3):
            connection.request("GET", f"/a1/{n}")
            assert connection.getresponse().read() == f"x /a1/{n}".encode()
    finally:
        connection.close()
    one = b"GET /a1/%d HTTP/1.1\r\nhost: x\r\n%s\r\n"
    answer = raw(instance, one % (1, b"") + one % (2, b"connection: close\r\n"), half_close=False)
    assert answer.index(b"x /a1/1") < answer.index(b"x /a1/2")


def test_json_bodies_that_are_none(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    async def read(request: Request) -> Any:
        try:
            return await request.json()
        except json.JSONDecodeError:
            return Response("no JSON", status_code=400)

    deploy(read.bind())
    answer = http.post("/a1", content=b"{")
    assert (answer.status_code, answer.text) == (400, "no JSON")
