"""How each kind of work is measured once, on a system that runs. Law: bounded; raises where nothing was measured."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from benchmarks import load
from benchmarks.load import LoadError
from benchmarks.suite.running import Running
from benchmarks.suite.works import IDEAL, Work

Values = dict[str, float]

SCRIPT = str(Path(__file__).parent.parent / "request.lua")
WARM_S, WARM_CONNECTIONS = 1, 8
CLIENT_MAX_S = 20.0  # beyond its own time
LOOK_S = 0.25  # at memory
SETTLE_S = 1.0
IDLE_S = 1.0
UNEVEN_SEED = 7
CLOSED = 32  # callers that find the capacity; they and the queue of 40 never meet its limit


def spent(before: dict[int, float], after: dict[int, float]) -> float:
    """CPU seconds between two looks, of all that lived at the second."""
    return sum(used - before.get(pid, 0.0) for pid, used in after.items())


def by_load(one: Running, work: Work) -> Values:
    """wrk keeps so many connections busy; CPU time of all processes meanwhile."""
    request = one.system.request(work.path, work.body, work.size)
    script: tuple[str, ...] = ()
    if request.kind:
        body = one.folder / "body"
        body.write_bytes(request.body)
        script = (SCRIPT, request.method, request.kind, str(body))
    url = one.url + request.path
    if url not in one.warm:  # nobody's first requests are counted
        load.measure(load.WRK, url, WARM_CONNECTIONS, WARM_S, script)
        one.warm.add(url)
    before = one.cpu()
    seen = load.measure(load.WRK, url, work.connections, round(work.seconds), script)
    used = spent(before, one.cpu())
    return {
        "requests/s": seen.rate,
        "p50 µs": seen.p50_us,
        "p99 µs": seen.p99_us,
        "CPU µs": used / seen.requests * 1e6,
        "load cores": seen.cores,
    }


def client(kind: str, seconds: float, **told: Any) -> dict[str, Any]:
    """One of our own clients, in a process of its own. Raises LoadError."""
    command = [sys.executable, "-m", "benchmarks.clients", kind, json.dumps({"seconds": seconds, **told})]
    before = load.cpu_of_children()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + CLIENT_MAX_S)
    except subprocess.TimeoutExpired:
        raise LoadError(f"the client {kind!r} did not end in time") from None
    if done.returncode:
        raise LoadError(f"the client {kind!r} failed: {done.stderr.strip()[-500:]}")
    return {**json.loads(done.stdout), "load cores": round((load.cpu_of_children() - before) / seconds, 3)}


def by_websocket(one: Running, work: Work) -> Values:
    """16 bytes there and back on each of so many WebSockets."""
    before = one.cpu()
    seen = client("websocket", work.seconds, port=one.port, path=work.path, connections=work.connections)
    seen["CPU µs"] = spent(before, one.cpu()) / seen.pop("count") * 1e6
    return seen


def by_order(one: Running, work: Work) -> Values:
    """Callers in a circle, and who was overtaken."""
    seen = client("order", work.seconds, port=one.port, path=work.path, connections=work.connections)
    return {**seen, "of the ideal %": seen["requests/s"] / IDEAL * 100}


def by_uneven(one: Running, work: Work) -> Values:
    """The same arrivals twice: at the deployment, and by turns at its four replicas, each with a queue of its own."""
    told = {"port": one.port, "rate": work.told["rate"], "seed": UNEVEN_SEED}
    turns = [work.told["robin"]] if "robin" in work.told else [f"/turn{number}" for number in range(4)]
    own = client("offered", work.seconds, paths=[work.path], **told)
    robin = client("offered", work.seconds, paths=turns, **told)
    for seen in (own, robin):
        if seen["others"] or seen["refused/s"] or seen["unanswered"]:
            raise LoadError(f"not all were answered: {seen}")
    return {
        "p50 ms": own["admitted p50 ms"],
        "p99 ms": own["admitted p99 ms"],
        "p50 ms, round robin": robin["admitted p50 ms"],
        "p99 ms, round robin": robin["admitted p99 ms"],
        "of round robin's p99": own["admitted p99 ms"] / robin["admitted p99 ms"],
    }


def by_overload(one: Running, work: Work) -> Values:
    """The capacity, by callers in a circle; then twice of it, by arrivals that do not wait."""
    able = load.measure(load.WRK, one.url + work.path, CLOSED, 1).rate
    seen = client("offered", work.seconds, port=one.port, paths=[work.path], rate=2 * able)
    refusal = seen["refusal"]
    values = {
        "capacity/s": able,
        "offered/s": seen["offered/s"],
        "goodput/s": seen["good/s"],
        "goodput of capacity %": seen["good/s"] / able * 100,
        "admitted p99 ms": seen.get("admitted p99 ms", float("nan")),
        "refused/s": seen["refused/s"],
        "other ends": float(sum(seen["others"].values()) + seen["unanswered"]),
        "load cores": seen["load cores"],
    }
    if seen["refused/s"]:
        values["refused p50 ms"] = seen["refused p50 ms"]
        values["refused p99 ms"] = seen["refused p99 ms"]
        right = refusal["status"] == "503" and refusal.get("retry-after", "").isdigit()
        values["refusals with 503 and Retry-After"] = float(right)
    return values


def by_slow_readers(one: Running, work: Work) -> Values:
    """The largest growth of one process's private memory, and that of all, while nobody reads as fast as they write."""
    with contextlib.suppress(LoadError):  # a slow machine does not get it all in that time
        load.measure(load.WRK, one.url + work.path, 1, 2)
    sleep(SETTLE_S)
    before = {cost.pid: cost.private_mb for cost in one.costs()}
    most: dict[int, float] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_S):
            for cost in one.costs():
                grown = cost.private_mb - before.get(cost.pid, 0.0)
                most[cost.pid] = max(most.get(cost.pid, 0.0), grown)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        seen = client("slow readers", work.seconds, port=one.port, path=work.path, connections=work.connections)
    finally:
        ended.set()
        looking.join()
    if seen["readers that got something"] < work.connections:
        raise LoadError(f"only {seen['readers that got something']} of {work.connections} readers got something")
    return {
        "MB above idle, worst process": max(most.values()),
        "MB above idle, all": sum(most.values()),
        "read MB": seen["read MB"],
    }


