"""mypy --strict on user programs: the good ones pass, in the bad ones every marked line has the named error.

mypy runs once over all of them: most of its time goes into what they import.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest
from mypy import api

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
GOOD = ["good.py", "handles.py"]
BAD = ["bad.py", "handles_bad.py"]

Errors = dict[str, dict[int, str]]  # by file and line: the code


def check(cache: Path, *arguments: str) -> Errors:
    said, trouble, status = api.run(["--cache-dir", str(cache), "--no-error-summary", *arguments])
    assert not trouble and status < 2, said
    found = re.findall(r"^(.+):(\d+): error: .*\[([a-z-]+)\]$", said, re.MULTILINE)
    assert len(found) == said.count(": error: "), said
    errors: Errors = defaultdict(dict)
    for path, line, code in found:
        errors[(ROOT / path).relative_to(ROOT).as_posix()][int(line)] = code
    return errors


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> Errors:
    """What mypy finds with the plugin."""
    programs = [str(HERE / name) for name in GOOD + BAD]
    return check(
        tmp_path_factory.mktemp("mypy"), "--config-file", str(HERE / "mypy.ini"), *programs, str(ROOT / "examples")
    )


@pytest.mark.parametrize("program", GOOD)
def test_a_right_program_has_no_errors(program: str, errors: Errors) -> None:
    assert errors[f"tests/typing/{program}"] == {}


@pytest.mark.parametrize("program", BAD)
def test_every_mistake_is_an_error_of_its_kind(program: str, errors: Errors) -> None:
    lines = (HERE / program).read_text().splitlines()
    marked = {number: line.split("# E: ")[1] for number, line in enumerate(lines, 1) if "# E: " in line}
    assert len(marked) >= 15
    assert errors[f"tests/typing/{program}"] == marked


def test_the_examples_and_what_they_use_have_no_errors(errors: Errors) -> None:
    assert {path for path, found in errors.items() if found} == {f"tests/typing/{program}" for program in BAD}


def test_without_the_plugin_handles_take_everything(tmp_path: Path) -> None:
    assert check(tmp_path, "--config-file=", "--strict", str(HERE / "without_plugin.py")) == {}
