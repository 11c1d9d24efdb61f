"""The control plane at work on a real instance: scaling, updates and deaths, most of them under a steady load.

Law: times are from the monotonic clock, from the moment something is asked for to the moment it is seen; requests are
counted by when they were due. Needs a running instance with two proxies; what is deployed here is deleted here.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from time import monotonic, sleep
from typing import Any

from benchmarks import processes
from benchmarks.control_apps import HELLO, Light
from benchmarks.control_load import WARM_S, Load, Window
from benchmarks.report import Figure, Section, Target
from skate import serve
from skate.controlplane import instance as instances
from skate.core.errors import SkateError
from skate.core.specs import ServeStatus
from skate.engine.runtime_dir import STANDBY, read_pid, running_pid

APP, KEY = "bench", "Light"
RATE = 2000.0  # requests per second
REPLICAS = 8
MANY, SHOWN = 50, 100
ROUNDS = 3
BEFORE_S = 2.0  # of load, for the figures that those during a change are held against
AFTER_S = 0.5  # that still counts as during: what is late comes after
LIMIT_S = 20.0  # for anything that is waited for
POLL_S = 0.005
IDLE_S = 3.0
TO_ZERO_S = 0.5  # without a call
ZERO_ROUNDS = 10
ZERO_PAUSE_S = 0.2  # at zero, until the call
P99_MAX = 3.0  # times the p99 before


class MeasureError(Exception):
    """Something did not come about within its limit."""


def until(true: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """What it gives as soon as that is true. Raises MeasureError."""
    end = monotonic() + limit_s
    while not (found := true()):
        if monotonic() > end:
            raise MeasureError(f"still not after {limit_s:g} s: {true.__name__}")
        sleep(POLL_S)
    return found


def status() -> ServeStatus:
    """What the controller says; empty while it is away."""
    try:
        return serve.status()
    except SkateError:
        return ServeStatus()


def port() -> int:
    """Where the proxies listen."""
    return int(serve.status().proxies["0"].address.rpartition(":")[2])


def replicas(seen: ServeStatus) -> dict[str, int]:
    """The pids of the replicas that are ready, by id."""
    app = seen.applications.get(APP)
    found = app.deployments[KEY].replicas if app is not None else ()
    return {one.id: one.pid for one in found if one.phase == "ready"}


def run(count: int, version: int = 1, factor: int = 0) -> None:
    """Deploys the light application and waits until it runs."""
    app = Light.options(num_replicas=count, user_config={"factor": factor}).bind(version)
    serve.run(app, name=APP, route_prefix=f"/{APP}")


@contextmanager
def deployed(count: int) -> Iterator[None]:
    """The application, for a block."""
    run(count)
    try:
        yield
    finally:
        serve.delete(APP)


def scale(count: int) -> None:
    """Wants so many replicas."""
    instance = instances.find()

    async def ask() -> None:
        await (await instance.client()).scale(APP, KEY, count)

    instance.run(ask(), LIMIT_S)


# -- without load -----------------------------------------------------------------------------------


def measure_scaling() -> Section:
    """From one replica to many and back; the status of many; an idle controller."""
    up: list[float] = []
    down: list[float] = []
    with deployed(1):
        for _ in range(ROUNDS):
            began = monotonic()
            scale(MANY)
            until(lambda: len(replicas(status())) == MANY)
            up.append(monotonic() - began)
            began = monotonic()
            scale(1)
            until(lambda: len(status().applications[APP].deployments[KEY].replicas) == 1)
            down.append(monotonic() - began)
    figures = (
        Figure(f"1 to {MANY} light replicas, all ready", "s", tuple(up), target=Target(3.0, "<=")),
        Figure(f"{MANY} to 1, all gone", "s", tuple(down)),
    )
    return Section("Scaling", figures)


def measure_many() -> Section:
    """The status of many real replicas, and what a controller of them does when nothing happens."""
    with deployed(SHOWN):
        asked: list[float] = []
        for _ in range(20):
            began = monotonic()
            seen = serve.status()
            asked.append((monotonic() - began) * 1000)
        if len(replicas(seen)) != SHOWN:
            raise MeasureError(f"the status shows {len(replicas(seen))} of {SHOWN} replicas")
        sleep(1.0)  # the counts of calls are told half a second later
        percent, switches = idle(seen.controller_pid)
    figures = (
        Figure("serve.status() over its socket", "ms", tuple(asked), target=Target(50.0, "<")),
        Figure("an idle controller: CPU of one core", "%", (percent,), target=Target(0.1, "<")),
        Figure(f"... its wake-ups in {IDLE_S:g} s", "", (switches,)),
    )
    return Section(f"{SHOWN} real replicas", figures)


def idle(pid: int) -> tuple[float, float]:
    """Per cent of a core that a process uses in some seconds, and how often it was woken."""
    used, switched, began = processes.cpu_s([pid]), switches_of(pid), monotonic()
    sleep(IDLE_S)
    percent = (processes.cpu_s([pid]) - used) / (monotonic() - began) * 100
    return percent, float(switches_of(pid) - switched)


def switches_of(pid: int) -> int:
    """How often all threads of a process went to sleep by themselves."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status", encoding="utf-8") as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))
    return total


