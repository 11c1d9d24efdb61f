"""The environments of the peers: one each, below .venv-peers, from a pinned file. Law: an install that fails costs its
peer, not the run; what is up to date is left alone.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from benchmarks.suite.systems import ENVIRONMENTS, REQUIREMENTS, System

INSTALL_MAX_S = 600.0
PLOTS = "plots"


def requirements(name: str) -> Path:
    """The pinned file of one environment."""
    return REQUIREMENTS / f"requirements-{name}.txt"


def set_up(name: str) -> str:
    """Makes it as its file says; why it failed, or nothing."""
    wanted = hashlib.sha256(requirements(name).read_bytes() + sys.version.encode()).hexdigest()
    stamp = ENVIRONMENTS / name / ".installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return ""
    print(f"setting up {name} ...", file=sys.stderr, flush=True)
    python = ENVIRONMENTS / name / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(ENVIRONMENTS / name)],
        [*install, "-r", str(requirements(name))],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_MAX_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode:
            return (done.stderr or done.stdout).strip()[-500:]
    stamp.write_text(wanted)
    return ""


def version(system: System) -> str:
    """Of its package as the pinned file says; Skate's own stands in the run."""
    if not system.venv:
        return ""
    for line in requirements(system.venv).read_text().splitlines():
        name, _, version = line.partition("==")
        if name.replace("_", "-").lower() == system.package:
            return version
    return ""
