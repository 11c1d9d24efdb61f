"""Starting: a script until its first answers, one further replica, one that replaces a killed one. And being idle.

The script is started as a user does, ``python light.py``, with files and byte code already in the system's cache.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

from benchmarks import processes
from benchmarks.apps.deployments import Echo
from benchmarks.processes import Cost, ProcessError
from benchmarks.report import Figure, Section, Target
from skate import serve

LIGHT = str(Path(__file__).parent.parent / "apps" / "light.py")
SETTLE_S = 1.0  # after the start, before idleness is measured
REPLACED_MAX_S = 10.0
APP = "scale"


# -- the script -----------------------------------------------------------------------------------


@contextlib.contextmanager
def light() -> Iterator[tuple[subprocess.Popen[str], float, float]]:
    """The light script, started and ended; the seconds to the first HTTP answer and to the first of its handle."""
    port = processes.free_port()
    began = monotonic()
    with processes.child([LIGHT, str(port)], stdout=subprocess.PIPE) as script:
        http_s = processes.wait_http(port, script) - began
        assert script.stdout is not None
        words = script.stdout.readline().split()
        if len(words) != 2 or words[0] != "light":
            raise ProcessError(f"the light script said {words!r}")
        yield script, http_s, float(words[1]) - began


def measure_start(rounds: int, idle_s: float) -> tuple[Section, Section]:
    """Starts the script several times; the last one is left idle for ``idle_s`` seconds."""
    http: list[float] = []
    handle: list[float] = []
    idle = Section("Idle")
    with light():
        pass  # fills the caches
    for number in range(rounds):
        with light() as (script, http_s, handle_s):
            http.append(http_s)
            handle.append(handle_s)
            if number == rounds - 1:
                idle = measure_idle(script.pid, idle_s)
    target = Target(1.5, "<=")
    figures = (
        Figure("python app.py to the first HTTP answer", "s", tuple(http), target=target),
        Figure("python app.py to the first handle answer", "s", tuple(handle), target=target),
    )
    return Section("Start", figures), idle


def measure_idle(script_pid: int, seconds: float) -> Section:
    """CPU and memory of an instance that has nothing to do, the script that started it included."""
    if not processes.have_proc():
        return Section("Idle", failure="this system has no /proc; on Linux it is measured")
    sleep(SETTLE_S)
    pids = processes.family(script_pid)
    before, began = processes.cpu_s(pids), monotonic()
    sleep(seconds)
    percent = (processes.cpu_s(pids) - before) / (monotonic() - began) * 100
    named = [(title(cost, script_pid), cost) for cost in map(processes.cost, pids)]
    pss, private = ([getattr(cost, field) for _, cost in named] for field in ("pss_mb", "private_mb"))
    return Section(
        f"Idle, the whole instance of {len(pids)} processes over {seconds:g} s",
        (
            Figure("CPU of one core", "%", (percent,), target=Target(1.0, "<")),
            Figure("memory of the largest process (PSS)", "MB", (max(pss),), target=Target(60, "<")),
            Figure("memory of the largest process (private)", "MB", (max(private),)),
            Figure("memory of all processes (PSS)", "MB", (sum(pss),)),
        ),
        remarks=tuple(
            f"{name}: PSS {c.pss_mb:.1f} MB, private {c.private_mb:.1f} MB, threads {c.threads}" for name, c in named
        ),
        details={name: {"pss_mb": c.pss_mb, "private_mb": c.private_mb, "threads": c.threads} for name, c in named},
    )


def title(cost: Cost, script_pid: int) -> str:
    """A name for the table: what the process calls itself, without ids and folders."""
    return "the script" if cost.pid == script_pid else cost.title.partition("#")[0].removeprefix("skate: ")


# -- replicas -------------------------------------------------------------------------------------


def measure_replicas(rounds: int, kills: int) -> Section:
    """Needs a running instance. Scales by one several times, then kills the only replica several times."""
    scaled = [scale_up_ms(count) for count in range(1, rounds + 2)][1:]
    serve.delete(APP)
    scale_up_ms(1)
    replaced = [replace_ms() for _ in range(kills)]
    serve.delete(APP)
    figures = (
        Figure("one more replica, from serve.run to ready", "ms", tuple(scaled), target=Target(150, "<=")),
        Figure("kill -9 of the only replica to the next answer", "ms", tuple(replaced)),
    )
    return Section("Replicas of a light class", figures)


def scale_up_ms(count: int) -> float:
    """From the beginning of ``serve.run`` with so many replicas to the moment the newest one was ready.

    The controller says for how long each replica has been ready, so it does not matter when it is asked.
    """
    before = ready_for_s()
    began = monotonic()
    serve.run(Echo.options(num_replicas=count).bind(), name=APP, route_prefix=None)
    asked = ready_for_s()
    now = monotonic()
    fresh = [seconds for id, seconds in asked.items() if id not in before]
    if len(asked) < count:
        raise ProcessError(f"{len(asked)} of {count} replicas are ready after serve.run")
    return (now - min(fresh) - began) * 1000 if fresh else 0.0


def ready_for_s() -> dict[str, float]:
    """For how many seconds each replica has been ready."""
    app = serve.status().applications.get(APP)
    replicas = app.deployments["Echo"].replicas if app is not None else ()
    return {replica.id: replica.phase_s for replica in replicas if replica.phase == "ready"}


def replace_ms() -> float:
    """From the kill of the only replica to an answer of the next one, through the same handle."""
    handle = serve.get_app_handle(APP)
    handle.echo.remote(1).result(timeout_s=REPLACED_MAX_S)
    (pid,) = (one.pid for one in serve.status().applications[APP].deployments["Echo"].replicas if one.phase == "ready")
    began = monotonic()
    os.kill(pid, signal.SIGKILL)
    until = began + REPLACED_MAX_S
    while True:
        try:
            handle.echo.remote(1).result(timeout_s=REPLACED_MAX_S)
            return (monotonic() - began) * 1000
        except Exception:  # the one that was under way when it died
            if monotonic() > until:
                raise
