"""Code and values on their way to other processes: by path, by value, and back as the same class."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import types
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest

from skate.authoring import code
from skate.authoring.deployment import deployment
from skate.authoring.ingress import ingress
from skate.core.context import request as request_variable
from skate.core.errors import CodeError, ImportPathError
from skate.core.specs import CodeRef, HandleRef


class Plain:
    class Inner:
        def __call__(self) -> int:
            return 1


@deployment
class Wrapped:
    def __call__(self) -> str:
        return "wrapped"


async def _asgi(scope: Any, receive: Any, send: Any) -> None: ...


@deployment
@ingress(_asgi)
class Web: ...


def function(request: Any) -> int:
    return 1


def shadowed() -> int:
    return 1


original = shadowed


def shadowed() -> int:  # type: ignore[no-redef]  # another one under the same name is the point
    return 2


# -- by path ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "qualname"),
    [
        (Plain, "Plain"),
        (Plain.Inner, "Plain.Inner"),
        (function, "function"),
        (Wrapped.func_or_class, "Wrapped"),
        (Web.func_or_class, "Web"),
    ],
)
def test_what_can_be_imported_goes_by_path(target: Any, qualname: str) -> None:
    ref = code.pack(target)
    assert ref == CodeRef(import_path=f"{__name__}:{qualname}")
    assert code.load(ref) is target


def test_a_shadowed_name_a_local_and_a_lambda_go_by_value() -> None:
    def local() -> int:
        return 3

    for target, result in [(original, 1), (local, 3), (lambda: 4, 4)]:
        ref = code.pack(target)
        assert ref.import_path is None and code.load(ref)() == result


def test_a_module_made_in_memory_goes_by_value() -> None:
    made = types.ModuleType("made_in_memory")
    exec("FACTOR = 5\nclass Model:\n    def __call__(self):\n        return FACTOR\n", vars(made))
    sys.modules["made_in_memory"] = made
    try:
        ref = code.pack(vars(made)["Model"])
    finally:
        del sys.modules["made_in_memory"]
    assert ref.import_path is None and code.load(ref)()() == 5


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere_at_all:x", r"'nowhere_at_all' does not import .*ModuleNotFoundError.*\n(.|\n)*Traceback"),
        (f"{__name__}:Wraped", "has no 'Wraped'; the nearest is 'Wrapped'"),
        ("x", "is no import path"),
        (":x", "is no import path"),
        ("x:", "is no import path"),
    ],
)
def test_a_wrong_path_is_told_with_its_cause(path: str, said: str) -> None:
    with pytest.raises(ImportPathError, match=said):
        code.resolve(path)


def test_a_module_that_raises_is_told_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raises_at_import.py").write_text("x = 1\nraise SystemExit('no model file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportPathError, match=r"SystemExit: no model file\n(.|\n)*line 2") as raised:
        code.load(CodeRef(import_path="raises_at_import:x"))
    assert isinstance(raised.value.__cause__, SystemExit)


def test_a_path_may_use_dots_only() -> None:
    assert code.resolve("collections.OrderedDict") is code.resolve("collections:OrderedDict")


def test_the_fingerprint_follows_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fingerprinted.py").write_text("def f(): ...\ndef g(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    f, g = (code.pack(code.resolve(f"fingerprinted:{name}")) for name in "fg")
    assert code.fingerprint(f) == code.fingerprint(f) != code.fingerprint(g)


# -- values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, None, "x", b"x" * 1000, [1, {"a": (2,)}], HandleRef("a", "b"), Plain, {1, 2}])
def test_plain_values_take_plain_pickle(value: Any) -> None:
    data = code.dumps(value)
    assert code.loads(data) == value and b"cloudpickle" not in data


def test_what_pickle_cannot_do_takes_cloudpickle() -> None:
    seven = 7
    assert code.loads(code.dumps(lambda x: x + seven))(1) == 8
    assert (code.loads(code.dumps({"a": numpy.arange(3)}))["a"] == numpy.arange(3)).all()
    assert code.loads(code.dumps(Wrapped.func_or_class())).__class__ is Wrapped.func_or_class
    assert code.loads(code.dumps("__main__")) == "__main__"


def test_functions_of_one_value_keep_what_they_share() -> None:
    state = [0]

    def add() -> None:
        state[0] += 1

    def read() -> int:
        return state[0]

    other_add, other_read = code.loads(code.dumps((add, read)))
    other_add()
    assert (other_read(), read()) == (1, 0)


@pytest.mark.parametrize("value", [threading.Lock(), [threading.RLock()], {"a": ContextVar("a")}, (x for x in ())])
def test_a_value_that_cannot_travel_is_told(value: Any) -> None:
    with pytest.raises(CodeError, match="cannot be sent to another process: TypeError: cannot pickle"):
        code.dumps(value)


def test_a_value_that_cannot_be_rebuilt_is_told() -> None:
    data = code.dumps(Plain()).replace(b"Plain", b"Plaim")
    with pytest.raises(CodeError, match="cannot be rebuilt in this one"):
        code.loads(data)


def test_a_known_class_is_left_alone() -> None:
    class Local(Exception):
        counter = 0

    data = code.dumps(Local("a"))
    Local.counter = 5
    method = Local.__init__
    back = code.loads(data)
    assert type(back) is Local and back.args == ("a",)
    assert Local.counter == 5 and Local.__init__ is method


# -- code by value ----------------------------------------------------------------------------------


class Asking:
    """Like Starlette's State: asks its own dict for every attribute it lacks."""

    def __init__(self) -> None:
        self.__dict__["_state"] = {"lock": threading.Lock()}

    def __getattr__(self, name: str) -> Any:
        try:
            return self._state[name]
        except KeyError:
            raise AttributeError(name) from None


