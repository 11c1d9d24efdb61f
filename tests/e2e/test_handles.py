"""Handles and responses: in this script, in replicas, in threads, with loops, pickled."""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import skate
from skate import serve
from skate.core.errors import (
    CallTimeoutError,
    CodeError,
    MethodNotFoundError,
    NotFoundError,
    OptionError,
    RemoteError,
    RemoteTraceback,
    ResultInLoopError,
    StreamMismatchError,
)
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate, Notes
from tests.e2e.world import calls, until


def calculator() -> Any:
    class Own(Exception):
        def __init__(self, code: int, text: str) -> None:
            super().__init__(text)
            self.code = code

        def __reduce__(self) -> Any:
            return type(self), (self.code, self.args[0])

    @serve.deployment
    class Calculator:
        def __call__(self, x: Any = 0) -> Any:
            return x

        async def add(self, a: int, b: int = 1) -> int:
            return a + b

        def sync_add(self, a: int, *, b: int = 1) -> int:
            return a + b

        async def fail(self) -> None:
            raise Own(7, "own trouble")

        def sync_fail(self) -> None:
            raise KeyError("missing")

        async def fail_oddly(self) -> None:
            class Odd(Exception):
                def __init__(self) -> None:
                    super().__init__("odd one")
                    self.lock = threading.Lock()

            raise Odd()

        async def exit(self) -> None:
            raise SystemExit("not so")

        def unpicklable(self) -> Any:
            return threading.Lock()

        def count(self, n: int) -> Any:
            yield from range(n)

        async def acount(self, n: int) -> Any:
            for i in range(n):
                yield i

        async def breaks(self, n: int) -> Any:
            for i in range(n):
                yield i
            raise Own(n, "broke")

        async def nothing(self) -> None:
            return None

        async def raises_what_is_no_exception(self) -> None:
            raise BaseException("no Exception")

        def sync_raises_what_is_no_exception(self) -> None:
            raise KeyboardInterrupt("no Exception")

        def _private(self) -> int:
            return 1

    return Own, Calculator


OWN, CALCULATOR = calculator()


@pytest.fixture
def handle(deploy: Deploy) -> Any:
    return deploy(CALCULATOR.bind())


# -- values -----------------------------------------------------------------------------------------


def test_the_value_again_and_again(handle: Any) -> None:
    response = handle.add.remote(1, b=2)
    assert [response.result(), response.result(timeout_s=1), skate.get(response)] == [3, 3, 3]

    async def main() -> list[int]:
        return [await response, await response, await handle.add.remote(5)]

    assert asyncio.run(main()) == [3, 3, 6]
    assert response.done() and not response.cancelled()


def test_get_takes_lists(handle: Any) -> None:
    assert skate.get([handle.add.remote(n) for n in range(5)]) == [1, 2, 3, 4, 5]
    assert skate.get([]) == []
    with pytest.raises(TypeError, match="int"):
        skate.get(7)


def test_values_of_all_kinds(handle: Any) -> None:
    class Local:
        def __init__(self, x: int) -> None:
            self.x = x

    for value in (None, "ä", b"\0" * 5_000_000, {"a": [1, (2,)]}, 1 << 100, float("inf")):
        assert handle.remote(value).result() == value
    array = np.arange(1_000_000, dtype=np.float32).reshape(1000, 1000)
    assert np.array_equal(handle.remote(array).result(), array)
    back = handle.remote(Local(5)).result()
    assert type(back) is Local and back.x == 5
    assert handle.remote(lambda x: x + 1).result()(1) == 2
    assert handle.nothing.remote().result() is None


def test_a_result_that_takes_too_long_may_be_asked_again(deploy: Deploy, gate: Gate) -> None:
    @serve.deployment
    async def slow() -> str:
        await gate.passed()
        return "done"

    response = deploy(slow.bind()).remote()
    for error in (TimeoutError, CallTimeoutError):
        with pytest.raises(error, match=r"0\.05"):
            response.result(timeout_s=0.05)
    with pytest.raises(CallTimeoutError):
        skate.get([response], timeout_s=0.05)
    gate.open()
    assert response.result(timeout_s=5) == "done"


# -- where handles work -----------------------------------------------------------------------------


def test_many_threads_at_once(handle: Any) -> None:
    def work(n: int) -> list[int]:
        return [handle.add.remote(n, i).result() for i in range(20)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [[n + i for i in range(20)] for n in range(8)]


def test_many_loops_at_once(handle: Any) -> None:
    async def main(n: int) -> list[int]:
        return list(await asyncio.gather(*(_await(handle.add.remote(n, i)) for i in range(20))))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: asyncio.run(main(n)), range(4))) == [
            [n + i for i in range(20)] for n in range(4)
        ]


async def _await(response: Any) -> Any:
    return await response


def test_result_in_a_running_loop_is_refused(handle: Any) -> None:
    async def main() -> int:
        response = handle.add.remote(1)
        for refused in (
            response.result,
            lambda: skate.get(response),
            lambda: next(handle.options(stream=True).count.remote(1)),
        ):
            with pytest.raises(ResultInLoopError, match=r"await|async for"):
                refused()
        value: int = await response
        return value

    assert asyncio.run(main()) == 2


