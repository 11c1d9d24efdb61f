"""HTTP load: wrk where it is on PATH, else a client of our own in a process of its own.

Law: both keep N connections busy, each with one request at a time, for a number of seconds, and take no answer but 200.
Figures of the two do not compare: wrk is C and costs a few microseconds a request, ours is Python and costs some
thirty on the same cores, so the servers look slower and closer together. ``python -m benchmarks.load`` is ours.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from time import perf_counter
from urllib.parse import urlsplit

import msgspec
import uvloop

from benchmarks.stats import percentile

SECONDS_MAX = 60
CONNECTIONS_MAX = 1024
PATIENCE_S = 20.0  # beyond the time of the load itself
HEAD_MAX = 64 * 1024

WRK, OWN = "wrk", "bundled client"


class LoadError(Exception):
    """The load generator failed, or the server answered with something else than 200."""


class Load(msgspec.Struct, frozen=True):
    """What one run of a load generator saw. Times in microseconds, for single requests."""

    requests: int
    seconds: float
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    cores: float = 0.0  # CPU seconds that the load generator itself used in a second; near 1 it is what is measured

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def generator(wanted: str = "auto") -> str:
    """Which one is used: ``auto`` takes wrk if it is there."""
    if wanted == OWN or wanted == "own":
        return OWN
    if shutil.which("wrk") is not None:
        return WRK
    if wanted == WRK:
        raise LoadError("wrk is not on PATH; install it, or take --load own")
    return OWN


def described(which: str) -> str:
    """The generator with its version, for the file."""
    if which != WRK:
        return which
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True, timeout=10).stdout.split()
    return " ".join(said[:2])  # "wrk 4.1.0", then its build and its usage


def measure(which: str, url: str, connections: int, seconds: int, script: Sequence[str] = ()) -> Load:
    """Runs the load and waits for its end. ``script``: for wrk, a file and its arguments. Raises LoadError."""
    if not 1 <= connections <= CONNECTIONS_MAX or not 1 <= seconds <= SECONDS_MAX:
        raise LoadError(f"{connections} connections for {seconds} s are beyond what a short benchmark may ask for")
    if which == WRK:
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "5s", "--latency"]
        command += ["-s", script[0], url, "--", *script[1:]] if script else [url]
    else:
        command = [sys.executable, "-m", "benchmarks.load", url, str(connections), str(seconds)]
    before = cpu_of_children()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise LoadError(f"{which} did not end {PATIENCE_S:g} s after its time") from None
    if done.returncode != 0:
        raise LoadError(f"{which} failed at {url}: {(done.stderr or done.stdout).strip()[-500:]}")
    seen = read_wrk(done.stdout) if which == WRK else msgspec.json.decode(done.stdout, type=Load)
    return msgspec.structs.replace(seen, cores=round((cpu_of_children() - before) / seen.seconds, 3))


def cpu_of_children() -> float:
    """User and system seconds of all children that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


# -- wrk ------------------------------------------------------------------------------------------

_TOTAL = re.compile(r"^\s*(\d+) requests in ([\d.]+)(us|ms|s|m|h),", re.MULTILINE)
_PERCENTILE = re.compile(r"^\s+(\d+)%\s+([\d.]+)(us|ms|s|m|h)\s*$", re.MULTILINE)
_MAXIMUM = re.compile(r"^ +Latency +[\d.]+\w+ +[\d.]+\w+ +([\d.]+)(us|ms|s|m|h) ", re.MULTILINE)
_BAD_STATUS = re.compile(r"Non-2xx or 3xx responses: (\d+)")
_BAD_SOCKET = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")
_UNITS_US = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6, "h": 3600e6}