def test_locks_context_variables_and_odd_objects_in_code_are_made_anew() -> None:
    lock, again, local = threading.Lock(), threading.RLock(), threading.local()
    own: ContextVar[int] = ContextVar("own", default=7)
    bare: ContextVar[int] = ContextVar("bare")
    asking = Asking()

    def handler() -> tuple[Any, ...]:
        with lock, again, asking.lock:
            return lock, again, local, own, bare, asking, request_variable

    made = code.load(code.pack(handler))()
    assert made[0] is not lock and not made[0].locked() and type(made[1]) is type(again)
    assert made[3] is own and made[4] is bare  # known in this process
    assert made[6] is request_variable  # an attribute of a module goes by reference
    assert made[5].lock is not asking.lock


def test_code_that_cannot_travel_names_what_it_refers_to() -> None:
    unsendable = (x for x in ())

    def handler() -> Any:
        return unsendable

    with pytest.raises(CodeError, match=r"deployment 'web': .*handler', which refers to 'unsendable',.*cannot pickle"):
        code.pack(handler, "web")


SCRIPT = """
import sys, threading
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
import msgspec
from fastapi import APIRouter, Depends, FastAPI, HTTPException, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field, field_validator
from skate.authoring import code
from skate.authoring.deployment import deployment
from skate.authoring.graph import build
from skate.authoring.ingress import ingress

class Color(Enum):
    RED = "red"

class Item(BaseModel):
    name: str
    price: float = Field(gt=0)
    color: Color = Color.RED
    parts: "list[Item]" = []

    @field_validator("name")
    @classmethod
    def upper(cls, value):
        return value.upper()

class Trouble(Exception):
    pass

@dataclass
class Point:
    x: int

class Measured(msgspec.Struct, frozen=True, tag="m", rename="camel"):
    x: float
    long_name: "list[Measured]" = []

class Measure(Measured, kw_only=True):
    unit: str = "m"

    def __post_init__(self):
        assert self.unit in UNITS, self.unit

    def doubled(self):
        return Measure(2 * self.x, unit=self.unit)

UNITS = {"m", "s"}

lock, variable = threading.Lock(), ContextVar("variable", default="unset")
app = FastAPI(title="script")
app.add_middleware(CORSMiddleware, allow_origins=["*"])
app.state.answer = 42
before, after = APIRouter(prefix="/before"), APIRouter(prefix="/after")

@before.get("/hi")
def hi():
    return {"before": app.state.answer}

@after.get("/hi")
async def hi_after():
    with lock:
        return {"after": variable.get()}

app.include_router(before)

@app.exception_handler(Trouble)
async def on_trouble(request, error):
    return PlainTextResponse("trouble", status_code=418)

def common(q: int = 1):
    return q + 1

@deployment
@ingress(app)
class Shop:
    def __init__(self, label, point):
        self.label, self.point = label, point

    @app.get("/item/{number}")
    def item(self, number: int, q: int = Depends(common)) -> dict:
        return {"label": self.label, "number": number, "q": q, "x": self.point.x}

    @app.post("/item", response_model=Item)
    async def echo(self, item: Item):
        return item

    @app.get("/trouble")
    async def trouble(self):
        raise Trouble("t")

    def measure(self):
        text = b'{"type":"m","x":1,"longName":[{"type":"m","x":2}]}'
        assert msgspec.json.decode(text, type=Measured).long_name[0].x == 2
        try:
            Measure(1.5, unit="?")
        except AssertionError:
            return Measure(0.75, unit="s").doubled()

    async def fail(self):
        raise Trouble("from the replica")

app.include_router(after)

"""

