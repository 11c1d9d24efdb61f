"""On what a run was made: machine, versions, commit, date. Law: nothing in it names a person, a host or a folder."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from time import sleep
from typing import Any

PACKAGES = ("skate", "uvloop", "httptools", "websockets", "msgspec", "starlette", "uvicorn")


def describe() -> dict[str, Any]:
    """What can be known before anything runs."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_mb": memory_mb(),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "busy_before": busy(),
    }


BUSY_S = 0.5


def busy() -> float | None:
    """The share of all cores in use, 0 to 1, while this process sleeps; None if the system does not say."""
    before = _cpu_ticks()
    sleep(BUSY_S)
    after = _cpu_ticks()
    if before is None or after is None or after[1] == before[1]:
        return None
    return round(1 - (after[0] - before[0]) / (after[1] - before[1]), 3)


def _cpu_ticks() -> tuple[int, int] | None:
    """Idle ones and all."""
    try:
        numbers = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return None
    return numbers[3] + numbers[4], sum(numbers)


def commit() -> str:
    """The commit that runs, marked when files differ from it; empty outside of a repository."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + "+changes" if _git("status", "--porcelain") else head
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*words: str) -> str:
    where = Path(__file__).parent
    command = ["git", *words]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def version(package: str) -> str:
    """Of an installed distribution; empty if it is not installed as one."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def cpu_model() -> str:
    """As the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_mb() -> int:
    """Of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 20)
