"""Processes: starting a peer that cannot outlive us, and reading what processes cost from /proc.

Law: a peer is started with a pipe as its stdin and ends when that closes, so even ``kill -9`` of the benchmark leaves
nothing; otherwise it is ended by its pid and waited for.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import monotonic, sleep

import msgspec

HOST = "127.0.0.1"
READY_MAX_S = 20.0
END_MAX_S = 10.0
POLL_S = 0.002


class ProcessError(Exception):
    """A process of the benchmark did not start, or did not end."""


def free_port() -> int:
    """A TCP port of the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def child(command: Sequence[str], stdout: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that lives as long as the block: its stdin is closed, and if that does not end it, it is killed.

    In a session of its own, so that Ctrl-C reaches the benchmark alone, which then ends it.
    """
    command = [sys.executable, *command]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, text=True, start_new_session=True)
    try:
        yield process
    finally:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(END_MAX_S)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()


def http_status(port: int, path: str = "/", timeout_s: float = 5.0) -> int | None:
    """The status of one GET; None if nobody answers there yet."""
    return status_of(port, "GET", path, timeout_s=timeout_s)


def status_of(
    port: int, method: str, path: str, kind: str = "", body: bytes = b"", timeout_s: float = 5.0
) -> int | None:
    """The status of one request, with a body if it has a content type; None if nobody answers there yet."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n"
    if kind:
        head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    try:
        with socket.create_connection((HOST, port), timeout_s) as line:
            line.sendall(head.encode() + b"\r\n" + body)
            begin = line.recv(64)
    except OSError:
        return None
    return int(begin[9:12]) if begin[9:12].isdigit() else None


def wait_http(port: int, process: subprocess.Popen[str] | None = None, path: str = "/") -> float:
    """Asks for ``path`` until the answer is 200; the monotonic time at that moment. Raises ProcessError."""
    until = monotonic() + READY_MAX_S
    while monotonic() < until:
        if http_status(port, path) == 200:
            return monotonic()
        if process is not None and process.poll() is not None:
            raise ProcessError(f"{process.args!r} ended with {process.returncode} before it served")
        sleep(POLL_S)
    raise ProcessError(f"nothing answered 200 on port {port} within {READY_MAX_S:g} s")


# -- /proc ----------------------------------------------------------------------------------------


class Cost(msgspec.Struct, frozen=True):
    """What one process holds. ``pss`` counts shared pages by their share, ``private`` what would be freed with it."""

    pid: int
    title: str
    pss_mb: float
    private_mb: float
    threads: int


def have_proc() -> bool:
    """Whether this system tells what processes cost (Linux)."""
    return Path("/proc/self/smaps_rollup").exists()


def family(ancestor: int) -> list[int]:
    """A process and all its living descendants, by pid."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found = [ancestor]
    for pid in found:  # grows while it is walked
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def parent(pid: int) -> int:
    """The parent of a process. Raises OSError when it is gone."""
    return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])


def cpu_s(pids: Iterable[int]) -> float:
    """User and system seconds that these processes have used, to the nanosecond where the kernel tells it.

    (``utime`` and ``stime`` come in hundredths, which is as much as an idle process uses in seconds.)
    """
    return sum(_cpu_s(pid) for pid in pids)


def _cpu_s(pid: int) -> float:
    with contextlib.suppress(OSError):
        try:
            threads = list(Path(f"/proc/{pid}/task").iterdir())
            return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
        except (FileNotFoundError, IndexError, ValueError):  # a thread that just ended, or a kernel without it
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def cost(pid: int) -> Cost:
    """Memory and threads of a process. Raises OSError when it is gone."""
    sizes = read_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    title = b" ".join(words).decode(errors="replace").strip()
    threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    private = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return Cost(pid, title, sizes["Pss"] / 1024, private / 1024, threads)


def read_rollup(text: str) -> dict[str, int]:
    """The lines ``Name:  1234 kB`` of a smaps_rollup, in kB."""
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        words = rest.split()
        if colon and len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            sizes[name] = int(words[0])
    return sizes
