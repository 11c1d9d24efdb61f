"""What all tests share: a runtime folder of their own, never that of an instance somebody is using."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile

import hypothesis
import pytest

# Set before anything imports Skate; short, because Unix socket paths are.
RUNTIME_DIR = tempfile.mkdtemp(prefix="sk-")
os.environ["SKATE_RUNTIME_DIR"] = RUNTIME_DIR
os.environ["XDG_STATE_HOME"] = os.path.join(RUNTIME_DIR, ".home")  # nor is anything left in somebody's home
for name in ("SKATE_INSTANCE", "SKATE_STATE_DIR"):
    os.environ.pop(name, None)
atexit.register(shutil.rmtree, RUNTIME_DIR, ignore_errors=True)

# A slow machine is no failure: no property is judged by the time it takes. Examples are the same each time; `make fuzz`
# looks further, at others each time. Tests take their numbers from ``settings.default.max_examples``.
hypothesis.settings.register_profile("skate", deadline=None, derandomize=True)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=3000, print_blob=True)
hypothesis.settings.load_profile("skate")


@pytest.fixture
def free_port() -> int:
    """A TCP port of the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
