from __future__ import annotations

import asyncio
import functools
import gc
import threading
from typing import Any

import pytest

from skate.core.errors import MethodNotFoundError
from skate.dataplane.replica.callable import Method, Target, construct, kind_of
from skate.dataplane.replica.threads import aside

aside_ = functools.partial(aside, name="beside")


class Model:
    def __init__(self, name: str = "m", *, loud: bool = False) -> None:
        self.name = name
        self.loud = loud
        self.extra = lambda: "extra"
        self._hidden = lambda: "hidden"
        self.number = 3

    def __call__(self, request: Any) -> str:
        return self.name

    async def predict(self, x: int) -> int:
        return x

    def stream(self) -> Any:
        yield 1

    async def astream(self) -> Any:
        yield 1

    @staticmethod
    def static() -> str:
        return "s"

    @classmethod
    def made(cls) -> str:
        return "c"

    def _private(self) -> None: ...


def target(code: Any, *args: Any, **kwargs: Any) -> Target:
    return asyncio.run(construct("app", "Dep", code, args, kwargs))


def test_methods_and_their_kinds() -> None:
    t = target(Model, "x", loud=True)
    assert t.instance.name == "x" and t.instance.loud
    names = ("__call__", "predict", "stream", "astream", "static", "made", "extra")
    kinds = {name: t.method(name).kind for name in names}
    assert kinds == {
        "__call__": "sync", "predict": "async", "stream": "generator", "astream": "async_generator",
        "static": "sync", "made": "sync", "extra": "sync",
    }  # fmt: skip
    assert t.method("predict") is t.method("predict")
    assert t.method("static").function() == "s"


@pytest.mark.parametrize("name", ["nothing", "_private", "_hidden", "__init__", "number", "predic"])
def test_an_unknown_method_names_those_there_are(name: str) -> None:
    with pytest.raises(MethodNotFoundError) as caught:
        target(Model).method(name)
    text = str(caught.value)
    assert repr(name) in text and "'Dep'" in text and "'app'" in text
    assert "['__call__', 'astream', 'extra', 'made', 'predict', 'static', 'stream']" in text
    assert ("Did you mean 'predict'" in text) == (name == "predic")


def test_a_class_without_call() -> None:
    class Quiet:
        def exists(self) -> None: ...

    with pytest.raises(MethodNotFoundError, match=r"Available methods: \['exists'\]"):
        target(Quiet).method("__call__")


def test_a_function_has_one_method() -> None:
    def double(x: int) -> int:
        return 2 * x

    t = target(double)
    assert t.method("__call__").function(2) == 4
    with pytest.raises(MethodNotFoundError, match=r"\['__call__'\]"):
        t.method("other")


def _nothing() -> None: ...
def _one(a: Any) -> None: ...
def _optional(a: Any = None) -> None: ...
def _one_and_optional(a: Any, b: int = 1) -> None: ...
def _two(a: Any, b: Any) -> None: ...
def _star(*a: Any) -> None: ...
def _one_star(a: Any, *b: Any) -> None: ...
def _keywords(**k: Any) -> None: ...
def _one_keyword(a: Any, *, k: Any) -> None: ...
def _one_optional_keyword(a: Any, *, k: Any = 1) -> None: ...


@pytest.mark.parametrize(
    ("function", "takes", "wants"),
    [
        (_nothing, False, False),
        (_one, True, True),
        (_optional, True, False),
        (_one_and_optional, True, True),
        (_two, True, False),
        (_star, True, False),
        (_one_star, True, True),
        (_keywords, False, False),
        (_one_keyword, True, False),
        (_one_optional_keyword, True, True),
        (functools.partial(_two, 1), True, True),
        (functools.partial(_one, 1), False, False),
        (Model().__call__, True, True),
        (max, True, False),  # has no signature
    ],
)
def test_arity(function: Any, takes: bool, wants: bool) -> None:
    method = Method("__call__", function)
    assert (method.takes_argument, method.wants_request) == (takes, wants)
    assert not Method("other", function).wants_request


def test_kinds_seen_through_partials_objects_and_bound_methods() -> None:
    class Called:
        async def __call__(self) -> None: ...

    async def coroutine() -> None: ...

    @functools.wraps(coroutine)
    def plain() -> Any:
        return coroutine()

    assert kind_of(functools.partial(coroutine)) == "async"
    assert kind_of(Called()) == "async"
    assert kind_of(Called().__call__) == "async"
    assert kind_of(functools.partial(Model().stream)) == "generator"
    assert kind_of(plain) == "sync"
    assert kind_of(len) == "sync"


