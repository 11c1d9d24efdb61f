"""What every process of an instance would do anew at its start is done once, in the supervisor that forks it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import importlib, sys
import msgspec
from skate.controlplane.instance import MODULES
for name in MODULES:
    importlib.import_module(name)
from skate.controlplane.store import Goal
from skate.core.specs import ProxyConfig, Reconfiguration, ReplicaConfig
calls = []
sys.setprofile(lambda frame, event, argument: calls.append(frame.f_code.co_name) if event == "call" else None)
for kind in (ReplicaConfig, Reconfiguration, ProxyConfig, Goal):
    try:
        msgspec.msgpack.decode(b"\\x80", type=kind)
    except msgspec.ValidationError:
        pass
sys.setprofile(None)
print(calls)
"""


def test_a_forked_process_makes_no_types_to_read_what_it_is_told() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