def test_a_response_of_a_closed_loop_is_awaited_in_another(handle: Any) -> None:
    async def begin() -> Any:
        return handle.add.remote(1)

    assert asyncio.run(_await(asyncio.run(begin()))) == 2


def test_handles_are_values(handle: Any) -> None:
    copy = pickle.loads(pickle.dumps(handle))
    assert copy == handle and hash(copy) == hash(handle) and copy.add.remote(4).result() == 5
    changed = handle.options(method_name="add")
    assert changed != handle and changed.remote(1).result() == 2 and handle.remote(1).result() == 1
    assert pickle.loads(pickle.dumps(handle.add)).remote(2).result() == 3
    with pytest.raises(OptionError, match="metod_name"):
        handle.options(metod_name="add")
    with pytest.raises(OptionError, match="stream"):
        handle.options(stream="yes")
    with pytest.raises(TypeError, match="remote"):
        handle.add(1)
    assert "a1/Calculator" in repr(handle)


def test_a_handle_is_an_argument_and_a_result(deploy: Deploy, handle: Any) -> None:
    @serve.deployment
    class Uses:
        async def use(self, other: Any, n: int) -> int:
            value: int = await other.add.remote(n)
            return value

        async def give(self) -> Any:
            return serve.get_deployment_handle("Calculator", "a1")

    other = deploy(Uses.bind(), "a2")
    assert other.use.remote(handle, 1).result() == 2
    assert other.give.remote().result().add.remote(10).result() == 11


def test_named_handles(deploy: Deploy, handle: Any) -> None:
    assert serve.get_app_handle("a1") == handle
    assert serve.get_deployment_handle("Calculator", "a1").add.remote(1).result() == 2
    for name, app, known in (("None", "a1", "Calculator"), ("Calculator", "zz", "a1")):
        with pytest.raises(NotFoundError, match=known):
            serve.get_deployment_handle(name, app)
    with pytest.raises(NotFoundError, match="a1"):
        serve.get_app_handle("zz")
    with pytest.raises(RuntimeError, match="app_name"):
        serve.get_deployment_handle("Calculator")


def test_a_call_to_what_was_deleted(deploy: Deploy, handle: Any) -> None:
    serve.delete("a1")
    with pytest.raises(skate.core.errors.SkateError, match="Calculator"):  # type: ignore[attr-defined]
        handle.remote().result(timeout_s=5)


# -- responses as arguments -------------------------------------------------------------------------


def test_a_response_as_an_argument(deploy: Deploy, handle: Any, gate: Gate, notes: Notes) -> None:
    @serve.deployment
    class Slow:
        async def __call__(self, x: int) -> int:
            await gate.passed()
            return x

    slow = deploy(Slow.bind(), "a2")
    upstream = slow.remote(10)
    down = [handle.add.remote(upstream), handle.add.remote(1, b=upstream), handle.sync_add.remote(upstream, b=upstream)]
    twice = handle.add.remote(handle.add.remote(upstream), b=down[0])
    assert not any(response.done() for response in down)  # remote() did not wait
    gate.open()
    assert skate.get([*down, twice]) == [11, 11, 20, 22]


def test_responses_as_arguments_inside_a_replica(deploy: Deploy, handle: Any) -> None:
    @serve.deployment
    class Chain:
        async def __call__(self) -> int:
            calculator = serve.get_deployment_handle("Calculator", "a1")
            first = calculator.add.remote(1)
            value: int = await calculator.add.remote(first, b=calculator.add.remote(first))
            return value

        def sync(self) -> int:
            calculator = serve.get_deployment_handle("Calculator", "a1")
            value: int = calculator.add.remote(calculator.add.remote(1)).result()
            return value

        def hand_on(self) -> Any:
            return serve.get_deployment_handle("Calculator", "a1").add.remote(5)  # its value is meant

    chain = deploy(Chain.bind(), "a2")
    assert [chain.remote().result(), chain.sync.remote().result(), chain.hand_on.remote().result()] == [5, 3, 6]


def test_a_response_inside_another_value_is_refused(handle: Any) -> None:
    with pytest.raises(CodeError, match="argument of its own"):
        handle.remote([handle.add.remote(1)])
    with pytest.raises(CodeError, match="stream"):
        handle.remote(handle.options(stream=True).count.remote(1)).result()


def test_a_failure_upstream_is_the_failure_downstream(deploy: Deploy, handle: Any, notes: Notes) -> None:
    @serve.deployment
    class Never:
        def __call__(self, x: Any) -> None:
            notes.add("ran")

    never = deploy(Never.bind(), "a2")
    response = never.remote(handle.fail.remote())
    with pytest.raises(OWN, match="own trouble"):
        response.result()
    cancelled = handle.add.remote(1)
    cancelled.cancel()
    assert notes.read() == []
    assert calls().open == 0


