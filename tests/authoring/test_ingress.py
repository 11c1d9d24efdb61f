"""``serve.ingress`` as a decorator: what it accepts, what it refuses and with which words, what it leaves behind."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import fastapi
import pytest
import starlette.applications

from skate.authoring.code import load, pack
from skate.authoring.ingress import MARK, Ingress, endpoints, ingress, ingress_of, is_foreign, kind_of, owner_of
from skate.core.errors import IngressError

APP = fastapi.FastAPI()


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


def build() -> fastapi.FastAPI:
    return fastapi.FastAPI()


def test_the_class_itself_comes_back_with_a_mark() -> None:
    class Api:
        pass

    assert ingress(APP)(Api) is Api
    assert ingress_of(Api) == Ingress(app=APP)
    assert Api.__qualname__.endswith("Api")
    assert ingress_of(type("Child", (Api,), {})) == Ingress(app=APP)
    assert ingress_of(object) is None


@pytest.mark.parametrize("app", [APP, fastapi.APIRouter(), starlette.applications.Starlette(), asgi])
def test_anything_that_speaks_asgi_is_an_application(app: Any) -> None:
    assert ingress_of(ingress(app)(type("Api", (), {}))) == Ingress(app=app)


def test_a_function_without_parameters_is_a_builder() -> None:
    assert ingress_of(ingress(build)(type("Api", (), {}))) == Ingress(build=build)
    assert ingress_of(ingress(lambda debug=False: APP)()).build is not None  # type: ignore[union-attr]


def test_an_application_without_a_class() -> None:
    first, second = ingress(APP)(), ingress(APP)()
    assert isinstance(first, type) and first is not second
    assert ingress_of(first) == Ingress(app=APP)


def test_a_class_that_builds_its_application() -> None:
    @ingress()
    class Api:
        def __serve_build_asgi_app__(self) -> Any:
            return APP

    assert ingress_of(Api) == Ingress()
    with pytest.raises(IngressError, match="__serve_build_asgi_app__"):
        ingress()(type("Bare", (), {}))


def test_not_a_class() -> None:
    with pytest.raises(IngressError, match=r"decorates a class, but was applied to .*build"):
        ingress(APP)(build)  # type: ignore[call-overload]


def test_the_decorators_in_the_wrong_order() -> None:
    class Deployment:
        name = "Api"

        def bind(self) -> None: ...

    with pytest.raises(IngressError, match="swap the decorators"):
        ingress(APP)(Deployment())  # type: ignore[call-overload]


@pytest.mark.parametrize("inherited", [False, True])
def test_a_class_with_call(inherited: bool) -> None:
    class Api:
        def __call__(self) -> None: ...

    with pytest.raises(IngressError, match="defines __call__"):
        ingress(APP)(type("Child", (Api,), {}) if inherited else Api)


@pytest.mark.parametrize(
    ("app", "words"),
    [
        (fastapi.FastAPI, r"got the class FastAPI where it needs an application"),
        (type("Api", (), {}), r"not @serve.ingress and not"),
        (42, r"got 42, which is neither"),
        ("module:app", r"got 'module:app', which is neither"),
        (lambda scope: None, r"\(scope\): an ASGI application takes"),
    ],
)
def test_not_an_application(app: Any, words: str) -> None:
    with pytest.raises(IngressError, match=words):
        ingress(app)


def test_an_async_builder() -> None:
    async def later() -> Any: ...

    with pytest.raises(IngressError, match="plain `def`"):
        ingress(later)


def test_a_route_method_without_self_is_said_at_once() -> None:
    app = fastapi.FastAPI()
    router = fastapi.APIRouter()

    class Api:
        @router.get("/items")
        def items(name: str) -> str:
            return name

    app.include_router(router, prefix="/v1")
    with pytest.raises(IngressError, match=r"Api\.items answers GET /items.*not\s+`self`"):
        ingress(app)(Api)
    assert not hasattr(Api, MARK)


def test_static_and_class_methods_need_no_self() -> None:
    app = fastapi.FastAPI()

    class Api:
        @staticmethod
        @app.get("/static")
        def fixed() -> int:
            return 1

        @classmethod
        @app.get("/class")
        def named(cls) -> str:
            return cls.__name__

    ingress(app)(Api)
    kinds = {e.__name__: kind_of(e, Api) for _, e in endpoints(app) if owner_of(e, Api)}
    assert kinds == {"fixed": "static", "named": "class"}


def test_whose_endpoint_it_is() -> None:
    class Base:
        def shared(self) -> None: ...

    class Api(Base):
        def own(self) -> None: ...

    first = Api.own

    class Other:
        def other(self) -> None: ...

        @staticmethod
        def fixed() -> None: ...

    assert owner_of(Api.own, Api) is Api and owner_of(Base.shared, Api) is Base
    Api.own = lambda self: None  # type: ignore[method-assign]  # shadowed, as by a second method of that name
    assert owner_of(first, Api) is Api
    assert owner_of(Other.other, Api) is None and is_foreign(Other.other, Api)
    assert not is_foreign(build, Api) and not is_foreign(Other.fixed, Api)
    marked = ingress(APP)(Other)()
    assert is_foreign(marked.other, Api) and not is_foreign(marked.other, Other, marked)
    assert not is_foreign(Base().shared, Api)  # bound to an object that is no ingress: a plain function


def test_an_application_of_a_module_travels_as_its_name() -> None:
    mark = pickle.dumps(Ingress(app=fastapi.responses))  # any object that is a variable of a module
    assert pickle.loads(mark).app is fastapi.responses and len(mark) < 200
    assert pickle.loads(pickle.dumps(Ingress(build=fastapi.FastAPI))).build is fastapi.FastAPI


def test_a_class_and_its_application_travel_by_value() -> None:
    app = fastapi.FastAPI()
    router = fastapi.APIRouter()

    class Api:
        @router.get("/x")
        def x(self) -> int:
            return 1

    app.include_router(router)
    ingress(app)(Api)
    ref = pack(Api)
    assert ref.pickled is not None
    loaded = load(ref)
    mark = ingress_of(loaded)
    assert mark is not None and mark.app is not None
    assert [owner_of(e, loaded) for _, e in endpoints(mark.app)][-1] is loaded


def test_the_decorator_imports_no_web_framework() -> None:
    code = "import sys, skate.authoring.ingress; print({'fastapi', 'starlette', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
