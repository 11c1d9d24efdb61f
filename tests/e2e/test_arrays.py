"""Large values between processes: they lie in shared memory, and nobody who has one is ever shown another."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

import skate
from skate import serve
from skate.core.errors import ReplicaDiedError
from skate.dataplane import caller as callers
from skate.dataplane.shared.pool import pool
from skate.dataplane.wire.parts import Extent, Part, encode_table
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate
from tests.e2e.store import MB, Store, array
from tests.e2e.world import descriptors_of, lives, until


def total(seed: int, size: int = MB) -> int:
    return int(array(seed, size).sum())


@contextmanager
def busy(done: Any) -> Iterator[None]:
    """The loop on which this process calls does nothing else until ``done()``."""
    caller = callers.here()
    assert caller is not None
    begun = threading.Event()

    def block() -> None:
        begun.set()
        until(done)

    caller.loop.call_soon_threadsafe(block)
    assert begun.wait(10)
    yield


# -- what arrives -----------------------------------------------------------------------------------


def test_what_a_callee_keeps_stays_as_it_was(deploy: Deploy) -> None:
    handle = deploy(Store.bind())
    assert all(skate.get([handle.keep.remote(array(seed)) for seed in range(8)], timeout_s=20))
    assert all(skate.get([handle.keep_sync.remote(array(seed)) for seed in range(8, 12)], timeout_s=20))
    for seed in range(100, 140):  # memory is used again all the time
        assert handle.sum.remote(array(seed)).result(timeout_s=10) == total(seed)
    assert handle.sums.remote().result(timeout_s=10) == [total(seed) for seed in range(12)]


def test_what_a_caller_keeps_stays_as_it_was(deploy: Deploy) -> None:
    handle = deploy(Store.bind())
    kept = skate.get([handle.give.remote(seed) for seed in range(8)], timeout_s=20)
    kept += [handle.give_sync.remote(seed).result(timeout_s=10) for seed in range(8, 12)]
    unread = [handle.give.remote(seed) for seed in range(12, 20)]
    for seed in range(100, 140):
        assert handle.give.remote(seed).result(timeout_s=10).sum() == total(seed)
    for seed, value in enumerate(kept):
        assert np.array_equal(value, array(seed)) and value.flags.writeable
    for seed, response in enumerate(unread, 12):
        assert np.array_equal(response.result(timeout_s=10), array(seed))


def test_what_a_receiver_writes_is_its_own(deploy: Deploy) -> None:
    handle = deploy(Store.options(num_replicas=2).bind())
    mine = array(1)
    assert skate.get([handle.spoil.remote(mine) for _ in range(4)], timeout_s=20) == [0] * 4
    response = handle.echo.remote(mine)
    mine[:] = 9  # after the call was made
    first = response.result(timeout_s=10)
    assert np.array_equal(first, array(1))
    passed = handle.give.remote(2)
    assert passed.result(timeout_s=10).sum() == total(2)
    assert handle.spoil.remote(passed).result(timeout_s=10) == 0
    assert passed.result(timeout_s=10).sum() == total(2)


@pytest.mark.parametrize("method", ["items", "items_sync"])
def test_items_of_a_stream(deploy: Deploy, method: str) -> None:
    handle = deploy(Store.bind())
    items = list(getattr(handle.options(stream=True), method).remote(12))
    assert [int(item.sum()) for item in items] == [total(seed) for seed in range(12)]


@pytest.mark.parametrize("hops", [0, 1, 2])
def test_large_and_small_items_of_a_stream_also_through_others(deploy: Deploy, hops: int) -> None:
    store, stream = deploy(Store.bind()), None
    streaming = store.options(stream=True)
    if hops == 0:
        stream = streaming.mixed.remote(12)
    elif hops == 1:
        stream = streaming.relay.remote(store, "mixed", 12)
    else:
        stream = streaming.relay_twice.remote(store, "mixed", 12)
    items = list(stream)
    for _ in range(20):
        store.give.remote(50).result(timeout_s=10)  # memory is used again
    assert items[::3] == list(range(12)) and set(items[1::3]) == {"small"}
    for seed, item in enumerate(items[2::3]):
        assert np.array_equal(item, array(seed)) and item.flags.writeable


def test_a_stream_of_large_items_is_held_back(deploy: Deploy) -> None:
    """Credit counts what an item refers to: a generator does not run ahead as far as memory goes."""
    handle = deploy(Store.bind())
    stream = handle.options(stream=True).items.remote(200)
    first = next(stream)
    spent = [handle.lent.remote().result(timeout_s=10)[0] for _ in range(100)]  # time to run ahead
    assert spent[-1] < 12 * MB and first.sum() == total(0)
    assert sum(1 for _ in stream) == 199


def test_results_are_passed_on(deploy: Deploy) -> None:
    handle = deploy(Store.options(num_replicas=2).bind())
    given = [handle.give.remote(seed) for seed in range(4)]
    sums = [handle.sum.remote(one, more=array(50)) for one in given]
    assert skate.get(sums, timeout_s=20) == [total(seed) + total(50) for seed in range(4)]
    chain = handle.give.remote(7)
    for _ in range(4):
        chain = handle.echo.remote(chain)
    assert np.array_equal(chain.result(timeout_s=10), array(7))
    assert pool.awaited() == 0


def test_other_kinds(deploy: Deploy) -> None:
    handle = deploy(Store.bind())
    for value in (
        b"b" * MB,
        bytearray(MB),
        "s" * MB,
        {"deep": [array(3), (array(4), "x")]},
        np.zeros((600, 700, 3))[::2],
    ):
        came = handle.echo.remote(value).result(timeout_s=10)
        assert type(came) is type(value) and repr(came) == repr(value)


# -- ends -------------------------------------------------------------------------------------------


def test_a_receiver_that_is_killed_keeps_nothing(deploy: Deploy) -> None:
    handle = deploy(Store.bind())
    for round in range(3):
        pid = handle.pid.remote().result(timeout_s=10)
        skate.get([handle.keep.remote(array(seed)) for seed in range(20)], timeout_s=20)
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: not lives(pid))
        if round == 0:
            spent = pool.spent
    assert pool.spent <= spent + 4 * MB  # what the dead ones had was used again


def test_a_sender_that_dies_before_its_answer_was_fetched(deploy: Deploy, gate: Gate) -> None:
    handle = deploy(Store.bind())
    pid = handle.pid.remote().result(timeout_s=10)
    handle.give.remote(0).result(timeout_s=10)
    response = handle.give_and_die.remote(gate, 1)
    until(lambda: response._call is not None and response._call.running)
    with busy(lambda: not lives(pid)):
        gate.open()
    with pytest.raises(ReplicaDiedError):
        response.result(timeout_s=10)
    assert handle.sum.remote(array(2)).result(timeout_s=10) == total(2)


def test_a_replica_that_ends_in_order_waits_until_its_answers_are_fetched(deploy: Deploy, gate: Gate) -> None:
    handle = deploy(Store.options(graceful_shutdown_timeout_s=10).bind())
    pid = handle.pid.remote().result(timeout_s=10)
    release = threading.Event()
    response = handle.give_late.remote(gate, 1)
    until(lambda: response._call is not None and response._call.running)
    with busy(release.is_set):
        gate.open()
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + 0.5  # longer than it takes to end for one that does not wait
        while lives(pid) and time.monotonic() < end:
            time.sleep(0.01)
        release.set()
    assert np.array_equal(response.result(timeout_s=10), array(1))
    until(lambda: not lives(pid))


def test_memory_stays_flat(deploy: Deploy) -> None:
    handle = deploy(Store.bind())
    pids = [os.getpid(), handle.pid.remote().result(timeout_s=10)]
    value = array(0)

    def round(count: int) -> list[int]:
        for _ in range(count // 8):
            skate.get([handle.echo.remote(value) for _ in range(8)], timeout_s=20)
        return [resident(pid) for pid in pids]

    before = round(400)
    after = round(2400)
    files = [descriptors_of(pid) for pid in pids]
    assert all(b < a + 32 * MB for a, b in zip(before, after, strict=True)), (before, after)
    assert max(files) < 200


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


# -- from outside -----------------------------------------------------------------------------------


def test_a_body_from_outside_names_no_memory(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    class Door:
        async def __call__(self, request: Any) -> Any:
            body = await request.body()
            return body[::-1]

    deploy(Door.bind())
    extent = pool.probe()
    assert extent is not None
    for body in (
        encode_table([extent], [Part(1, 0, 4096)]),
        encode_table([Extent(1, 2, 3, 9)], [Part(1, 0, 9)]),
        b"\x81",
    ):
        for more in (b"", b"x" * 300_000):
            answer = http.post("/a1", content=body + more)
            assert answer.status_code == 200 and answer.content == (body + more)[::-1]