def measure_zero() -> Section:
    """The first answer of a deployment that has no replica."""
    answered: list[float] = []
    scaling = {"min_replicas": 0, "max_replicas": 2, "downscale_delay_s": TO_ZERO_S, "look_back_period_s": TO_ZERO_S}
    serve.run(Light.options(autoscaling_config=scaling).bind(), name=APP, route_prefix=f"/{APP}")
    try:
        for _ in range(ZERO_ROUNDS):
            until(lambda: not status().applications[APP].deployments[KEY].replicas)
            sleep(ZERO_PAUSE_S)
            client = HTTPConnection("127.0.0.1", port(), timeout=LIMIT_S)
            client.connect()
            began = monotonic()
            client.request("GET", f"/{APP}")
            answer = client.getresponse()
            text = answer.read().decode()
            if (answer.status, text) != (200, HELLO):
                raise MeasureError(f"the first answer was {answer.status}: {text}")
            answered.append((monotonic() - began) * 1000)
            client.close()
    finally:
        serve.delete(APP)
    figures = (Figure("no replica: the first answer", "ms", tuple(answered), target=Target(300.0, "<=")),)
    return Section("From zero", figures)


# -- under load -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What was seen while something was changed under load."""

    took_s: float
    before: Window
    during: Window


def under_load(change: Callable[[], None]) -> Change:
    """Requests at a constant rate for a while, then the change, then a moment more."""
    with Load(port(), f"/{APP}", RATE) as load:
        sleep(WARM_S + BEFORE_S)
        began = monotonic()
        change()
        ended = monotonic()
        sleep(AFTER_S)
    before = load.seen.between(load.began + WARM_S, began)
    return Change(ended - began, before, load.seen.between(began, ended + AFTER_S))


def figures_of(
    name: str, changes: list[Change], took: Target | None = None, lossless: bool = True
) -> tuple[Figure, ...]:
    """The figures of some rounds of one change. ``lossless``: no request may fail."""
    return (
        Figure(name, "s", tuple(one.took_s for one in changes), target=took),
        Figure(
            "... requests that failed",
            "",
            tuple(float(one.during.failed) for one in changes),
            target=Target(0, "<=") if lossless else None,
        ),
        Figure(
            "... p99, beside: before",
            "ms",
            tuple(one.during.ms(99) for one in changes),
            tuple(one.before.ms(99) for one in changes),
            Target(P99_MAX, "<=", "ratio") if lossless else None,
        ),
    )


def said(name: str, changes: list[Change]) -> tuple[str, ...]:
    """Why requests failed, for the table."""
    reasons: Counter[str] = Counter()
    for one in changes:
        reasons += one.during.failures
        if one.before.failed:
            reasons.update({f"before: {reason}": count for reason, count in one.before.failures.items()})
    return tuple(f"{name}: {count} x {reason}" for reason, count in reasons.most_common(5))


