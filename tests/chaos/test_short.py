"""The chaos, short: every deed that is allowed here once, one seed. Its outcomes are judged, no time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.schedule import KINDS
from tests.e2e.world import ROOT, environment

pytestmark = pytest.mark.e2e

SECONDS, LINK_S, SEED = 16, 3, 1


@pytest.mark.timeout(150)
def test_everything_ends_as_it_may_and_nothing_is_left(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chaos.run", "--seed", str(SEED), "--seconds", str(SECONDS)]
    command += ["--link", str(LINK_S), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=140)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads((tmp_path / "chaos.json").read_text())
    assert seen["faults"] == []
    possible = {kind for kind, (_, needs) in KINDS.items() if not needs}
    assert possible <= set(seen["deeds"])
    assert min(seen["kinds"].values()) > 1 and seen["ledger"]["accepted"] > 1000 and seen["ledger"]["open"] == 0
    assert {one["role"] for one in seen["done"] if one["how"] == "kill"} >= {"replica", "proxy", "controller"}
