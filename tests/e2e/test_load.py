"""How much runs at once, in which order, and on which thread."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from starlette.requests import Request

import skate
from skate import serve
from skate.core.errors import BackPressureError
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate, Notes
from tests.e2e.world import Instance, calls, client, processes_of, until


def test_never_more_than_max_ongoing_requests_with_many_callers(
    deploy: Deploy, instance: Instance, http: httpx.Client
) -> None:
    """Threads of this process, three replicas and HTTP clients call one replica at once."""

    @serve.deployment(max_ongoing_requests=3)
    class Counter:
        def __init__(self) -> None:
            self.now = self.most = self.all = 0

        async def __call__(self, request: Any) -> int:
            self.now += 1
            self.all += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.001)
            self.now -= 1
            return self.most

        async def seen(self) -> tuple[int, int]:
            return self.most, self.all

    counter = deploy(Counter.bind())
    callers = deploy(callers_of_counter(), "a2", None)

    def over_http(_: int) -> int:
        with client(instance.url) as own:
            return max(own.get("/a1").json() for _ in range(10))

    with ThreadPoolExecutor(8) as pool:
        web = pool.map(over_http, range(4))
        ours = pool.map(lambda _: max(skate.get([counter.remote(0) for _ in range(30)])), range(4))
        theirs = skate.get([callers.remote(30) for _ in range(4)])
        assert max([*web, *ours, *theirs]) == 3
    assert counter.seen.remote().result() == (3, 40 + 120 + 120)
    assert calls().open == 0


def callers_of_counter() -> Any:
    @serve.deployment(max_ongoing_requests=100)
    class Front:
        def __init__(self, caller: Any) -> None:
            self.caller = caller

        async def __call__(self, n: int) -> int:
            value: int = await self.caller.remote(serve.get_deployment_handle("Counter", "a1"), n)
            return value

    @serve.deployment(num_replicas=2, max_ongoing_requests=100)
    class Worker:
        async def __call__(self, counter: Any, n: int) -> int:
            return max(await asyncio.gather(*(_await(counter.remote(0)) for _ in range(n))))

    return Front.bind(Worker.bind())


async def _await(response: Any) -> Any:
    return await response


def test_first_come_first_served(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    @serve.deployment(max_ongoing_requests=1)
    class One:
        async def __call__(self, n: int) -> int:
            notes.add(n)
            if n == 0:
                await gate.passed()
            return n

    handle = deploy(One.bind())
    responses = [handle.remote(n) for n in range(50)]
    gate.open()
    assert skate.get(responses) == list(range(50))
    assert notes.read() == [str(n) for n in range(50)]


def test_sync_handlers_run_one_at_a_time_and_block_nobody(
    deploy: Deploy, http: httpx.Client, notes: Notes, gate: Gate
) -> None:
    @serve.deployment(max_ongoing_requests=10)
    class Mixed:
        def __call__(self, request: Any = None) -> str:
            notes.add("sync")
            gate.wait()
            return threading.current_thread().name

        async def quick(self) -> str:
            return threading.current_thread().name

        def check_health(self) -> None:
            notes.add("health")

    handle = deploy(Mixed.bind())
    blocked = [handle.remote() for _ in range(3)]
    until(lambda: notes.has("sync"))
    assert handle.quick.remote().result(timeout_s=5) == "MainThread"
    assert http.get("/-/healthz").status_code == 200
    assert notes.read().count("sync") == 1
    gate.open()
    assert len({name for name in skate.get(blocked)} - {"MainThread"}) == 1


def test_four_threads_run_four(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    @serve.deployment(max_ongoing_requests=10, max_threads=4)
    class Four:
        def __call__(self) -> None:
            notes.add("in")
            gate.wait()

    handle = deploy(Four.bind())
    responses = [handle.remote() for _ in range(6)]
    until(lambda: notes.has("in", 4))
    gate.open()
    skate.get(responses)
    assert notes.read().count("in") == 6


def test_two_replicas_share_the_work(deploy: Deploy) -> None:
    @serve.deployment(num_replicas=2)
    class Pid:
        async def __call__(self) -> int:
            await asyncio.sleep(0)
            return os.getpid()

    handle = deploy(Pid.bind())
    until(lambda: handle.remote().result() != handle.remote().result())  # both are connected
    pids = set(skate.get([handle.remote() for _ in range(60)]))
    assert len(pids) == 2 and os.getpid() not in pids
    replicas = serve.status().applications["a1"].deployments["Pid"].replicas
    assert pids == {replica.pid for replica in replicas}


def test_more_work_goes_to_the_free_replica(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    @serve.deployment(num_replicas=2, max_ongoing_requests=2)
    class Pid:
        async def __call__(self, hold: bool) -> int:
            if hold:
                notes.add(os.getpid())
                await gate.passed()
            return os.getpid()

    handle = deploy(Pid.bind())
    held = [handle.remote(True) for _ in range(3)]  # 2 and 1, so one slot is left
    until(lambda: len(notes.read()) == 3)
    full = max(set(notes.read()), key=notes.read().count)
    assert {str(pid) for pid in skate.get([handle.remote(False) for _ in range(10)])} == set(notes.read()) - {full}
    gate.open()
    assert len(set(skate.get(held))) == 2


def test_a_full_queue_is_back_pressure(deploy: Deploy, http: httpx.Client, notes: Notes, gate: Gate) -> None:
    @serve.deployment(max_ongoing_requests=1, max_queued_requests=1)
    class Small:
        async def __call__(self, request: Any = None) -> str:
            notes.add("in")
            await gate.passed()
            return "done"

    handle = deploy(Small.bind())
    first = handle.remote()
    until(lambda: notes.has("in"))
    second = handle.remote()
    with pytest.raises(BackPressureError, match="Small") as full:
        handle.remote().result(timeout_s=5)
    assert full.value.retry_after_s == 1
    with ThreadPoolExecutor() as pool, httpx.Client(base_url=http.base_url, trust_env=False) as other:
        waiting = pool.submit(other.get, "/a1")  # a caller of its own, with a queue of its own
        until(lambda: serve.status().calls.open == 3)
        answer = http.get("/a1")
        assert answer.status_code == 503 and "Small" in answer.text
        assert int(answer.headers["retry-after"]) >= 1
        gate.open()
        assert waiting.result().text == "done"
    assert skate.get([first, second]) == ["done", "done"]


def test_replicas_with_many_cpus_start_on_a_small_machine(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment(ray_actor_options={"num_cpus": 4})
    class Leaf:
        def __call__(self) -> int:
            return 1

    @serve.deployment(ray_actor_options={"num_cpus": 4, "num_gpus": 0})
    class Root:
        def __init__(self, *leaves: Any) -> None:
            self.leaves = leaves

        async def __call__(self, request: Request) -> int:
            return sum([await leaf.remote() for leaf in self.leaves])

    deploy(Root.bind(Leaf.bind(), Leaf.bind()))
    assert http.get("/a1").json() == 2


def test_context_of_a_replica(deploy: Deploy) -> None:
    @serve.deployment
    class Who:
        def __init__(self) -> None:
            self.early = serve.get_replica_context()

        def __call__(self) -> Any:
            here = serve.get_replica_context()
            same = here.servable_object is self
            return here.app_name, here.deployment, here.replica_id, self.early.replica_id, here.replica_tag, same

        async def refused(self) -> list[str]:
            found = []
            for what in (serve.start, serve.shutdown, lambda: serve.run(None)):  # type: ignore[arg-type]
                try:
                    what()
                except RuntimeError as error:
                    found.append(str(error))
            return found

    handle = deploy(Who.bind())
    app, name, id, early, tag, same = handle.remote().result()
    (replica,) = serve.status().applications["a1"].deployments["Who"].replicas
    assert (app, name, same) == ("a1", "Who", True)
    assert id == early == tag == replica.id
    refused = handle.refused.remote().result()
    assert len(refused) == 3 and all("inside a replica" in text for text in refused)
    with pytest.raises(RuntimeError, match="outside a replica"):
        serve.get_replica_context()
    with pytest.raises(RuntimeError, match="outside a request"):
        serve.get_request_context()


def test_processes_name_themselves(deploy: Deploy, instance: Instance) -> None:
    @serve.deployment
    def named() -> None: ...

    deploy(named.bind())
    (replica,) = serve.status().applications["a1"].deployments["named"].replicas
    titles = {line for _, line in processes_of(instance.session)}
    assert {"skate: controller", "skate: proxy 0", "skate: supervisor", f"skate: replica {replica.id}"} <= titles
    assert replica.id.startswith("a1/named#")
