"""A FastAPI ingress, with all that FastAPI has, under any prefix.

Annotations are not deferred here: FastAPI could not read those that name local things.
"""

import threading
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, UploadFile
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from skate import serve
from skate.core.errors import DeployError, IngressError
from tests.e2e import fruit
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Notes
from tests.e2e.world import until

PRELOAD = ("fastapi",)


@pytest.mark.parametrize("prefix", ["/", "/shop/fruit"])
def test_everything_works_under_any_prefix(deploy: Deploy, http: httpx.Client, prefix: str) -> None:
    handle = deploy(fruit.application(), route_prefix=prefix)
    at = prefix.rstrip("/")
    assert (http.get(f"{at}/").json(), http.post(f"{at}/").json()) == ("get", "post")
    assert http.get(f"{at}/price/apple", params={"count": 3}).json() == 9.0
    assert http.get(f"{at}/price/apple?count=x").status_code == 422
    assert http.get(f"{at}/before/plain").json() == "before"
    assert http.get(f"{at}/after/self").json() == 2
    assert http.get(f"{at}/function").json() == {"shop": "corner", "opened": ["lifespan"], "root": at}
    assert http.get(f"{at}/function").headers["x-stamp"] == f"{at}/function"
    assert http.get(f"{at}/stream").text == "01"
    assert handle.plain.remote(21).result() == 42
    assert handle.price.remote("apple", 2).result() == 6.0
    order = http.post(f"{at}/order", json={"name": "pear"}, headers={"x-user": "ada"})
    assert (order.status_code, order.json()) == (201, {"who": "ADA", "order": {"name": "pear", "count": 1}})
    until(lambda: http.get(f"{at}/done").json() == ["pear"])
    assert http.post(f"{at}/order", json={"name": "pear"}).json() == {"detail": "who are you?"}
    assert http.post(f"{at}/order", json={}, headers={"x-user": "a"}).status_code == 422


def test_errors_are_fastapis_or_500(deploy: Deploy, http: httpx.Client) -> None:
    deploy(fruit.application())
    assert (http.get("/a1/rotten").status_code, http.get("/a1/rotten").json()) == (410, {"rotten": "apple"})
    assert (http.get("/a1/missing").status_code, http.get("/a1/missing").json()) == (404, {"detail": "no such fruit"})
    unknown = http.get("/a1/nothing")
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "Not Found"})
    assert unknown.headers["x-stamp"] == "/a1/nothing"
    crash = http.get("/a1/crash")
    assert crash.status_code == 500 and "Traceback" not in crash.text
    assert http.get("/a1/").status_code == 200


def test_the_docs_pages_find_their_schema(deploy: Deploy, http: httpx.Client) -> None:
    deploy(fruit.application(), route_prefix="/shop")
    page = http.get("/shop/docs")
    assert page.status_code == 200 and "/shop/openapi.json" in page.text
    assert http.get("/shop/redoc").status_code == 200
    schema = http.get("/shop/openapi.json").json()
    assert {"/", "/price/{name}", "/order", "/function", "/before/plain", "/after/self"} <= set(schema["paths"])
    assert schema["servers"] == [{"url": "/shop"}]
    parameters = schema["paths"]["/price/{name}"]["get"]["parameters"]
    assert [parameter["name"] for parameter in parameters] == ["name", "count"]


@pytest.mark.filterwarnings(r"ignore:\s*on_event is deprecated")
def test_a_class_and_its_application_made_in_a_function(deploy: Deploy, http: httpx.Client, notes: Notes) -> None:
    """All of it goes to the replica by value; FastAPI's locks are made anew there."""
    app = FastAPI()
    lock = threading.Lock()

    class Item(BaseModel):
        name: str

    def greeting() -> str:
        with lock:
            return "Hello"

    @app.on_event("startup")
    def begin() -> None:
        notes.add("startup")

    @app.on_event("shutdown")
    def end() -> None:
        notes.add("shutdown")

    @serve.deployment
    @serve.ingress(app)
    class Hello:
        def __init__(self, sign: str) -> None:
            notes.add("init")
            self.sign = sign

        @app.get("/{name}")
        async def hello(self, name: str, word: Annotated[str, Depends(greeting)]) -> str:
            return f"{word} {name}{self.sign}"

        @app.post("/")
        def post(self, item: Item) -> Item:
            return Item(name=item.name + self.sign)

        @app.put("/file")
        async def put(self, file: UploadFile) -> int:
            return len(await file.read())

        def __del__(self) -> None:
            notes.add("del")

    deploy(Hello.bind("!"))
    assert http.get("/a1/Corey").text == '"Hello Corey!"'
    assert http.post("/a1/", json={"name": "Ada"}).json() == {"name": "Ada!"}
    assert http.put("/a1/file", files={"file": ("a.txt", b"x" * 2_000_000)}).json() == 2_000_000
    serve.delete("a1")
    assert notes.read() == ["init", "startup", "shutdown", "del"]


