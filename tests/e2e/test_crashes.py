"""Replicas that die: what they had in hand ends at once, what waited is served, the replica is replaced."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from starlette.requests import Request

import skate
from skate import serve
from skate.controlplane import instance as instances
from skate.core.errors import ReplicaDiedError
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate, Notes
from tests.e2e.world import Instance, calls, client, descriptors_of, processes_of, until


def fragile(notes: Notes, gate: Gate, **options: Any) -> Any:
    @serve.deployment(name="Fragile", **options)
    class Fragile:
        async def __call__(self, request: Request) -> str:
            what = request.query_params.get("what", "")
            return await self.act(what)

        async def act(self, what: str) -> str:
            notes.add(what)
            if what == "die":
                os._exit(9)
            if what == "hold":
                await gate.passed()
            return f"{what} {os.getpid()}"

        def sync(self, what: str) -> str:
            notes.add(what)
            if what == "die":
                os._exit(9)
            gate.wait()
            return what

        async def stream(self) -> Any:
            yield 1
            await gate.passed()

    return Fragile.bind()


def ready() -> list[int]:
    """The pids of the replicas that are ready."""
    replicas = serve.status().applications["a1"].deployments["Fragile"].replicas
    return [replica.pid for replica in replicas if replica.phase == "ready"]


def replica() -> int:
    """The pid of the one replica."""
    (only,) = until(ready)
    return only


@pytest.mark.parametrize("kind", ["act", "sync"])
def test_os_exit_in_a_handler(deploy: Deploy, notes: Notes, gate: Gate, kind: str) -> None:
    handle = deploy(fragile(notes, gate, max_ongoing_requests=2))
    before = replica()
    started = handle.act.remote("hold")
    until(lambda: notes.has("hold"))
    dying = getattr(handle, kind).remote("die")
    waiting = [handle.act.remote(n) for n in range(5)]
    for response in (started, dying):
        with pytest.raises(ReplicaDiedError, match="died"):
            response.result(timeout_s=5)
    answers = skate.get(waiting, timeout_s=10)
    after = {int(answer.split()[1]) for answer in answers}
    assert after == {replica()} and before not in after
    assert notes.read().count("die") == 1  # what was started is not started again
    until(lambda: calls().lost >= 2)


def test_kill_from_outside(deploy: Deploy, instance: Instance, notes: Notes, gate: Gate) -> None:
    handle = deploy(fragile(notes, gate, max_ongoing_requests=2))
    before = calls()
    with ThreadPoolExecutor() as pool, client(instance.url) as http:
        held = [pool.submit(http.get, "/a1?what=hold") for _ in range(2)]
        until(lambda: notes.has("hold", 2))
        waiting = [pool.submit(http.get, "/a1?what=next") for _ in range(3)]
        until(lambda: serve.status().calls.open == 5)
        stream_waits = handle.options(stream=True).stream.remote()
        os.kill(replica(), signal.SIGKILL)
        for answer in held:
            assert answer.result().status_code == 500
            assert "died" in answer.result().text and "Traceback" not in answer.result().text
        assert [answer.result().text.split()[0] for answer in waiting] == ["next"] * 3
        assert next(stream_waits) == 1
        stream_waits.cancel()
    until(lambda: calls().lost - before.lost == 2)
    assert serve.status().applications["a1"].status == "RUNNING"


def test_what_is_marked_is_executed_again_by_another_replica(
    deploy: Deploy, instance: Instance, notes: Notes, gate: Gate
) -> None:
    handle = deploy(fragile(notes, gate, num_replicas=2, retry={"__call__": 1, "stream": 1}))
    until(lambda: len(ready()) == 2)
    before = calls()
    with ThreadPoolExecutor() as pool, client(instance.url) as http:
        asked = pool.submit(http.get, "/a1?what=hold")
        until(lambda: notes.has("hold"))
        unmarked = [handle.act.remote("hold") for _ in range(2)]
        marked = [handle.options(retry=2).act.remote("hold") for _ in range(2)]
        until(lambda: notes.has("hold", 5))
        begun = handle.options(stream=True).stream.remote()
        assert next(begun) == 1
        for pid in ready():
            os.kill(pid, signal.SIGKILL)
        for response in unmarked:
            with pytest.raises(ReplicaDiedError, match="retry="):
                response.result(timeout_s=5)
        with pytest.raises(ReplicaDiedError):
            next(begun)
        until(lambda: notes.has("hold", 8))
        gate.open()
        assert asked.result().status_code == 200
        assert [answer.split()[0] for answer in skate.get(marked, timeout_s=10)] == ["hold"] * 2
    assert notes.read().count("hold") == 8
    until(lambda: calls().lost - before.lost == 3 and calls().retried - before.retried >= 3)


def test_a_stream_of_a_dead_replica_ends_with_its_error(
    deploy: Deploy, instance: Instance, notes: Notes, gate: Gate
) -> None:
    handle = deploy(fragile(notes, gate))
    stream = handle.options(stream=True).stream.remote()
    assert next(stream) == 1
    os.kill(replica(), signal.SIGKILL)
    with pytest.raises(ReplicaDiedError):
        next(stream)


def test_the_other_replica_takes_over_at_once(
    deploy: Deploy, instance: Instance, http: httpx.Client, notes: Notes, gate: Gate
) -> None:
    deploy(fragile(notes, gate, num_replicas=2))
    for _ in range(10):
        assert http.get("/a1?what=go").status_code == 200
    one, other = serve.status().applications["a1"].deployments["Fragile"].replicas
    first, second = one.pid, other.pid
    os.kill(first, signal.SIGKILL)
    answers = [http.get("/a1?what=go") for _ in range(30)]
    assert {answer.status_code for answer in answers} == {200}
    assert {first, second} >= {int(answers[0].text.split()[1])}
    until(
        lambda: (
            len([r for r in serve.status().applications["a1"].deployments["Fragile"].replicas if r.phase == "ready"])
            == 2
        )
    )
    until(lambda: not list(instance.runtime_dir.rglob(f"r-{one.id.rpartition('#')[2]}.sock")))  # nothing is left of it


def test_the_proxy_comes_back(deploy: Deploy, instance: Instance, notes: Notes, gate: Gate) -> None:
    deploy(fragile(notes, gate))
    proxy = serve.status().proxies["0"].pid
    with client(instance.url) as http:
        assert http.get("/a1?what=go").status_code == 200
        os.kill(proxy, signal.SIGKILL)  # with a connection open: its port must be free all the same
        until(
            lambda: (
                serve.status().proxies["0"].pid not in (0, proxy) and serve.status().proxies["0"].status == "HEALTHY"
            )
        )
    with client(instance.url) as http:
        assert http.get("/a1?what=go").status_code == 200


def test_the_controller_comes_back_and_traffic_does_not_stop(
    deploy: Deploy, instance: Instance, notes: Notes, gate: Gate
) -> None:
    handle = deploy(fragile(notes, gate))
    before = serve.status()
    line = instances.find()._client
    assert line is not None
    os.kill(before.controller_pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as another:
        asked = another.submit(serve.status)
        until(lambda: line.peer.sinks)
        os.kill(before.controller_pid, signal.SIGKILL)  # with a question in hand: its successor answers
        with client(instance.url) as http:
            answers = [http.get("/a1?what=go").text for _ in range(20)]
        assert asked.result().controller_pid not in (0, before.controller_pid)
    assert set(answers) == {f"go {before.applications['a1'].deployments['Fragile'].replicas[0].pid}"}
    until(lambda: serve.status().applications["a1"].status == "RUNNING")
    assert replica() == before.applications["a1"].deployments["Fragile"].replicas[0].pid
    assert handle.act.remote("go").result().startswith("go")
    deploy(fragile(notes, gate), "a2")
    assert serve.get_app_handle("a2").act.remote("new").result().startswith("new")


@pytest.mark.parametrize("with_controller", [False, True])
def test_the_supervisor_is_killed_and_traffic_does_not_stop(
    deploy: Deploy, instance: Instance, notes: Notes, gate: Gate, with_controller: bool
) -> None:
    deploy(fragile(notes, gate))
    before, adopted = serve.status(), replica()
    supervisor = until(lambda: (pids := supervisors(instance)) and len(pids) == 2 and pids[0])
    if with_controller:
        os.kill(before.controller_pid, signal.SIGKILL)
    os.kill(supervisor, signal.SIGKILL)
    with client(instance.url) as http:
        assert {http.get("/a1?what=go").text for _ in range(20)} == {f"go {adopted}"}
        assert (serve.status().controller_pid != before.controller_pid) == with_controller
        os.kill(adopted, signal.SIGKILL)  # whoever goes on sees it, and forks another one
        until(lambda: ready() not in ([], [adopted]))
        assert http.get("/a1?what=go").text == f"go {replica()}"
    serve.delete("a1")


def supervisors(instance: Instance) -> list[int]:
    """The present one and its standby, in this order."""
    titles = {line: pid for pid, line in processes_of(instance.session)}
    return [titles[title] for title in ("skate: supervisor", "skate: standby") if title in titles]


def test_deaths_leave_no_descriptors(deploy: Deploy, instance: Instance, notes: Notes, gate: Gate) -> None:
    handle = deploy(fragile(notes, gate))
    proxy = serve.status().proxies["0"].pid
    with client(instance.url) as http:
        http.get("/a1?what=go")
        seen: list[int] = []
        for _ in range(4):
            os.kill(replica(), signal.SIGKILL)
            assert http.get("/a1?what=go").status_code in (200, 500)
            until(lambda: handle.act.remote("go").result(timeout_s=5))
            seen.append(descriptors_of(proxy) + descriptors_of(serve.status().controller_pid))
        assert seen[-1] <= seen[0] + 1, seen