def measure_updates() -> Section:
    """Rolling updates and reconfigurations in place of all replicas."""
    versions = iter(range(2, 100))

    def update() -> None:
        run(REPLICAS, next(versions))
        until(lambda: len(status().applications[APP].deployments[KEY].replicas) == REPLICAS)

    with deployed(REPLICAS):
        updates = [under_load(update) for _ in range(ROUNDS)]
        version = next(versions) - 1
        pids = replicas(serve.status())
        changes = [under_load(lambda factor=factor: reconfigured(version, factor)) for factor in range(1, ROUNDS + 1)]  # type: ignore[misc]
        replaced = len(pids.items() - replicas(serve.status()).items())
    figures = figures_of(f"rolling update of {REPLICAS} replicas", updates)
    figures += figures_of(f"another user_config for {REPLICAS} replicas, in place", changes)
    figures += (Figure("... replicas that were replaced", "", (float(replaced),), target=Target(0, "<=")),)
    return Section(f"Changes under {RATE:,.0f} requests/s", figures, remarks=said("failed", updates + changes))


def reconfigured(version: int, factor: int) -> None:
    """Deploys another user_config and waits until every replica runs with it."""
    run(REPLICAS, version, factor)
    handle = serve.get_app_handle(APP)
    seen = [handle.state.remote().result(timeout_s=LIMIT_S) for _ in range(2 * REPLICAS)]
    if any(one != (version, factor) for one in map(tuple, seen)):
        raise MeasureError(f"after the deploy of {(version, factor)} replicas answered {seen}")


def measure_deaths() -> Section:
    """kill -9 of one process after the other under load. What is lost was in its hands."""
    deaths: tuple[tuple[str, Callable[[], None], Target | None, bool], ...] = (
        ("the controller, until it answers", kill_controller, Target(1.0, "<="), True),
        ("the supervisor, until its standby answers", kill_supervisor, Target(1.0, "<="), True),
        ("the standby, until there is another one", kill_standby, None, True),
        (f"one of {REPLICAS} replicas, until replaced", kill_replica, None, False),
        ("one of 2 proxies, until both listen", kill_proxy, None, False),
    )
    figures: list[Figure] = []
    remarks: list[str] = []
    with deployed(REPLICAS):
        for name, death, took, lossless in deaths:
            changes = [under_load(death) for _ in range(ROUNDS)]
            figures += figures_of(f"kill -9 of {name}", changes, took, lossless)
            remarks += said(name.partition(",")[0], changes)
    return Section(f"Deaths under {RATE:,.0f} requests/s", tuple(figures), remarks=tuple(remarks))


def kill(pid: int) -> None:
    """Raises MeasureError where there is no process: 0 would be all of our own."""
    if pid <= 1:
        raise MeasureError(f"there is no process {pid} to kill")
    os.kill(pid, signal.SIGKILL)


def family() -> tuple[int, int]:
    """The process ids of the supervisor and its standby, as soon as there are both."""
    folder = instances.find().runtime_dir

    def both() -> tuple[int, int] | None:
        primary, standby = read_pid(folder), read_pid(folder, STANDBY)
        if primary is None or standby is None or primary == standby or not os.path.exists(f"/proc/{standby}"):
            return None
        return primary, standby

    found: tuple[int, int] = until(both)
    return found


def kill_supervisor() -> None:
    """Until its standby has taken over; the next standby is waited for before."""
    primary, standby = family()
    kill(primary)
    until(lambda: running_pid(instances.find().runtime_dir) == standby)


def kill_standby() -> None:
    """Until there is another one."""
    _, standby = family()
    kill(standby)
    until(lambda: family()[1] != standby)


def kill_controller() -> None:
    """Until the next one answers."""
    pid = serve.status().controller_pid
    kill(pid)
    until(lambda: status().controller_pid not in (0, pid))


def kill_replica() -> None:
    """Until as many as before are ready."""
    before = replicas(serve.status())
    id, pid = next(iter(before.items()))
    kill(pid)
    until(lambda: len(found := replicas(status())) == REPLICAS and id not in found)


def kill_proxy() -> None:
    """Until all are healthy."""
    proxies = serve.status().proxies
    pid = proxies["1"].pid
    kill(pid)

    def back() -> bool:
        seen = status().proxies
        return len(seen) == len(proxies) and seen["1"].pid not in (0, pid) and seen["1"].status == "HEALTHY"

    until(back)