def test_one_application_for_two_classes(deploy: Deploy, http: httpx.Client) -> None:
    app = FastAPI()

    @app.get("/")
    def root() -> str:
        return "Hello from the root!"

    @serve.deployment
    @serve.ingress(app)
    class One:
        @app.get("/one")
        def one(self) -> str:
            return "one"

    @serve.deployment
    @serve.ingress(app)
    class Two:
        @app.get("/two")
        def two(self) -> str:
            return "two"

    deploy(One.bind(), "one")
    deploy(Two.bind(), "two")
    assert [http.get(f"/{name}/").json() for name in ("one", "two")] == ["Hello from the root!"] * 2
    assert (http.get("/one/one").json(), http.get("/two/two").json()) == ("one", "two")
    assert (http.get("/one/two").status_code, http.get("/two/one").status_code) == (404, 404)


def test_other_asgi_applications(deploy: Deploy, http: httpx.Client) -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 203, "headers": [(b"x-own", b"1")]})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    def starlette() -> Starlette:
        return Starlette(routes=[Route("/x", lambda request: PlainTextResponse("starlette"))])

    router = APIRouter()

    @serve.deployment
    @serve.ingress(router)
    class Routed:
        @router.get("/x")
        def x(self) -> str:
            return "router"

    deploy(serve.deployment(serve.ingress(bare)()).bind(), "bare")
    deploy(serve.deployment(serve.ingress(starlette)()).bind(), "star")
    deploy(Routed.bind(), "routed")
    answer = http.get("/bare/y")
    assert (answer.status_code, answer.text, answer.headers["x-own"]) == (203, "/bare/y", "1")
    assert (http.get("/star/x").text, http.get("/routed/x").json()) == ("starlette", "router")


def test_sync_methods_run_one_at_a_time(deploy: Deploy, http: httpx.Client) -> None:
    app = FastAPI()

    @serve.deployment
    @serve.ingress(app)
    class Threads:
        @app.get("/")
        def name(self) -> str:
            return threading.current_thread().name

        @app.get("/loop")
        async def loop(self) -> str:
            return threading.current_thread().name

    deploy(Threads.bind())
    assert "MainThread" not in {http.get("/a1/").json() for _ in range(5)}
    assert len({http.get("/a1/").json() for _ in range(5)}) == 1
    assert http.get("/a1/loop").json() == "MainThread"


def test_what_is_wrong_is_said_at_once(deploy: Deploy) -> None:
    app = FastAPI()
    with pytest.raises(IngressError, match="class"):
        serve.ingress(app)(lambda: 1)  # type: ignore[call-overload]
    with pytest.raises(IngressError, match="__call__"):

        @serve.ingress(app)
        class Both:
            def __call__(self) -> None: ...

    with pytest.raises(IngressError, match="self"):

        @serve.ingress(app)
        class NoSelf:
            @app.get("/")
            def root() -> None: ...  # type: ignore[misc]


@pytest.mark.filterwarnings(r"ignore:\s*on_event is deprecated")
def test_a_lifespan_that_fails_is_a_deploy_error(deploy: Deploy) -> None:
    app = FastAPI()

    @app.on_event("startup")
    def begin() -> None:
        raise OSError("no database")

    @serve.deployment(max_constructor_retry_count=1)
    @serve.ingress(app)
    class Needs:
        pass

    with pytest.raises(DeployError, match="no database"):
        deploy(Needs.bind())


def test_one_ingress_for_an_application() -> None:
    one, two = FastAPI(), FastAPI()

    @serve.deployment
    @serve.ingress(one)
    class Inner:
        pass

    @serve.deployment
    @serve.ingress(two)
    class Outer:
        def __init__(self, inner: Any) -> None: ...

    with pytest.raises(ValueError, match=r"Inner.*Outer|Outer.*Inner|ingress"):
        serve.run(Outer.bind(Inner.bind()))
