"""HTTP hello: a plain deployment with one replica beside uvicorn with a bare Starlette route."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from benchmarks import load, processes
from benchmarks.apps.deployments import Hello, SyncHello, WideHello
from benchmarks.load import Load
from benchmarks.report import Figure, Section, Target
from skate import serve

PEER = "uvicorn + Starlette route"
MANY = 64  # connections
SIDE_ROUNDS = 2  # of what is only for information

Field = Callable[[Load], float]


def measure(rounds: int, seconds: int, which: str) -> Section:
    """Needs a running instance; deploys what it measures and deletes it."""
    serve.run(Hello.bind(), name="hello")
    serve.run(WideHello.bind(), name="wide", route_prefix="/wide")
    serve.run(SyncHello.bind(), name="sync", route_prefix="/sync")
    own = skate_url()
    port = processes.free_port()
    with processes.child(["-m", "benchmarks.peers.asgi", str(port), "http"]) as peer:
        processes.wait_http(port, peer, "/hello")
        other = f"http://{processes.HOST}:{port}/hello"
        runs: dict[str, list[Load]] = {}
        spent: dict[str, list[float]] = {}
        mine, theirs = instance_pids(), [peer.pid]

        def once(name: str, url: str, connections: int, pids: list[int]) -> None:
            before = processes.cpu_s(pids)
            seen = load.measure(which, url, connections, seconds)
            runs.setdefault(name, []).append(seen)
            spent.setdefault(name, []).append((processes.cpu_s(pids) - before) / seen.requests * 1e6)

        for url in (other, own, own + "wide", own + "sync"):
            load.measure(which, url, 8, 1)  # nobody's first requests are counted
        for number in range(rounds):
            once("peer 1", other, 1, theirs)
            once("skate 1", own, 1, mine)
            once("peer 64", other, MANY, theirs)
            once("skate 64", own, MANY, mine)
            if number < SIDE_ROUNDS:
                once("wide 64", own + "wide", MANY, mine)
                once("sync 64", own + "sync", MANY, mine)
    for app in ("hello", "wide", "sync"):
        serve.delete(app)
    return Section(
        f"HTTP hello from one replica, load by {which}",
        figures(runs, spent if processes.have_proc() else {}),
        peer=PEER,
        remarks=(f"load by {which}; figures of another load generator do not compare with these",),
        details={name: [msgspec.structs.asdict(run) for run in seen] for name, seen in runs.items()},
    )


def figures(runs: dict[str, list[Load]], spent: dict[str, list[float]]) -> tuple[Figure, ...]:
    """The lines of the table from the runs of the load generator and the CPU time spent meanwhile."""

    def pair(name: str, unit: Any, connections: int, field: Field, target: Target | None = None) -> Figure:
        own = tuple(map(field, runs[f"skate {connections}"]))
        other = tuple(map(field, runs[f"peer {connections}"]))
        return Figure(name, unit, own, other, target)

    def alone(name: str, kind: str) -> Figure:
        own = tuple(run.rate for run in runs[f"{kind} {MANY}"])
        return Figure(name, "/s", own, tuple(run.rate for run in runs[f"peer {MANY}"])[: len(own)])

    lines = [
        pair("64 connections: requests", "/s", MANY, lambda run: run.rate, Target(0.6, ">=", "ratio")),
        pair("64 connections: p50", "µs", MANY, lambda run: run.p50_us),
        pair("64 connections: p99", "µs", MANY, lambda run: run.p99_us),
        pair("1 connection: p50", "µs", 1, lambda run: run.p50_us, Target(2.0, "<=", "ratio")),
        pair("1 connection: p99", "µs", 1, lambda run: run.p99_us),
        pair("1 connection: requests", "/s", 1, lambda run: run.rate),
        alone("64 connections, max_ongoing_requests=64", "wide"),
        alone("64 connections, handler is a def", "sync"),
    ]
    for connections in (MANY, 1) if spent else ():
        name = f"{connections} connection{'s' if connections > 1 else ''}: CPU a request, all processes"
        own, other = spent[f"skate {connections}"], spent[f"peer {connections}"]
        lines.append(Figure(name, "µs", tuple(own), tuple(other)))
    return tuple(lines)


def skate_url() -> str:
    """Where the running instance serves, with a slash at the end."""
    proxies = serve.status().proxies.values()
    return f"http://{next(iter(proxies)).address}/"


def instance_pids() -> list[int]:
    """All processes of the running instance: the supervisor and what it forked."""
    if not processes.have_proc():
        return []
    return processes.family(processes.parent(serve.status().controller_pid))