# -- streams ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["count", "acount"])
def test_streams_from_both_kinds_to_both_kinds(handle: Any, method: str) -> None:
    stream = getattr(handle.options(stream=True), method)

    async def main() -> list[int]:
        return [item async for item in stream.remote(3)]

    assert list(stream.remote(3)) == asyncio.run(main()) == [0, 1, 2]
    assert list(stream.remote(0)) == []
    assert sum(stream.remote(20_000)) == sum(range(20_000))


def test_streams_between_replicas(deploy: Deploy, handle: Any) -> None:
    @serve.deployment
    class Doubles:
        async def both(self, n: int) -> Any:
            source = serve.get_deployment_handle("Calculator", "a1").options(stream=True)
            async for item in source.acount.remote(n):
                yield 2 * item

        def sync(self, n: int) -> Any:
            source = serve.get_deployment_handle("Calculator", "a1").options(stream=True)
            for item in source.count.remote(n):
                yield 3 * item

    doubles = deploy(Doubles.bind(), "a2").options(stream=True)
    assert list(doubles.both.remote(4)) == [0, 2, 4, 6]
    assert list(doubles.sync.remote(4)) == [0, 3, 6, 9]


def test_a_stream_ends_with_the_users_error(handle: Any) -> None:
    stream = handle.options(stream=True).breaks.remote(2)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(OWN, match="broke"):
        next(stream)
    with pytest.raises((StopIteration, OWN)):
        next(stream)


def test_stream_and_no_stream_are_not_mixed_up(handle: Any) -> None:
    for method in ("count", "acount"):
        with pytest.raises(StreamMismatchError, match="stream=True"):
            getattr(handle, method).remote(3).result(timeout_s=5)
    for method in ("add", "sync_add"):
        with pytest.raises(StreamMismatchError, match="without stream=True"):
            next(getattr(handle.options(stream=True), method).remote(3))
    with pytest.raises(StreamMismatchError):
        iter(handle.add.remote(1))
    with pytest.raises(StreamMismatchError):
        handle.options(stream=True).count.remote(3).result()
    assert calls().open == 0


def test_a_stream_nobody_reads_to_its_end(handle: Any) -> None:
    stream = handle.options(stream=True).count.remote(10_000_000)
    assert next(stream) == 0
    stream.cancel()
    assert handle.add.remote(1).result(timeout_s=5) == 2
    until(lambda: calls().open == 0)


# -- errors -----------------------------------------------------------------------------------------


def test_the_users_own_exception_with_its_remote_traceback(handle: Any) -> None:
    own = OWN
    response = handle.fail.remote()
    for _ in range(2):
        with pytest.raises(own) as raised:
            response.result()
        assert type(raised.value) is own and raised.value.code == 7
        cause = raised.value.__cause__
        assert isinstance(cause, RemoteTraceback)
        assert "raise Own(7" in str(cause) and "skate/dataplane" not in str(cause)
    with pytest.raises(KeyError, match="missing"):
        handle.sync_fail.remote().result()

    async def main() -> None:
        with pytest.raises(own):
            await response

    asyncio.run(main())


def test_an_exception_passes_through_two_replicas(deploy: Deploy, handle: Any) -> None:
    @serve.deployment
    class Between:
        async def __call__(self) -> None:
            await serve.get_deployment_handle("Calculator", "a1").sync_fail.remote()

    with pytest.raises(KeyError, match="missing") as raised:
        deploy(Between.bind(), "a2").remote().result()
    assert "sync_fail" in str(raised.value.__cause__)


def test_an_exception_that_does_not_pickle(handle: Any) -> None:
    with pytest.raises(RemoteError, match="Odd: odd one") as raised:
        handle.fail_oddly.remote().result()
    assert "raise Odd()" in str(raised.value.__cause__)


def test_what_is_no_exception_does_not_end_the_replica(handle: Any) -> None:
    with pytest.raises(RemoteError, match="not so"):
        handle.exit.remote().result()
    for method in ("raises_what_is_no_exception", "sync_raises_what_is_no_exception"):
        with pytest.raises(RemoteError, match="no Exception"):
            getattr(handle, method).remote().result(timeout_s=5)
    assert handle.add.remote(1).result() == 2


def test_what_cannot_be_sent(handle: Any) -> None:
    with pytest.raises(CodeError, match="lock"):
        handle.remote(threading.Lock())
    with pytest.raises(CodeError, match="lock"):
        handle.unpicklable.remote().result()
    assert handle.add.remote(1).result() == 2


def test_unknown_methods_and_wrong_arguments(handle: Any) -> None:
    with pytest.raises(MethodNotFoundError, match=r"'ad'.*sync_add.*mean 'add'"):
        handle.ad.remote().result()
    for name in ("_private", "__init__", "__reduce__"):
        with pytest.raises(MethodNotFoundError):
            handle.options(method_name=name).remote().result()
    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        handle.add.remote(1, c=2).result()
    with pytest.raises(TypeError, match="missing 1 required"):
        handle.add.remote().result()


def test_no_call_after_the_others_is_disturbed(handle: Any) -> None:
    """The calls of this module, good and bad, are all accounted for."""
    assert handle.add.remote(1).result() == 2
    seen = calls()
    assert seen.open == 0 and seen.user_error > 0 and seen.ok > 0
