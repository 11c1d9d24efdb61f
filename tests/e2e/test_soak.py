"""The soak, short: all kinds of calls at once, deaths among them. Their outcomes are judged, no time and no size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from soak.kinds import KINDS
from tests.e2e.world import ROOT, environment

SECONDS = 10


@pytest.mark.timeout(120)
def test_nothing_is_lost_and_nothing_is_left(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "soak.run", "--seconds", str(SECONDS), "--calm", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads((tmp_path / "soak.json").read_text())
    assert seen["faults"] == []
    assert {kind["name"] for kind in seen["kinds"] if kind["made"] > 3} == set(KINDS)
    assert seen["kills"], "no replica was killed"
    assert seen["ledger"]["accepted"] > 1000 and seen["ledger"]["open"] == 0
