from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest

from skate.dataplane.replica.threads import FEED_BYTES_MAX, FEED_ITEMS_MAX, Feed, Threads
from tests.replica.line import WAIT_S as LIMIT_S
from tests.replica.line import until


def with_threads(count: int, scenario: Callable[[Threads], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        threads = Threads(count, asyncio.get_running_loop())
        try:
            await scenario(threads)
        finally:
            threads.close()

    asyncio.run(main())


def test_jobs_run_one_at_a_time_in_order_off_the_loop() -> None:
    order: list[int] = []
    names: set[str] = set()
    running = threading.Lock()

    def job(number: int) -> int:
        assert running.acquire(blocking=False)
        order.append(number)
        names.add(threading.current_thread().name)
        running.release()
        return number

    async def scenario(threads: Threads) -> None:
        tasks = [asyncio.create_task(threads.run(lambda n=n: job(n))) for n in range(50)]
        assert await asyncio.gather(*tasks) == list(range(50))
        assert order == list(range(50)) and names == {"skate-handler-1"}

    with_threads(1, scenario)


def test_more_threads_are_made_only_when_needed() -> None:
    barrier = threading.Barrier(3, timeout=5)

    async def scenario(threads: Threads) -> None:
        for _ in range(5):
            await threads.run(lambda: None)
        assert threads._started == 1
        await asyncio.gather(*(threads.run(barrier.wait) for _ in range(3)))
        assert threads._started == 3

    with_threads(4, scenario)


def test_errors_and_context_variables_pass() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    def bad() -> None:
        raise SystemExit(3)

    async def scenario(threads: Threads) -> None:
        variable.set("mine")
        assert await threads.run(variable.get) == "mine"
        with pytest.raises(SystemExit):
            await threads.run(bad)
        assert await threads.run(lambda: 1) == 1

    with_threads(1, scenario)


def test_what_is_dropped_in_time_never_begins_and_what_has_begun_is_waited_for() -> None:
    gate, begun, ran = threading.Event(), threading.Event(), []

    def first() -> None:
        begun.set()
        gate.wait(5)
        ran.append("first")

    async def scenario(threads: Threads) -> None:
        running = asyncio.create_task(threads.run(first))
        waiting = asyncio.create_task(threads.run(lambda: ran.append("second")))
        await until(begun.is_set)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting  # at once, though the thread is busy
        running.cancel()
        await asyncio.sleep(0)
        running.cancel()  # impatience changes nothing
        await asyncio.sleep(0.01)
        assert not running.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await threads.run(lambda: 3) == 3
        assert ran == ["first"]

    with_threads(1, scenario)


def test_a_feed_brings_all_items_and_the_error_after_them() -> None:
    def numbers() -> Any:
        yield from range(200)
        raise ValueError("the end")

    async def scenario(threads: Threads) -> None:
        feed, got = Feed(threads, numbers(), lambda n: n * 2), []
        with pytest.raises(ValueError, match="the end"):
            async for item in feed:
                got.append(item)
        await feed.aclose()
        assert got == [2 * n for n in range(200)]
        assert [item async for item in Feed(threads, iter([]), str)] == []

    with_threads(1, scenario)


def test_a_feed_runs_only_a_little_ahead_and_stops_when_nobody_reads() -> None:
    made: list[int] = []
    closed = threading.Event()

    def numbers() -> Any:
        try:
            for n in range(10**9):
                made.append(n)
                yield n
        finally:
            closed.set()

    async def scenario(threads: Threads) -> None:
        feed = Feed(threads, numbers(), lambda n: n)
        assert await feed.__anext__() == 0
        await until(lambda: feed._full)
        await asyncio.sleep(0.01)
        assert FEED_ITEMS_MAX // 2 <= len(made) <= FEED_ITEMS_MAX + 2
        ahead = len(made)
        assert [await feed.__anext__() for _ in range(ahead)] == list(range(1, ahead + 1))
        await feed.aclose()
        assert closed.is_set()
        assert await threads.run(lambda: "free") == "free"

    with_threads(1, scenario)


def test_a_feed_dropped_before_it_began_never_begins() -> None:
    gate, begun = threading.Event(), []

    def numbers() -> Any:
        begun.append(1)
        yield 1

    async def scenario(threads: Threads) -> None:
        busy = asyncio.create_task(threads.run(lambda: gate.wait(5)))
        await asyncio.sleep(0)
        feed = Feed(threads, numbers(), str)
        await feed.aclose()
        gate.set()
        await busy
        assert await threads.run(lambda: 1) == 1
        assert begun == []

    with_threads(1, scenario)


def test_jobs_that_were_dropped_behind_a_hanging_one_leave_nothing_behind() -> None:
    """Else each call that times out while a handler hangs would leave its payload in the queue for ever."""

    async def scenario(threads: Threads) -> None:
        release, begun = threading.Event(), threading.Event()

        def hang() -> None:
            begun.set()
            release.wait(LIMIT_S)

        hanging = asyncio.create_task(threads.run(hang))
        await asyncio.to_thread(begun.wait, LIMIT_S)
        payload = set("x")
        seen = weakref.ref(payload)
        late = asyncio.create_task(threads.run(partial(len, payload)))
        await asyncio.sleep(0)
        late.cancel()
        await asyncio.wait({late})
        assert late.cancelled()
        del payload, late
        gc.collect()
        assert seen() is None and not threads._jobs and threads._open == 1
        release.set()
        await hanging
        assert await threads.run(lambda: "next") == "next" and threads._open == 0

    with_threads(1, scenario)


def test_a_system_without_threads_fails_one_job_and_not_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(threads: Threads) -> None:
        with monkeypatch.context() as without:
            without.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no thread")))
            with pytest.raises(RuntimeError, match="no thread"):
                await threads.run(lambda: 1)
        assert await threads.run(lambda: 2) == 2

    with_threads(1, scenario)


def test_a_feed_does_not_take_a_stray_stop_for_the_end() -> None:
    def stray() -> Iterator[int]:
        yield 1
        raise StopAsyncIteration

    async def scenario(threads: Threads) -> None:
        with pytest.raises(RuntimeError, match="StopAsyncIteration"):
            async for _ in Feed(threads, stray(), lambda item: item):
                pass

    with_threads(1, scenario)


def test_a_feed_keeps_few_items_and_few_bytes_ahead() -> None:
    made = 0

    def pieces(size: int) -> Iterator[bytes]:
        nonlocal made
        for _ in range(500):
            made += 1
            yield bytes(size)

    async def main() -> None:
        nonlocal made
        threads = Threads(1, asyncio.get_running_loop())
        for size, most in ((1, FEED_ITEMS_MAX + 1), (FEED_BYTES_MAX // 4, 5), (FEED_BYTES_MAX * 2, 2)):
            made = taken = 0
            feed = Feed(threads, pieces(size), lambda piece: piece)
            async for _ in feed:
                taken += 1
                assert made - taken <= most, (size, made, taken)
                if not taken % 50:
                    await asyncio.sleep(0.002)  # time for more, if more were allowed
            assert taken == made == 500
        threads.close()

    asyncio.run(main())


# -- another number of threads ------------------------------------------------------------------


class Held:
    """Jobs that run until they are let go, and how many of them do at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: list[int] = []
        self.gates = [threading.Event() for _ in range(40)]

    def __call__(self, number: int) -> None:
        with self.lock:
            self.running.append(number)
        self.gates[number].wait(LIMIT_S)
        with self.lock:
            self.running.remove(number)

    def release(self) -> None:
        for gate in self.gates:
            gate.set()


def handler_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("skate-handler")}


def test_fewer_threads_end_what_they_have_in_hand_and_begin_nothing_new() -> None:
    held = Held()

    async def scenario(threads: Threads) -> None:
        before = handler_threads()
        tasks = [asyncio.create_task(threads.run(partial(held, n))) for n in range(8)]
        await until(lambda: len(held.running) == 4)
        threads.resize(2)
        held.gates[0].set()
        held.gates[1].set()
        await asyncio.gather(*tasks[:2])
        assert sorted(held.running) == [2, 3]  # two that wait did not take the places of two that ended
        held.gates[2].set()
        await until(lambda: sorted(held.running) == [3, 4])
        held.release()
        await asyncio.gather(*tasks)
        await until(lambda: len(handler_threads() - before) == 2)
        threads.resize(1)  # of two that wait for a job
        await until(lambda: len(handler_threads() - before) == 1)
        assert await threads.run(lambda: "still") == "still"

    with_threads(4, scenario)


def test_more_threads_begin_at_once_with_what_waits() -> None:
    held = Held()

    async def scenario(threads: Threads) -> None:
        tasks = [asyncio.create_task(threads.run(partial(held, n))) for n in range(5)]
        await until(lambda: held.running == [0])
        threads.resize(3)
        await until(lambda: sorted(held.running) == [0, 1, 2])
        threads.resize(1)
        threads.resize(4)  # before anybody has ended
        await until(lambda: sorted(held.running) == [0, 1, 2, 3])
        held.release()
        await asyncio.gather(*tasks)

    with_threads(1, scenario)


def test_any_sequence_of_sizes_runs_everything_once_and_never_too_much() -> None:
    chance = random.Random(4)
    done: list[int] = []
    most = 0
    allowed = 3
    running = 0
    lock = threading.Lock()

    def job(number: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
            done.append(number)

    async def scenario(threads: Threads) -> None:
        nonlocal most
        for turn in range(100):
            tasks = [asyncio.create_task(threads.run(partial(job, 20 * turn + n))) for n in range(20)]
            size = chance.randint(1, 6)
            threads.resize(size)
            await asyncio.gather(*tasks)
            most = 0
            await asyncio.gather(*(threads.run(partial(job, -1)) for _ in range(5)))
            assert most <= size
        assert sorted(one for one in done if one >= 0) == list(range(2000))

    with_threads(allowed, scenario)