def test_constructors_sync_and_async_have_a_running_loop() -> None:
    class Async:
        async def __init__(self, x: int) -> None:
            await asyncio.sleep(0)
            self.x = x

    class Sync:
        def __init__(self) -> None:
            self.loop = asyncio.get_running_loop()
            self.thread = threading.current_thread()

    class Own:
        def __new__(cls, x: int) -> Own:
            made = super().__new__(cls)
            made.before = True  # type: ignore[attr-defined]
            return made

        async def __init__(self, x: int) -> None:
            self.x = x

    assert target(Async, 3).instance.x == 3
    assert target(Sync).instance.thread is threading.main_thread()
    assert target(Own, 4).instance.x == 4 and target(Own, 4).instance.before


def test_a_constructor_that_raises_raises() -> None:
    class Bad:
        def __init__(self) -> None:
            raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError):
        target(Bad)
    with pytest.raises(TypeError):
        target(Model, 1, 2, 3)


def test_reconfigure_sync_async_and_missing() -> None:
    class Sync:
        def reconfigure(self, config: Any) -> None:
            self.config, self.thread = config, threading.current_thread()

    class Async:
        async def reconfigure(self, config: Any) -> None:
            await asyncio.sleep(0)
            self.config, self.thread = config, threading.current_thread()

    async def main() -> None:
        for cls in (Sync, Async):
            t = Target("app", "Dep", cls())
            await t.reconfigure({"a": 1})
            assert t.instance.config == {"a": 1} and t.instance.thread is threading.main_thread()
            await t.reconfigure(2, aside_)
            assert t.instance.config == 2
            assert (t.instance.thread is threading.main_thread()) == (cls is Async)
        for bad in (Target("app", "Dep", Model()), Target("app", "Dep", len)):
            with pytest.raises(TypeError, match=r"no method reconfigure\(self, user_config\)"):
                await bad.reconfigure(1)

    asyncio.run(main())


def test_health_checks() -> None:
    class Sync:
        def check_health(self) -> None:
            assert threading.current_thread() is not threading.main_thread()  # a slow one blocks nothing
            raise RuntimeError("ill")

    class Async:
        async def check_health(self) -> None:
            raise RuntimeError("ill")

    async def main() -> None:
        for none in (Target("app", "Dep", Model()), Target("app", "Dep", len)):
            assert none.health_kind is None
            await none.check_health(aside_)
        for cls, kind in ((Sync, "sync"), (Async, "async")):
            target = Target("app", "Dep", cls())
            assert target.health_kind == kind
            with pytest.raises(RuntimeError, match="ill"):
                await target.check_health(aside_)

    asyncio.run(main())


ended: list[str] = []


class SyncEnd:
    def __del__(self) -> None:
        ended.append("sync")


class AsyncEnd:
    async def __del__(self) -> None:
        await asyncio.sleep(0)
        ended.append("async")


class SlottedEnd:
    __slots__ = ("a",)

    def __del__(self) -> None:
        ended.append("slotted")


class BadEnd:
    def __del__(self) -> None:
        ended.append("bad")
        raise RuntimeError("no way")


@pytest.mark.parametrize(("cls", "name"), [(SyncEnd, "sync"), (AsyncEnd, "async"), (SlottedEnd, "slotted")])
def test_the_destructor_runs_once(cls: type, name: str) -> None:
    async def main() -> None:
        t = await construct("app", "Dep", cls, (), {})
        ended.clear()
        await t.destroy()
        await t.destroy()
        assert ended == [name]
        del t
        gc.collect()
        assert ended == [name]

    asyncio.run(main())
    other = cls()  # the class itself was left alone
    assert type(other) is cls
    if name != "async":
        ended.clear()
        del other
        assert ended == [name]
    else:
        asyncio.run(Target("app", "Dep", other).destroy())


def test_a_destructor_that_raises_says_so_once() -> None:
    async def main() -> None:
        t = await construct("app", "Dep", BadEnd, (), {})
        ended.clear()
        with pytest.raises(RuntimeError, match="no way"):
            await t.destroy()
        await t.destroy()
        assert ended == ["bad"]

    asyncio.run(main())


def test_nothing_to_destroy() -> None:
    asyncio.run(Target("app", "Dep", Model()).destroy())
    asyncio.run(Target("app", "Dep", len).destroy())