def read_wrk(output: str) -> Load:
    """The text that ``wrk --latency`` prints. Raises LoadError for another text, and for answers that were errors."""
    total, maximum = _TOTAL.search(output), _MAXIMUM.search(output)
    percentiles = {
        int(percent): float(number) * _UNITS_US[unit] for percent, number, unit in _PERCENTILE.findall(output)
    }
    if total is None or maximum is None or not {50, 90, 99} <= percentiles.keys():
        raise LoadError(f"wrk printed something else than expected:\n{output[-1000:]}")
    if (bad := _BAD_STATUS.search(output)) is not None:
        raise LoadError(f"{bad[1]} of {total[1]} answers had an error status")
    if (bad := _BAD_SOCKET.search(output)) is not None:
        raise LoadError(f"wrk had socket errors: {bad[0]}")
    if not int(total[1]):
        raise LoadError("nothing was answered")
    return Load(
        requests=int(total[1]),
        seconds=float(total[2]) * _UNITS_US[total[3]] / 1e6,
        p50_us=percentiles[50],
        p90_us=percentiles[90],
        p99_us=percentiles[99],
        max_us=float(maximum[1]) * _UNITS_US[maximum[2]],
    )


# -- ours -----------------------------------------------------------------------------------------


class AnswerReader:
    """Cuts one answer after the other out of what arrives. Knows content-length only; that is what hello needs."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> bool:
        """Whether the answer is whole now. Raises LoadError if it is no 200 with a content-length."""
        self._data = self._data + data if self._data else data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            if len(self._data) > HEAD_MAX:
                raise LoadError(f"the head of an answer is longer than {HEAD_MAX} bytes")
            return False
        head = self._data[:end].lower()
        if head[9:12] != b"200":
            raise LoadError(f"an answer began with {self._data[:60]!r}")
        _, found, rest = head.partition(b"\r\ncontent-length:")
        length = rest.partition(b"\r\n")[0].strip()
        if not found or not length.isdigit():
            raise LoadError("an answer came without a content-length; this client understands nothing else")
        whole = end + 4 + int(length)
        if len(self._data) < whole:
            return False
        if len(self._data) > whole:
            raise LoadError("more bytes came than the answer has")
        self._data = b""
        return True


class _Client(asyncio.Protocol):
    """One connection with one request at a time on it, until ``until``."""

    def __init__(self, request: bytes, until: float, times: list[float], ended: asyncio.Future[None]) -> None:
        self._request = request
        self._until = until
        self._times = times
        self._ended = ended
        self._reader = AnswerReader()
        self._transport: asyncio.Transport
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        self._send()

    def _send(self) -> None:
        self._sent = perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            if not self._reader.feed(data):
                return
        except LoadError as error:
            self._end(error)
            return
        now = perf_counter()
        self._times.append(now - self._sent)
        if now < self._until:
            self._send()
        else:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or LoadError("the server closed a connection"))

    def _end(self, error: Exception | None) -> None:
        if not self._ended.done():
            if error is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)
            self._transport.close()


async def run_own(url: str, connections: int, seconds: float) -> Load:
    """The load of our own client, on the running loop. Raises LoadError."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None:
        raise LoadError(f"{url!r} is no http address")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    request = f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    times: list[float] = []
    began = perf_counter()
    ends: list[asyncio.Future[None]] = []
    for _ in range(connections):
        ended: asyncio.Future[None] = loop.create_future()
        ends.append(ended)
        client = _Client(request, began + seconds, times, ended)
        try:
            await loop.create_connection(lambda client=client: client, parts.hostname, parts.port or 80)  # type: ignore[misc]
        except OSError as error:
            raise LoadError(f"cannot connect to {parts.netloc}: {error}") from None
    done, waiting = await asyncio.wait(ends, timeout=seconds + PATIENCE_S / 2)
    for ended in done:
        if (failure := ended.exception()) is not None:
            raise LoadError(str(failure))
    if waiting:
        raise LoadError(f"{len(waiting)} of {connections} connections got no answer")
    took = perf_counter() - began
    p50, p90, p99, most = (percentile(times, percent) * 1e6 for percent in (50, 90, 99, 100))
    return Load(len(times), took, p50, p90, p99, most)


def main() -> None:
    """``python -m benchmarks.load URL CONNECTIONS SECONDS`` prints one line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.load", description=main.__doc__)
    parser.add_argument("url")
    parser.add_argument("connections", type=int)
    parser.add_argument("seconds", type=float)
    told = parser.parse_args()
    try:
        seen = uvloop.run(run_own(told.url, told.connections, told.seconds))
    except LoadError as error:
        sys.exit(str(error))
    print(json.dumps(msgspec.structs.asdict(seen)))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