DRIVER = """
if __name__ == "__main__":
    import subprocess
    spec = build(Shop.bind("main", Point(3)))
    assert build(Shop.bind("main", Point(3))).deployments[0].version == spec.deployments[0].version
    done = subprocess.run([sys.executable, sys.argv[1]], input=msgspec.msgpack.encode(spec), stdout=subprocess.PIPE)
    assert done.returncode == 0
    method = Trouble.__init__
    back = code.loads(done.stdout)
    assert type(back["error"]) is Trouble and back["error"].args == ("from the replica",), back
    assert Trouble.__init__ is method
    assert type(back["point"]) is Point and back["point"] == Point(4)
    assert type(back["item"]) is Item and back["item"].parts[0].color is Color.RED
    assert type(back["measure"]) is Measure and back["measure"] == Measure(1.5, unit="s")
    print("same classes")
"""

PLAIN_SCRIPT = """
from dataclasses import dataclass
from skate.authoring.deployment import deployment
from skate.authoring.graph import build

FACTOR = 1

@dataclass
class Point:
    x: int

@deployment
class Model:
    def __init__(self, point):
        self.point = point
    def __call__(self):
        return other() * self.point.x

def other():
    return FACTOR

print(build(Model.bind(Point(1))).deployments[0].version)
"""

REPLICA = """
import asyncio, sys, typing
import httpx, msgspec
from skate.authoring import code
from skate.core.specs import AppSpec
from skate.dataplane.replica.views import build_asgi

async def main():
    spec = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=AppSpec).deployments[0]
    assert spec.asgi and spec.code.import_path is None
    cls = code.load(spec.code)
    args, kwargs = code.loads(spec.init)
    shop = cls(*args, **kwargs)
    asgi = build_asgi(cls, shop)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(asgi), base_url="http://x") as client:
        async def get(path):
            return (await client.get(path)).json()
        assert await get("/item/5?q=2") == {"label": "main", "number": 5, "q": 3, "x": 3}
        assert (await client.get("/item/five")).status_code == 422
        assert await get("/before/hi") == {"before": 42}
        assert await get("/after/hi") == {"after": "unset"}
        body = {"name": "a", "price": 2, "parts": [{"name": "b", "price": 1}]}
        item = (await client.post("/item", json=body)).json()
        assert item["name"] == "A" and item["parts"][0]["name"] == "B", item
        assert (await client.post("/item", json={"name": "a", "price": -2})).status_code == 422
        assert (await client.get("/trouble")).status_code == 418
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
        assert any(name.startswith("Item") for name in schemas)
        assert (await client.get("/item/1", headers={"origin": "a"})).headers["access-control-allow-origin"] == "*"
    try:
        await shop.fail()
    except Exception as error:
        caught = error
    kind = typing.get_type_hints(cls.echo)["item"]
    item = kind(name="n", price=1, parts=[kind(name="m", price=1)])
    sys.stdout.buffer.write(
        code.dumps({"error": caught, "point": type(args[1])(4), "item": item, "measure": shop.measure()})
    )

asyncio.run(main())
"""


def run(*arguments: str, cwd: Path, hash_seed: str = "0") -> bytes:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        cwd=cwd,
        timeout=60,
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": hash_seed},
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("first_line", ["", "from __future__ import annotations"])
def test_a_script_with_fastapi_is_served_elsewhere_and_its_classes_come_back(tmp_path: Path, first_line: str) -> None:
    """Driver packs, replica serves and answers with classes of the script; the driver gets its own classes."""
    script, replica = tmp_path / "script.py", tmp_path / "replica.py"
    script.write_text(first_line + SCRIPT + DRIVER)
    replica.write_text(REPLICA)
    assert run(str(script), str(replica), cwd=tmp_path).strip() == b"same classes"


def test_the_version_of_a_script_stays_from_run_to_run(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PLAIN_SCRIPT)
    first, second = (run(str(script), cwd=tmp_path, hash_seed=seed) for seed in "12")
    assert first == second
    script.write_text(PLAIN_SCRIPT.replace("FACTOR = 1", "FACTOR = 2"))
    assert run(str(script), cwd=tmp_path) != first


def test_a_struct_of_specs_survives_msgpack() -> None:
    ref = code.pack(lambda: 1)
    assert code.load(msgspec.msgpack.decode(msgspec.msgpack.encode(ref), type=CodeRef))() == 1


def test_protocol_is_5_so_that_large_buffers_can_go_apart() -> None:
    assert pickle.loads(code.dumps(1)) == 1 and code.dumps(1)[1] == 5