def by_told(one: Running, work: Work) -> Values:
    """The driver inside measures; CPU time of all processes for each call or item."""
    told = dict(work.told)
    before = one.cpu()
    seen: Values = one.ask(told.pop("do"), **told)
    seen["CPU µs"] = spent(before, one.cpu()) / seen.pop("count") * 1e6  # the warm-up is in it, too
    return seen


def by_scale(one: Running, work: Work) -> Values:
    """From the call to the moment all replicas serve; the private memory of what came."""
    counts = work.told["counts"]
    one.ask("scale", one.system.start_max_s, count=counts[0] - 1 if len(counts) > 1 else 1)
    sleep(SETTLE_S)
    before = {cost.pid for cost in one.costs()}
    began_private = sum(cost.private_mb for cost in one.costs())
    took = [one.ask("scale", one.system.start_max_s, count=count) for count in counts]
    sleep(SETTLE_S)
    costs = one.costs()
    new = [cost for cost in costs if cost.pid not in before]
    grown = sum(cost.private_mb for cost in costs) - began_private
    more = counts[-1] - (counts[0] - 1 if len(counts) > 1 else 1)
    one.ask("scale", one.system.start_max_s, count=1)
    return {
        "ms": sorted(took)[len(took) // 2] * 1000,
        "private MB a replica": sum(cost.private_mb for cost in new) / max(1, len(new)),
        "private MB a replica, all processes": grown / more,
    }


def start(one: Running) -> Values:
    """Of a fresh one: seconds to the first answer, then what it costs to have it."""
    sleep(SETTLE_S)
    before, began = one.cpu(), monotonic()
    sleep(IDLE_S)
    idle = spent(before, one.cpu()) / (monotonic() - began)
    return {"s to the first answer": one.started_s, "idle CPU %": idle * 100, **memory(one)}


def memory(one: Running) -> Values:
    """Of all processes of a system."""
    costs = one.costs()
    return {
        "processes": float(len(costs)),
        "private MB": sum(cost.private_mb for cost in costs),
        "PSS MB": sum(cost.pss_mb for cost in costs),
        "largest process, private MB": max(cost.private_mb for cost in costs),
    }


METHODS: dict[str, Callable[[Running, Work], Values]] = {
    "load": by_load,
    "websocket": by_websocket,
    "order": by_order,
    "uneven": by_uneven,
    "overload": by_overload,
    "slow readers": by_slow_readers,
    "told": by_told,
    "scale": by_scale,
}
