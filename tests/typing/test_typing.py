"""mypy --strict on user programs: the good one passes, in the bad one every marked line has the named error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mypy import api

HERE = Path(__file__).parent


def errors_in(program: str, cache: Path, *options: str) -> dict[int, str]:
    """Error codes by line, as mypy finds them in one file."""
    arguments = ["--config-file", str(HERE / "mypy.ini"), "--cache-dir", str(cache), "--follow-imports", "silent"]
    said, trouble, _ = api.run([*arguments, "--no-error-summary", *options, str(HERE / program)])
    assert not trouble
    found = re.findall(rf"{re.escape(program)}:(\d+): error: .*\[([a-z-]+)\]$", said, re.MULTILINE)
    assert len(found) == said.count(": error: "), said
    return {int(line): code for line, code in found}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


def test_a_right_program_has_no_errors(cache: Path) -> None:
    assert errors_in("good.py", cache) == {}


def test_every_mistake_is_an_error_of_its_kind(cache: Path) -> None:
    lines = (HERE / "bad.py").read_text().splitlines()
    marked = {number: line.split("# E: ")[1] for number, line in enumerate(lines, 1) if "# E: " in line}
    assert len(marked) >= 15
    assert errors_in("bad.py", cache) == marked
