"""From words to an application: every way to be wrong is said, with the place and the way out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skate.authoring import load
from skate.authoring.deployment import Application
from skate.core.errors import ImportPathError
from tests.cli.world import HELLO

BUILDERS = (
    HELLO
    + """
import dataclasses
import msgspec
import pydantic

class Model(pydantic.BaseModel):
    count: int
    word: str = "x"

class Record(msgspec.Struct):
    count: int

@dataclasses.dataclass
class Data:
    share: float

def plain(args): return Hello.bind(args)
def mapping(args: dict[str, str]): return Hello.bind(args)
def model(args: Model): return Hello.bind(args)
def record(args: Record): return Hello.bind(args)
def data(args: Data): return Hello.bind(args)
def two(a, b): return app
def none(args): return None
def unbound(args): return Hello
def raises(args): return args["missing"]
class Plain: pass
number = 3
"""
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "things.py").write_text(BUILDERS)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def refused(path: str, **arguments: str) -> str:
    with pytest.raises(ImportPathError) as caught:
        load.application(path, arguments)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_bound_deployment(folder: Path) -> None:
    assert isinstance(load.application("things:app", {}), Application)


def test_dots_on_both_sides(folder: Path) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "inner.py").write_text(HELLO + "class Home: there = app\n")
    assert isinstance(load.application("package.inner:Home.there", {}), Application)


def test_app_dir_comes_first_and_the_working_directory_next(folder: Path) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "deep.py").write_text("from things import app")
    assert isinstance(load.application("deep:app", {}, "below"), Application)
    assert sys.path[:2] == [str(folder / "below"), str(folder)]


@pytest.mark.parametrize(
    ("name", "arguments", "value"),
    [
        ("plain", {"a": "1"}, {"a": "1"}),
        ("mapping", {}, {}),
        ("model", {"count": "3"}, "Model(count=3, word='x')"),
        ("record", {"count": "3"}, "Record(count=3)"),
        ("data", {"share": "0.5"}, "Data(share=0.5)"),
    ],
)
def test_a_builder_gets_its_arguments_as_it_wants_them(
    folder: Path, name: str, arguments: dict[str, str], value: object
) -> None:
    made = load.application(f"things:{name}", arguments)._args[0]
    assert made == value or repr(made) == value


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("things.app", "write things:app"),
        ("things", "write things:app"),
        ("things.py:app", "write it as a module: things:app"),
        ("./some/where.py", "write it as a module: some.where:app"),
        ("things:app:x", "is no import path"),
        (":app", "is no import path"),
        ("conf.yaml", "config files"),
        ("nowhere:app", "no module 'nowhere'"),
        ("things:ap", "its applications are: app"),
        ("things:Hello", "app = Hello.bind(...)"),
        ("things:Plain", "a class without @serve.deployment"),
        ("things:number", "3 of type int"),
        ("things:two", "2 parameters"),
        ("things:none", "returned None"),
        ("things:unbound", "put .bind(...) on it"),
        ("things:raises", "raised KeyError: 'missing' (things.py:"),
        ("things:model", "count: Field required (it has: count, word)"),
        ("things:record", "missing required field `count`"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, path: str, words: str) -> None:
    assert words in refused(path)


def test_arguments_for_what_takes_none(folder: Path) -> None:
    assert "takes no arguments (n)" in refused("things:app", n="1")


def test_arguments_of_a_wrong_type(folder: Path) -> None:
    assert "does not fit" in refused("things:model", count="many").replace("do not fit", "does not fit")
    assert "Expected `int`" in refused("things:record", count="many")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\ny = 1 / 0\n", "ZeroDivisionError: division by zero (broken.py:2: y = 1 / 0)"),
        ("def f(:\n", "SyntaxError: invalid syntax (broken.py:1: def f(:)"),
        ("import not_there\n", "No module named 'not_there' (broken.py:1: import not_there)"),
        ("import sys; sys.exit(3)\n", "ended the program with exit code 3 (broken.py:1"),
        ("import json; json.loads('{')\n", "(broken.py:1: import json; json.loads('{'))"),
    ],
)
def test_a_module_that_does_not_import(folder: Path, text: str, words: str) -> None:
    (folder / "broken.py").write_text(text)
    assert words in refused("broken:app")


def test_a_directory_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ImportPathError, match="--app-dir nix is no directory"):
        load.application("things:app", {}, "nix")


def test_preload_modules_are_looked_for(folder: Path) -> None:
    load.put_first(".")
    load.check_preload(["json", "things"])
    with pytest.raises(ImportPathError, match=r"--preload not_there\.at_all"):
        load.check_preload(["not_there.at_all"])
