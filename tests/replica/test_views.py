"""The view of an application that one instance serves, against the features of FastAPI that people use."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

import fastapi
import numpy
import pytest
from fastapi import Depends, FastAPI, Header, Request, Security, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBasic, HTTPBasicCredentials, OAuth2PasswordBearer, SecurityScopes
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from skate.authoring.ingress import ingress
from skate.core.errors import BackPressureError, IngressError
from skate.dataplane.replica.views import build_asgi, plain

with warnings.catch_warnings():  # it wants a newer httpx than the one the other tests use
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient


class Item(BaseModel):
    name: str
    price: float = 1.0
    secret: str | None = None


def serve(cls: type, *args: Any, prefix: str = "", run_sync: Any = None, **options: Any) -> TestClient:
    """A client of the view for a fresh instance; ``prefix`` as the proxy passes it: full path, root path = prefix."""
    app: Any = build_asgi(cls, cls(*args), run_sync)
    return TestClient(app, root_path=prefix, base_url="http://testserver" + prefix, **options)


def paths(client: TestClient) -> set[str]:
    return set(client.get("/openapi.json").json()["paths"])


# -- methods as routes ------------------------------------------------------------------------------


def test_methods_get_the_instance_and_typed_parameters() -> None:
    app = FastAPI()

    @ingress(app)
    class Api:
        def __init__(self, greeting: str) -> None:
            self.greeting = greeting

        @app.get("/{name}")
        def hello(self, name: str, times: int = 1) -> str:
            return f"{self.greeting} {name}" * times

        @app.post("/items", status_code=201)
        async def create(self, item: Item) -> dict[str, Any]:
            return {"greeting": self.greeting, **item.model_dump(exclude_none=True)}

    client = serve(Api, "Hello")
    assert client.get("/Corey").text == '"Hello Corey"'
    assert client.get("/a", params={"times": 2}).json() == "Hello aHello a"
    assert client.get("/a", params={"times": "x"}).status_code == 422
    created = client.post("/items", json={"name": "n"})
    assert (created.status_code, created.json()) == (201, {"greeting": "Hello", "name": "n", "price": 1.0})
    assert client.post("/items", json={}).json()["detail"][0]["loc"] == ["body", "name"]
    assert client.delete("/Corey").status_code == 405
    assert client.get("/no/such").json() == {"detail": "Not Found"}
    assert Api("Hi").hello("Python") == "Hi Python"  # still plain Python


def test_self_is_no_parameter_of_the_schema() -> None:
    app = FastAPI()

    @ingress(app)
    class Api:
        @app.get("/x", tags=["t"], summary="Sum", operation_id="op")
        def x(self, q: int) -> int:
            """What it does."""
            return q

    operation = serve(Api).get("/openapi.json").json()["paths"]["/x"]["get"]
    assert [each["name"] for each in operation["parameters"]] == ["q"]
    assert operation["description"] == "What it does." and operation["operationId"] == "op"
    assert operation["summary"] == "Sum" and operation["tags"] == ["t"]


def test_two_methods_of_one_name_under_different_verbs() -> None:
    app = FastAPI()

    @ingress(app)
    class Api:
        @app.get("/")
        def root(self) -> str:
            return f"get {type(self).__name__}"

        @app.post("/")
        def root(self) -> str:  # type: ignore[no-redef]  # noqa: F811
            return f"post {type(self).__name__}"

    client = serve(Api)
    assert (client.get("/").json(), client.post("/").json()) == ("get Api", "post Api")


def test_one_application_of_two_classes() -> None:
    app = FastAPI()

    @app.get("/")
    def root() -> str:
        return "Hello from the root!"

    @ingress(app)
    class First:
        @app.get("/subpath")
        def hello(self) -> str:
            return "Hello 1!"

    @ingress(app)
    class Second:
        @app.get("/subpath")
        def hello(self) -> str:
            return "Hello 2!"

        @app.get("/second")
        def only(self) -> str:
            return "second"

    first, second = serve(First), serve(Second)
    assert first.get("/").json() == second.get("/").json() == "Hello from the root!"
    assert (first.get("/subpath").json(), second.get("/subpath").json()) == ("Hello 1!", "Hello 2!")
    assert (first.get("/second").status_code, second.get("/second").status_code) == (404, 200)
    assert (paths(first), paths(second)) == ({"/", "/subpath"}, {"/", "/subpath", "/second"})


def test_two_instances_in_one_process_do_not_mix() -> None:
    app = FastAPI()

    @ingress(app)
    class Api:
        def __init__(self, name: str) -> None:
            self.name = name

        @app.get("/")
        async def who(self) -> str:
            return self.name

    one, two = serve(Api, "one"), serve(Api, "two")
    before = [vars(route).copy() for route in app.routes]
    assert [c.get("/").json() for c in (one, two, one)] == ["one", "two", "one"]
    assert [vars(route) for route in app.routes] == before and app.middleware_stack is None


def test_inheritance() -> None:
    app = FastAPI()

    class Base:
        @app.get("/base")
        def base(self) -> str:
            return f"base of {type(self).__name__}"

        @app.get("/step", status_code=202)
        def step(self) -> str:
            return "base step"

        @app.get("/again")
        def again(self) -> str:
            return "base again"

    @ingress(app)
    class Api(Base):
        def step(self) -> str:
            return "own " + super().step()

        @app.get("/again")
        def again(self) -> str:
            return "own again"

    @ingress(app)
    class Sibling(Base):
        pass

    client = serve(Api)
    assert client.get("/base").json() == "base of Api"
    assert (client.get("/step").status_code, client.get("/step").json()) == (202, "own base step")
    assert client.get("/again").json() == "own again"
    assert serve(Sibling).get("/again").json() == "base again"


def test_a_class_defined_again_replaces_its_routes() -> None:
    app = FastAPI()

    def cell(answer: int) -> type:  # what running a notebook cell twice does
        @ingress(app)
        class Api:
            @app.get("/")
            def root(self) -> int:
                return answer

        return Api

    first, second = cell(1), cell(2)
    assert serve(second).get("/").json() == 2
    assert serve(first).get("/").json() == 1


def test_static_class_and_bound_endpoints() -> None:
    app = FastAPI()

    class Shelf:
        def items(self) -> list[str]:
            return ["a"]

    app.add_api_route("/items", Shelf().items)

    @ingress(app)
    class Api:
        def __init__(self) -> None:
            app.add_api_route("/late", self.late)

        def late(self) -> int:
            return id(self)

        @staticmethod
        @app.get("/static")
        def fixed(n: int) -> int:
            return n

        @classmethod
        @app.get("/class")
        def named(cls) -> str:
            return cls.__name__

    one = Api()
    Api()  # adds its own bound method to the same application
    client = TestClient(build_asgi(Api, one))  # type: ignore[arg-type]
    assert client.get("/static?n=2").json() == 2
    assert client.get("/class").json() == "Api"
    assert client.get("/items").json() == ["a"]
    assert client.get("/late").json() == id(one)


# -- routers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_router_included_before_or_after_the_class(when: Literal["before", "after"]) -> None:
    app, inner, outer = FastAPI(), fastapi.APIRouter(tags=["inner"]), fastapi.APIRouter(prefix="/outer")

    def tag(response: fastapi.Response) -> None:
        response.headers["x-router"] = "yes"

    def include() -> None:
        outer.include_router(inner, prefix="/inner")
        app.include_router(outer, prefix="/api", dependencies=[Depends(tag)])

    if when == "before":
        include()

    @ingress(app)
    class Api:
        value = 7

        @inner.get("/x", response_model=Item, response_model_exclude_unset=True)
        def x(self, q: int = 0) -> Any:
            return Item(name=str(self.value + q))

        @inner.websocket("/ws")
        async def ws(self, socket: WebSocket) -> None:
            await socket.accept()
            await socket.send_json(self.value)
            await socket.close()

    class Other:
        @outer.get("/other")
        def other(self) -> None: ...

    if when == "after":
        include()
    client = serve(Api, prefix="/p")
    answer = client.get("/api/outer/inner/x?q=1")
    assert answer.json() == {"name": "8"} and answer.headers["x-router"] == "yes"
    assert client.get("/api/outer/other?self=1").status_code == 404
    schema = client.get("/openapi.json").json()["paths"]
    assert set(schema) == {"/api/outer/inner/x"}
    assert [p["name"] for p in schema["/api/outer/inner/x"]["get"]["parameters"]] == ["q"]
    with serve(Api).websocket_connect("/api/outer/inner/ws") as socket:
        assert socket.receive_json() == 7


def test_a_router_alone() -> None:
    router = fastapi.APIRouter(prefix="/r")

    @ingress(router)
    class Api:
        @router.get("/x/{n}")
        def x(self, n: int) -> int:
            return n

    client = serve(Api)
    assert client.get("/r/x/3").json() == 3 and client.get("/r/x/y").status_code == 422
    assert paths(client) == {"/r/x/{n}"} and client.get("/docs").status_code == 200


def test_routes_added_after_the_decoration_and_in_the_startup_are_served() -> None:
    app = FastAPI()

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        app.add_api_route("/startup", lambda: "startup")
        yield

    app.router.lifespan_context = lifespan

    @ingress(app)
    class Api:
        pass

    @app.get("/later")
    def later() -> str:
        return "later"

    with serve(Api) as client:
        assert client.get("/later").json() == "later"
        assert client.get("/startup").json() == "startup"


def test_mounted_applications() -> None:
    app, plain_app, sub = FastAPI(), FastAPI(), FastAPI()

    @plain_app.get("/x")
    def x(request: Request) -> str:
        return str(request.scope["root_path"])

    @ingress(app)
    class Api:
        @sub.get("/who")
        def who(self) -> str:
            return type(self).__name__

    app.mount("/plain", plain_app)
    app.mount("/sub", sub)
    app.host("sub.example", sub)
    client = serve(Api, prefix="/p")
    assert client.get("/who", headers={"Host": "sub.example"}).json() == "Api"
    assert client.get("/plain/x").json() == "/p/plain"
    assert client.get("/sub/who").json() == "Api"
    assert client.get("/sub/openapi.json").json()["servers"] == [{"url": "/p/sub"}]


def test_a_custom_route_class_and_extra_attributes() -> None:
    class Timed(APIRoute):
        def get_route_handler(self) -> Any:
            inner = super().get_route_handler()

            async def handler(request: Request) -> fastapi.Response:
                response: fastapi.Response = await inner(request)
                response.headers["x-timed"] = self.label  # type: ignore[attr-defined]
                return response

            return handler

    app = FastAPI()
    app.router.route_class = Timed

    @ingress(app)
    class Api:
        @app.get("/")
        def root(self) -> int:
            return 1

    app.routes[-1].label = "mine"  # type: ignore[attr-defined]
    assert serve(Api).get("/").headers["x-timed"] == "mine"


# -- what a method may take and give -----------------------------------------------------------------


log: list[str] = []


async def session() -> AsyncIterator[str]:
    log.append("open")
    try:
        yield "session"
    finally:
        log.append("close")


def test_dependencies_also_methods_and_generators() -> None:
    app = FastAPI()
    log.clear()

    @ingress(app)
    class Api:
        users = {"t": "Ann"}
        calls = 0

        def user(self, token: str = Header()) -> str:
            self.calls += 1
            if token not in self.users:
                raise fastapi.HTTPException(401, "who are you?")
            return self.users[token]

        def lock(self) -> Iterator[int]:
            log.append("lock")
            yield self.calls
            log.append("unlock")

        def admin(self, name: str = Depends(user)) -> str:
            return name.upper()

        @app.get("/me")
        def me(
            self,
            locked: Annotated[int, Depends(lock)],
            db: Annotated[str, Depends(session)],
            name: str = Depends(user),
            title: str = Depends(admin),
        ) -> list[Any]:
            return [name, title, db, self.calls]

        @app.get("/guarded", dependencies=[Depends(user)])
        def guarded(self) -> str:
            return "in"

    client = serve(Api)
    assert client.get("/me", headers={"token": "t"}).json() == ["Ann", "ANN", "session", 1]  # `user` ran once
    assert sorted(log) == ["close", "lock", "open", "unlock"]
    assert client.get("/me", headers={"token": "x"}).status_code == 401
    assert client.get("/me").status_code == client.get("/guarded").status_code == 422
    assert client.get("/guarded", headers={"token": "t"}).json() == "in"
    names = [p["name"] for p in client.get("/openapi.json").json()["paths"]["/me"]["get"]["parameters"]]
    assert names == ["token"]


def test_dependency_overrides_set_on_the_application() -> None:
    app = FastAPI()

    def real() -> str:
        return "real"

    @ingress(app)
    class Api:
        @app.get("/")
        def root(self, value: str = Depends(real)) -> str:
            return value

    client = serve(Api)
    assert client.get("/").json() == "real"
    app.dependency_overrides[real] = lambda: "fake"
    assert client.get("/").json() == "fake"


def test_security_schemes() -> None:
    app = FastAPI()
    oauth = OAuth2PasswordBearer("token", scopes={"read": "r"})

    @ingress(app)
    class Api:
        def who(self, wanted: SecurityScopes, token: str = Depends(oauth)) -> str:
            return f"{token} {wanted.scope_str}"

        @app.get("/bearer")
        def bearer(self, who: str = Security(who, scopes=["read"])) -> str:
            return who

        @app.get("/basic")
        def basic(self, given: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> str:
            return given.username

    client = serve(Api)
    assert client.get("/bearer").status_code == 401
    assert client.get("/bearer", headers={"Authorization": "Bearer abc"}).json() == "abc read"
    assert client.get("/basic", auth=("ann", "x")).json() == "ann"


def test_forms_files_cookies_headers() -> None:
    app = FastAPI()

    @ingress(app)
    class Api:
        @app.post("/upload")
        async def upload(self, file: fastapi.UploadFile, note: Annotated[str, fastapi.Form()]) -> list[Any]:
            return [file.filename, len(await file.read()), note]

        @app.get("/see")
        def see(
            self, request: Request, response: fastapi.Response, jar: str = fastapi.Cookie(), x_a: str = Header()
        ) -> list[str]:
            response.set_cookie("seen", "1")
            response.headers["x-b"] = x_a
            return [jar, x_a, request.method]

        @app.post("/raw")
        async def raw(self, request: Request) -> str:
            return (await request.body()).decode()

    client = serve(Api, cookies={"jar": "c"})
    assert client.post("/upload", files={"file": ("n.txt", b"123")}, data={"note": "hi"}).json() == ["n.txt", 3, "hi"]
    seen = client.get("/see", headers={"x-a": "a"})
    assert seen.json() == ["c", "a", "GET"] and seen.headers["x-b"] == "a" and seen.cookies["seen"] == "1"
    assert client.post("/raw", content=b"bytes").json() == "bytes"


def test_responses_background_tasks_and_streams() -> None:
    app = FastAPI()
    done: list[str] = []

    @ingress(app)
    class Api:
        name = "api"

        @app.get("/task", status_code=202)
        def task(self, tasks: fastapi.BackgroundTasks) -> str:
            tasks.add_task(done.append, self.name)
            return "queued"

        @app.get("/text", response_class=PlainTextResponse)
        def text(self) -> str:
            return self.name

        @app.get("/response")
        def response(self) -> JSONResponse:
            return JSONResponse({"a": 1}, status_code=418)

        @app.get("/stream")
        async def stream(self) -> StreamingResponse:
            async def chunks() -> AsyncIterator[str]:
                for part in "123":
                    yield part

            return StreamingResponse(chunks(), status_code=206)

        @app.get("/lines")
        async def lines(self) -> AsyncIterator[Item]:
            yield Item(name=self.name)
            yield Item(name="two")

        @app.get("/model", response_model=Item, response_model_exclude={"secret"})
        def model(self) -> Any:
            return {"name": "n", "price": "2.5", "secret": "s"}

    client = serve(Api)
    assert client.get("/task").status_code == 202 and done == ["api"]
    assert client.get("/text").text == "api"
    assert client.get("/response").status_code == 418
    assert (client.get("/stream").status_code, client.get("/stream").text) == (206, "123")
    assert [json.loads(line)["name"] for line in client.get("/lines").text.splitlines()] == ["api", "two"]
    assert client.get("/model").json() == {"name": "n", "price": 2.5}


def test_websocket_methods() -> None:
    app = FastAPI()

    @ingress(app)
    class Api:
        def prefix(self, lang: str = "en") -> str:
            return lang

        @app.websocket("/ws/{room}")
        async def chat(self, socket: WebSocket, room: str, prefix: str = Depends(prefix)) -> None:
            await socket.accept(subprotocol=socket.scope["subprotocols"][0])
            async for text in socket.iter_text():
                await socket.send_text(f"{type(self).__name__} {room} {prefix} {text}")

    with serve(Api).websocket_connect("/ws/blue?lang=de", subprotocols=["v1"]) as socket:
        socket.send_text("hi")
        assert socket.accepted_subprotocol == "v1" and socket.receive_text() == "Api blue de hi"


def test_starlette_routes_of_methods() -> None:
    app = FastAPI()

    @ingress(app)
    class Api:
        async def raw(self, request: Request) -> PlainTextResponse:
            return PlainTextResponse(f"{type(self).__name__} {request.url.path}")

        app.add_route("/raw", raw, methods=["PUT"])

    assert serve(Api).put("/raw").text == "Api /raw"
    assert serve(Api).get("/raw").status_code == 405


# -- the application around them ------------------------------------------------------------------------


def test_middlewares_and_exception_handlers() -> None:
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["*"])

    class Sour(Exception): ...

    @app.middleware("http")
    async def stamp(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["x-stamp"] = request.url.path
        return response

    @app.exception_handler(Sour)
    async def sour(request: Request, error: Sour) -> JSONResponse:
        return JSONResponse({"sour": str(error)}, status_code=417)

    @ingress(app)
    class Api:
        @app.get("/sour")
        def raises(self) -> None:
            raise Sour("lemon")

        @app.get("/http")
        def refuses(self) -> None:
            raise fastapi.HTTPException(403, "no")

        @app.get("/crash")
        def crashes(self) -> float:
            return 1 / 0

        @app.get("/busy")
        def busy(self) -> None:
            raise BackPressureError("the queue is full", retry_after_s=2.0)

    client = serve(Api, raise_server_exceptions=False)
    answer = client.get("/sour", headers={"Origin": "http://e"})
    assert (answer.status_code, answer.json()) == (417, {"sour": "lemon"})
    assert answer.headers["x-stamp"] == "/sour" and answer.headers["access-control-allow-origin"] == "*"
    assert client.get("/http").json() == {"detail": "no"}
    assert client.get("/nothing").headers["x-stamp"] == "/nothing"
    assert (client.get("/crash").status_code, client.get("/crash").text) == (500, "Internal Server Error")
    busy = client.get("/busy")
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "2")
    assert busy.json() == {"detail": "the queue is full"}


@pytest.mark.parametrize("prefix", ["", "/a", "/a/b"])
def test_docs_redirects_and_links_under_a_prefix(prefix: str) -> None:
    app = FastAPI(title="Shop", openapi_url="/schema.json")

    @ingress(app)
    class Api:
        @app.get("/")
        def root(self, request: Request) -> list[str]:
            return [str(request.url_for("item", n=1)), request.scope["root_path"]]

        @app.get("/items/{n}/")
        def item(self, n: int) -> int:
            return n

    client = serve(Api, prefix=prefix)
    assert f"{prefix}/schema.json" in client.get("/docs").text
    assert f"{prefix}/schema.json" in client.get("/redoc").text
    schema = client.get("/schema.json").json()
    assert set(schema["paths"]) == {"/", "/items/{n}/"} and schema["info"]["title"] == "Shop"
    assert schema.get("servers") == ([{"url": prefix}] if prefix else None)
    assert client.get("/").json() == [f"http://testserver{prefix}/items/1/", prefix]
    assert client.get("/items/5", follow_redirects=False).headers["location"].endswith(f"{prefix}/items/5/")
    assert client.get("").json() == client.get("/").json()


def test_root_path_of_the_application_itself() -> None:
    with pytest.warns(Warning, match="root_path"):
        app = FastAPI(root_path="/outer/")

    @ingress(app)
    class Api:
        @app.get("/x")
        def x(self, request: Request) -> str:
            return str(request.scope["root_path"])

    assert serve(Api).get("/x").json() == "/outer"
    assert serve(Api, prefix="/p").get("/x").json() == "/outer/p"


def test_a_schema_made_by_the_user() -> None:
    app = FastAPI()

    def custom() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = get_openapi(title="Mine", version="3", routes=app.routes)
        return app.openapi_schema

    app.openapi = custom  # type: ignore[method-assign]

    @ingress(app)
    class First:
        @app.get("/first")
        def first(self) -> None: ...

    @ingress(app)
    class Second:
        @app.get("/second")
        def second(self) -> None: ...

    schema = serve(First).get("/openapi.json").json()
    assert (schema["info"]["title"], set(schema["paths"])) == ("Mine", {"/first"})
    assert "parameters" not in schema["paths"]["/first"]["get"]
    assert paths(serve(Second)) == {"/second"} and app.openapi_schema is None


def test_instrumentation_that_replaces_methods_of_the_application() -> None:
    app = FastAPI()
    original = app.build_middleware_stack

    def build(self: FastAPI) -> Any:
        inner = original.__func__(self)  # type: ignore[attr-defined]

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["path"])
            await inner(scope, receive, send)

        return counted

    seen: list[str] = []
    app.build_middleware_stack = build.__get__(app)  # type: ignore[method-assign]

    @ingress(app)
    class Api:
        @app.get("/x")
        def x(self) -> str:
            return type(self).__name__

    assert serve(Api).get("/x").json() == "Api" and seen == ["/x"]


def test_lifespan_state_and_application_state() -> None:
    app_log: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(served: FastAPI) -> AsyncIterator[dict[str, Any]]:
        served.state.model = object()
        app_log.append("up")
        yield {"yielded": 5, "model": served.state.model}
        app_log.append("down")

    app = FastAPI(lifespan=lifespan)
    app.state.static = "s"

    @ingress(app)
    class Api:
        @app.get("/")
        def root(self, request: Request) -> list[Any]:
            own = request.app.state.model is request.state.model
            return [request.state.yielded, own, request.app.state.static, hasattr(app.state, "model")]

    with serve(Api) as one, serve(Api) as two:  # two replicas in a process: each finds its own model
        assert one.get("/").json() == two.get("/").json() == [5, True, "s", True]
    assert app_log == ["up", "up", "down", "down"]


def test_startup_and_shutdown_hooks() -> None:
    app, log = FastAPI(), []
    with pytest.warns(DeprecationWarning):

        @app.on_event("startup")
        async def up() -> None:
            app.state.up = True

        @app.on_event("shutdown")
        def down() -> None:
            log.append("down")

    @ingress(app)
    class Api:
        @app.get("/")
        def root(self, request: Request) -> bool:
            return bool(request.app.state.up)

    with serve(Api) as client:
        assert client.get("/").json() is True
    assert log == ["down"]


def test_a_hook_that_is_a_method_is_refused() -> None:
    app = FastAPI()

    class Api:
        def up(self) -> None: ...

    app.router.on_startup.append(Api.up)
    ingress(app)(Api)
    with pytest.raises(IngressError, match=r"Api\.up is registered as on_startup"):
        build_asgi(Api, Api())


# -- results ------------------------------------------------------------------------------------------------


def test_arrays_in_results() -> None:
    app = FastAPI()

    @app.get("/plain")
    def function() -> Any:
        return numpy.float32(0.5)

    @ingress(app)
    class Api:
        @app.get("/array")
        def array(self) -> Any:
            return numpy.zeros(2)

        @app.get("/annotated")
        async def annotated(self) -> dict[str, Any]:
            return {"label": numpy.int64(3), "scores": [numpy.ones(1), (numpy.float64(1), True)]}

        @app.get("/typed")
        def typed(self) -> list[float]:
            return numpy.arange(2)  # type: ignore[return-value]

    client = serve(Api)
    assert client.get("/array").json() == [0.0, 0.0]
    assert client.get("/annotated").json() == {"label": 3, "scores": [[1.0], [1.0, True]]}
    assert client.get("/typed").json() == [0.0, 1.0]
    assert client.get("/plain").json() == 0.5


def test_plain_leaves_alone_what_is_plain() -> None:
    for value in ({"a": [1, (2, "x")], 3: None}, Item(name="n"), [object()], "text", b"bytes"):
        assert plain(value) is value
    changed = plain({numpy.str_("k"): numpy.array([numpy.int8(1), None], dtype=object), "t": (numpy.bool_(True),)})
    assert changed == {"k": [1, None], "t": (True,)}
    assert [type(x) for x in (*changed, changed["t"][0])] == [str, str, bool]


def test_def_methods_run_where_the_caller_says() -> None:
    app, threads = FastAPI(), []

    async def run_sync(work: Any) -> Any:
        threads.append(threading.get_ident())
        return work()

    @ingress(app)
    class Api:
        @app.get("/")
        def root(self, n: int) -> list[int]:
            return [n, threading.get_ident()]

    assert serve(Api, run_sync=run_sync).get("/?n=1").json() == [1, threads[0]]


# -- other applications ----------------------------------------------------------------------------------------


def test_starlette_and_plain_asgi() -> None:
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.url.path)

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse(scope["type"])(scope, receive, send)

    app = Starlette(routes=[Route("/page", page), Mount("/raw", raw)])
    assert serve(ingress(app)()).get("/page").text == "/page"
    assert serve(ingress(app)()).get("/raw/x").text == "http"
    assert serve(ingress(raw)(), prefix="/p").get("/any").text == "http"


def test_a_middleware_put_around_by_hand() -> None:
    app = FastAPI()

    @ingress(CORSMiddleware(app, allow_origins=["*"]))
    class Api:
        @app.get("/")
        def root(self) -> str:
            return type(self).__name__

    answer = serve(Api).get("/", headers={"Origin": "http://e"})
    assert answer.json() == "Api" and answer.headers["access-control-allow-origin"] == "*"


def test_builders() -> None:
    def build() -> FastAPI:
        app = FastAPI()
        app.add_api_route("/built", lambda: "built")
        return app

    @ingress()
    class Api:
        def __init__(self) -> None:
            self.value = 3

        def __serve_build_asgi_app__(self) -> FastAPI:
            app = FastAPI()
            app.add_api_route("/own", self.own)
            return app

        def own(self, q: int) -> int:
            return self.value + q

    assert serve(ingress(build)()).get("/built").json() == "built"
    assert serve(Api).get("/own?q=1").json() == 4
    with pytest.raises(IngressError, match=r"the builder .* gave None, which is not an ASGI application"):
        serve(ingress(lambda: None)())
    with pytest.raises(IngressError, match=r"is not decorated with serve\.ingress"):
        build_asgi(Item, None)


def test_a_method_without_self_in_a_router_included_later() -> None:
    app, router = FastAPI(), fastapi.APIRouter()

    @ingress(app)
    class Api:
        @router.get("/x")
        def x(n: int) -> int:
            return n

    app.include_router(router)
    with pytest.raises(IngressError, match=r"Api\.x answers GET /x"):
        serve(Api)


@dataclasses.dataclass
class Message:
    text: str


def test_annotations_that_are_text_are_found_in_the_users_module() -> None:
    app = FastAPI()

    @ingress(app)
    class Api:
        @app.post("/")
        def root(self, message: Message, kind: Literal["a", "b"] = "a") -> Message:
            return Message(message.text + kind)

    client = serve(Api)
    assert client.post("/?kind=b", json={"text": "t"}).json() == {"text": "tb"}
    assert client.post("/?kind=c", json={"text": "t"}).status_code == 422
