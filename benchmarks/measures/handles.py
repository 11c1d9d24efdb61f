"""Handle calls: from replica to replica, measured inside the calling replica, and from a script."""

from __future__ import annotations

import os
import subprocess
import sys
from time import perf_counter

import msgspec

from benchmarks import processes
from benchmarks.apps.deployments import BESIDE_MAX, SAMPLE_MAX, Driver, Echo, WideEcho
from benchmarks.report import Figure, Section, Target
from benchmarks.stats import percentile
from skate import serve

FLOOR = "a bare socket, 64 bytes there and back"
IN_FLIGHT = BESIDE_MAX


def measure(rounds: int, seconds: float, folder: str) -> Section:
    """Needs a running instance; deploys what it measures and deletes it. ``folder``: for the socket of the floor."""
    driver = serve.run(Driver.bind(Echo.bind(), WideEcho.bind()), name="driver", route_prefix=None)
    echo = serve.get_deployment_handle("Echo", "driver")
    seen: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        seen.setdefault(name, []).append(value)

    path = os.path.join(folder, "floor.sock")
    with processes.child(["-m", "benchmarks.peers.echo", path]):
        for _ in range(rounds):
            note("floor", floor_p50_us(path, seconds))
            one = driver.latency.remote(seconds).result()
            note("p50", one["p50_us"])
            note("p99", one["p99_us"])
            note("wide", driver.rate.remote(seconds, IN_FLIGHT, "wide").result())
            note("default", driver.rate.remote(seconds, IN_FLIGHT, "default").result())
            note("stream", driver.stream_rate.remote(seconds, "items").result())
            note("sync stream", driver.stream_rate.remote(seconds, "sync_items").result())
            note("script", script_p50_us(echo, seconds))
    serve.delete("driver")
    return Section("Handle call, replica to replica", figures(seen), FLOOR)


def figures(seen: dict[str, list[float]]) -> tuple[Figure, ...]:
    """The lines of the table from the rounds."""
    rounds = {name: tuple(values) for name, values in seen.items()}
    floor = rounds["floor"]
    return (
        Figure("1 in flight: p50", "µs", rounds["p50"], floor, Target(150, "<=")),
        Figure("1 in flight: p99", "µs", rounds["p99"]),
        Figure(f"{IN_FLIGHT} in flight: calls", "/s", rounds["wide"], target=Target(30_000, ">=")),
        Figure(f"{IN_FLIGHT} under way, callee takes 5 at once (default)", "/s", rounds["default"]),
        Figure("streaming: items", "/s", rounds["stream"], target=Target(100_000, ">=")),
        Figure("streaming, generator is a def", "/s", rounds["sync stream"]),
        Figure("from a script, .remote().result(): p50", "µs", rounds["script"], floor),
    )


def floor_p50_us(path: str, seconds: float) -> float:
    """One bare round trip between two processes, now."""
    command = [sys.executable, "-m", "benchmarks.peers.echo", path, str(seconds)]
    done = subprocess.run(command, capture_output=True, timeout=seconds + 20, check=True)
    return float(msgspec.json.decode(done.stdout)["p50_us"])


def script_p50_us(echo: serve.DeploymentHandle[object], seconds: float) -> float:
    """One call after the other from this process, which has no loop of its own."""
    times: list[float] = []
    until = perf_counter() + seconds
    while (began := perf_counter()) < until and len(times) < SAMPLE_MAX:
        echo.echo.remote(1).result(timeout_s=10)
        times.append(perf_counter() - began)
    return percentile(times, 50) * 1e6
