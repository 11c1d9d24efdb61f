"""The house rules, as a test. Law: every complaint names the file, the line and the way out.

A rule is a function from one parsed module (or one text file) to complaints, so that it can be fed bad
snippets; the second half of this file does that, because a rule that cannot fail holds nothing.
``python tests/test_tidy.py`` prints the complaints without pytest.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "skate"
SOURCE = ROOT / "src" / PACKAGE

# The architecture. A floor is a tuple of rooms; a room imports itself and lower floors, never its neighbours.
# Names in one string share a room.
Floors = tuple[tuple[str, ...], ...]
FLOORS: Floors = (
    ("core",),  # 1 vocabulary
    ("authoring", "engine", "features", "observe"),  # 2 what users declare; mechanisms
    ("dataplane",),  # 3 the way of a request
    ("controlplane",),  # 4 the way of a decision
    ("serve", "dashboard", "routers", "autoscaling"),  # 5 what users call
    ("admin",),  # 6 REST
    ("cli __main__", "compat", "testing", "__init__"),  # 7 doors
)
INNER_FLOORS: dict[str, Floors] = {
    "dataplane": (
        ("wire",),
        ("routing",),
        ("shared",),
        ("payload",),
        ("transport",),
        ("router link call uplink ledger policy endings",),
        ("caller",),
        ("pending", "call_options"),
        ("stream",),
        ("handle",),
        ("proxy", "replica"),
    ),
    "controlplane": (
        ("decide",),
        ("store client broadcast sightings policies",),
        ("records publications processes restore",),
        ("state",),
        ("applications arrivals tellings builder",),
        ("builds",),
        ("calls",),
        ("controller",),
        ("instance",),
    ),
}
PURE = {("dataplane", "wire"), ("dataplane", "routing"), ("controlplane", "decide")}
BANNED_IN_PURE = {
    *("asyncio", "socket", "threading", "multiprocessing", "subprocess", "time", "random", "logging", "os"),
}
MAX_FUNCTION, MAX_FILE, MAX_PARAMETERS = 70, 600, 8

# May be absent, so they may be imported where they are needed, inside a function.
OPTIONAL = {"fastapi", "grpc", "numpy", "pandas", "pydantic", "ray", "sklearn", "uvloop", "watchfiles"}
# Each third party has one home; whoever else needs it asks there.
HOMES: dict[str, tuple[str, ...]] = {
    "click": ("cli",),
    "grpc": ("dataplane/proxy",),
    "httptools": ("dataplane/proxy",),
    "opentelemetry": ("observe",),
    "prometheus_client": ("observe",),
    "ray": ("engine/ray.py",),
    "rich": ("cli",),
    "watchfiles": ("cli",),
    "websockets": ("dataplane/proxy",),
    "yaml": ("authoring/document.py",),
}
CORE_MAY_IMPORT = sys.stdlib_module_names | {"msgspec", PACKAGE}
BANNED_WORDS = {"manager", "managers", "helper", "helpers", "util", "utils", "info", "infos", "wrapper", "wrappers"}

CLOCK_FILE, ENVIRONMENT_FILE = "core/clock.py", "core/environment.py"
CLOCK_READS = {f"time.{name}{unit}" for name in ("time", "monotonic", "perf_counter") for unit in ("", "_ns")}
PERF_COUNTER_FILES: set[str] = set()  # where a short duration is measured and no test ever wants to own it
ENVIRONMENT_READS = {"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.unsetenv"}

# What `import skate` must not load: it costs start-up time, or may be absent.
NOT_AT_IMPORT = {
    *("click", "fastapi", "grpc", "httptools", "numpy", "opentelemetry", "pandas", "prometheus_client", "pydantic"),
    *("ray", "rich", "sklearn", "uvicorn", "watchfiles", "websockets", "yaml"),
}


@dataclass(frozen=True)
class Module:
    """One source file. ``path`` is relative to the package: ``dataplane/wire/frames.py``."""

    path: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def rooms(self) -> tuple[str, ...]:
        """The path as names: ("dataplane", "wire", "frames")."""
        return PurePosixPath(self.path).with_suffix("").parts


@dataclass(frozen=True)
class Complaint:
    """``line`` 0: the file as a whole."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


Rule = Callable[[Module], Iterator[Complaint]]


# -- what is in a module --------------------------------------------------------------------------


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every absolute import as (line, full dotted name, with the imported name at its end)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def references(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every use of an imported module's attribute, and every name imported from one, as (line, dotted name)."""
    local = {
        alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in local:
            yield node.lineno, f"{local[node.value.id]}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def place(floors: Floors, name: str) -> tuple[int, str] | None:
    """(floor, room) of a name, None for one that no floor lists."""
    return next(
        ((number, room) for number, rooms in enumerate(floors, 1) for room in rooms if name in room.split()), None
    )


# -- the rules ------------------------------------------------------------------------------------


def arrow(module: Module, line: int, floors: Floors, source: str, target: str) -> Iterator[Complaint]:
    """Complains about an import of ``target`` by ``source`` that does not lead downwards."""
    there = place(floors, target) or place(floors, "__init__")  # an attribute of the package itself
    here = place(floors, source)
    if here is None or here == there:
        return
    if there is None:
        yield Complaint(
            module.path,
            line,
            f"{target} stands on no floor of its folder: give the module one in INNER_FLOORS (tests/test_tidy.py), "
            "or, if it is a name in the folder's __init__, import it from the module that holds it",
        )
    elif there[0] >= here[0]:
        yield Complaint(
            module.path,
            line,
            f"{source} (floor {here[0]}) may not import {target} (floor {there[0]}): "
            "pass the value in, or move what both need to a lower floor",
        )


def rule_floors(module: Module) -> Iterator[Complaint]:
    """Imports lead downwards, between the folders and within those that have floors of their own."""
    top = module.rooms[0]
    inner = INNER_FLOORS.get(top, ())
    if place(FLOORS, top) is None:
        yield Complaint(module.path, 0, f"{top} stands on no floor: give it one in FLOORS (tests/test_tidy.py)")
    if inner and module.rooms[1] != "__init__" and place(inner, module.rooms[1]) is None:
        yield Complaint(module.path, 0, f"{module.rooms[1]} stands on no floor of {top}: give it one in INNER_FLOORS")
    for line, name in imports(module.tree):
        package, *target = name.split(".")
        if package != PACKAGE:
            continue
        target = target or ["__init__"]
        if target[0] != top:
            yield from arrow(module, line, FLOORS, top, target[0])
        elif inner:
            yield from arrow(module, line, inner, module.rooms[1], target[1] if len(target) > 1 else "__init__")


def rule_pure(module: Module) -> Iterator[Complaint]:
    """Pure folders take the outside world as arguments."""
    if module.rooms[:2] not in PURE:
        return
    for line, name in imports(module.tree):
        if (top := name.split(".")[0]) in BANNED_IN_PURE:
            yield Complaint(
                module.path, line, f"{'/'.join(module.rooms[:2])} is pure: take what {top} gives as an argument"
            )


def rule_sizes(module: Module) -> Iterator[Complaint]:
    """Files, functions and parameter lists fit into a head."""
    if (length := len(module.text.splitlines())) > MAX_FILE:
        yield Complaint(module.path, MAX_FILE, f"{length} lines, {MAX_FILE} is the limit: split by concept")
    for node in functions(module.tree):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION:
            yield Complaint(
                module.path, node.lineno, f"{node.name} has {length} lines, {MAX_FUNCTION} is the limit: name a step"
            )
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        if names[:1] in (["self"], ["cls"]):
            del names[0]
        if len(names) > MAX_PARAMETERS:
            yield Complaint(
                module.path,
                node.lineno,
                f"{node.name} takes {len(names)} positional parameters, {MAX_PARAMETERS} is the limit: "
                "pass a value object, or make them keyword-only",
            )


def rule_import_style(module: Module) -> Iterator[Complaint]:
    """Absolute imports at the top; inside a function only what may be absent."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield Complaint(module.path, node.lineno, f"relative import: write from {PACKAGE}.… by its full name")
    seen: set[tuple[int, str]] = set()
    for function in functions(module.tree):
        for line, name in imports(function):
            if (top := name.split(".")[0]) not in OPTIONAL and (line, top) not in seen:
                seen.add((line, top))
                yield Complaint(
                    module.path, line, f"import of {top} inside {function.name}: move it to the top of the file"
                )


def rule_homes(module: Module) -> Iterator[Complaint]:
    """Third parties live in one place each; the vocabulary knows the standard library and msgspec only."""
    for line, name in imports(module.tree):
        top = name.split(".")[0]
        homes = HOMES.get(top)
        if homes and not any(module.path == home or module.path.startswith((f"{home}/", f"{home}.")) for home in homes):
            yield Complaint(module.path, line, f"{top} lives in {' and '.join(homes)}: ask there for what you need")
        if module.rooms[0] == "core" and top not in CORE_MAY_IMPORT:
            yield Complaint(module.path, line, f"core imports the standard library and msgspec only, not {top}")


def rule_docstring(module: Module) -> Iterator[Complaint]:
    """A module opens with what it is, its law, and why. An empty file needs no opening."""
    if module.tree.body and not ast.get_docstring(module.tree):
        yield Complaint(module.path, 1, "no module docstring: say what this is, its law, and why")


def rule_names(module: Module) -> Iterator[Complaint]:
    """A name says what a thing is, not that there is one."""
    parts = {word for room in module.rooms for word in room.lower().split("_")}
    for word in sorted(parts & BANNED_WORDS):
        yield Complaint(module.path, 0, f"the file's name says {word!r}: name it after what it is or does")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", node.name):
                if word.lower() in BANNED_WORDS:
                    yield Complaint(
                        module.path, node.lineno, f"class {node.name} says {word!r}: name it after what it is or does"
                    )


def rule_clock(module: Module) -> Iterator[Complaint]:
    """Time is an argument."""
    for line, name in references(module.tree):
        counted = name.startswith("time.perf_counter") and module.path in PERF_COUNTER_FILES
        if name in CLOCK_READS and module.path != CLOCK_FILE and not counted:
            yield Complaint(module.path, line, f"{name} outside {CLOCK_FILE}: take a Clock and ask it")


def rule_environment(module: Module) -> Iterator[Complaint]:
    """The environment has one door."""
    for line, name in references(module.tree):
        if name in ENVIRONMENT_READS and module.path != ENVIRONMENT_FILE:
            yield Complaint(
                module.path, line, f"{name} outside {ENVIRONMENT_FILE}: ask environment(), or make it an option"
            )


RULES: tuple[Rule, ...] = (
    rule_floors,
    rule_pure,
    rule_sizes,
    rule_import_style,
    rule_homes,
    rule_docstring,
    rule_names,
    rule_clock,
    rule_environment,
)


def complaints(module: Module) -> list[Complaint]:
    return [complaint for rule in RULES for complaint in rule(module)]


# -- rules about every file that git would carry --------------------------------------------------


def tracked_files() -> list[Path]:
    """All files of the project: tracked, or new and not ignored. None where this is no git checkout."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    names = listing.stdout.decode().split("\0")
    return [path for name in names if name and (path := ROOT / name).is_file()]


def foreign_places() -> list[str]:
    """This machine's own places, found at run time: pip's index hosts and folders, and this checkout."""
    listing = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    indexes = [line for line in listing.splitlines() if re.search(r"index-url|find-links", line)]
    text = "\n".join(indexes)
    hosts = {host for host in re.findall(r"https?://(?:[^/@\s']*@)?([^/:\s']+)", text)}
    folders = set(re.findall(r"(?:file://|[\s'=])(/[^\s']+/[^\s']+)", text))
    harmless = {"localhost", "127.0.0.1", "pypi.org", "files.pythonhosted.org"}
    checkout = set() if ROOT.is_relative_to(tempfile.gettempdir()) or len(ROOT.parts) < 3 else {str(ROOT)}
    return sorted((hosts - harmless) | folders | checkout)


def foreign_lines(path: str, text: str, places: list[str]) -> Iterator[Complaint]:
    """Lines that hold only on one machine: where packages come from, where somebody's folders are."""
    named = [re.compile(rf"(?<![\w.}}{'/' * place.startswith('/')}-]){re.escape(place)}(?![\w-])") for place in places]
    index = re.compile(r"(index-url|find-links)[\s=]+\S*[:/]{2}")
    personal = re.compile(r"(?<![\w.}/-])/(home|Users)/\w+/|(?<![\w.}/-])/root/")
    requirements = PurePosixPath(path).name.startswith("requirements") and path.endswith(".txt")
    for line, content in enumerate(text.splitlines(), 1):
        if any(pattern.search(content) for pattern in (*named, index, personal)):
            yield Complaint(path, line, "names a package index or a folder of one machine: take it out")
        elif requirements and not re.fullmatch(r"(#.*|-r [\w.-]+|[\w.-]+==[\w.]+)?", content.strip()):
            yield Complaint(path, line, "only name==version, -r file and comments stand here, no address, no option")


# -- the tree -------------------------------------------------------------------------------------


def source_modules() -> list[Module]:
    return [Module(path.relative_to(SOURCE).as_posix(), path.read_text()) for path in sorted(SOURCE.rglob("*.py"))]


def test_the_source_is_tidy() -> None:
    found = [complaint for module in source_modules() for complaint in complaints(module)]
    assert not found, "\n" + "\n".join(f"src/{PACKAGE}/{complaint}" for complaint in found)


def test_nothing_names_a_package_index_or_a_folder_of_this_machine() -> None:
    places = foreign_places()
    found: list[Complaint] = []
    for path in tracked_files():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:  # an image
            continue
        if path != Path(__file__).resolve():  # it has to name what it looks for
            found += foreign_lines(path.relative_to(ROOT).as_posix(), text, places)
    assert not found, "\n" + "\n".join(map(str, found))


def test_importing_skate_is_light() -> None:
    program = f"import sys, {PACKAGE}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    heavy = NOT_AT_IMPORT & set(run.stdout.split())
    assert not heavy, f"import {PACKAGE} loads {sorted(heavy)}: import them where they are used (python -X importtime)"


# -- the rules can fail ---------------------------------------------------------------------------

DOC = '"""What it is."""\n'
LONG_FUNCTION = "def long():\n" + "    pass\n" * MAX_FUNCTION
LONG_METHOD = "class C:\n    async def long(self):\n" + "        pass\n" * MAX_FUNCTION
NINE = ", ".join("abcdefghi")

BAD: list[tuple[str, str, int, str]] = [  # path, text, line, part of the message
    ("core/specs.py", DOC + "from skate.dataplane.router import Router", 2, "may not import dataplane"),
    ("core/specs.py", DOC + "import skate.dataplane", 2, "may not import dataplane"),
    ("engine/base.py", DOC + "from skate.observe import metrics", 2, "may not import observe"),
    ("engine/base.py", DOC + "from skate import serve", 2, "may not import serve"),
    ("engine/base.py", DOC + "from skate import get", 2, "floor 7"),
    ("engine/base.py", DOC + "import skate", 2, "floor 7"),
    ("compat/ray.py", DOC + "from skate.testing import run", 2, "may not import testing"),
    ("core/specs.py", DOC + "if True:\n    from skate.engine import base", 3, "may not import engine"),
    ("newroom/thing.py", DOC, 0, "FLOORS"),
    ("dataplane/newroom.py", DOC, 0, "INNER_FLOORS"),
    ("dataplane/wire/frames.py", DOC + "from skate.dataplane.routing.table import Table", 2, "may not import routing"),
    ("dataplane/wire/frames.py", DOC + "from skate.dataplane import router", 2, "may not import router"),
    ("dataplane/router.py", DOC + "from skate.dataplane.handle import Handle", 2, "may not import handle"),
    ("dataplane/proxy/server.py", DOC + "from skate.dataplane.replica import worker", 2, "may not import replica"),
    ("dataplane/handle.py", DOC + "from skate.dataplane import ROUTERS", 2, "stands on no floor"),
    ("controlplane/decide/plan.py", DOC + "from skate.controlplane.store import Store", 2, "may not import store"),
    ("dataplane/wire/frames.py", DOC + "import asyncio", 2, "is pure"),
    ("dataplane/routing/choice.py", DOC + "from random import choice", 2, "is pure"),
    ("controlplane/decide/plan.py", DOC + "import os.path", 2, "is pure"),
    ("core/long.py", DOC + "\n" * MAX_FILE, MAX_FILE, "split by concept"),
    ("core/long.py", DOC + LONG_FUNCTION, 2, "71 lines"),
    ("core/long.py", DOC + LONG_METHOD, 3, "71 lines"),
    ("core/wide.py", DOC + f"def f({NINE}): ...", 2, "9 positional"),
    ("core/wide.py", DOC + f"class C:\n    def f(self, {NINE}): ...", 3, "9 positional"),
    ("core/inside.py", DOC + "def f():\n    import json", 3, "move it to the top"),
    ("core/inside.py", DOC + "def f():\n    from skate.core import specs", 3, "move it to the top"),
    ("core/near.py", DOC + "from . import specs", 2, "relative"),
    ("core/near.py", DOC + "from .specs import AppSpec", 2, "relative"),
    ("controlplane/controller.py", DOC + "import yaml", 2, "authoring/document.py"),
    ("engine/process.py", DOC + "from ray import init", 2, "engine/ray.py"),
    ("core/options.py", DOC + "import uvloop", 2, "standard library"),
    ("core/silent.py", "import json\n", 1, "docstring"),
    ("core/string_utils.py", DOC, 0, "'utils'"),
    ("core/helper/text.py", DOC, 0, "'helper'"),
    ("core/names.py", DOC + "class ReplicaManager: ...", 2, "'Manager'"),
    ("core/names.py", DOC + "class _ASGIWrapper: ...", 2, "'Wrapper'"),
    ("core/names.py", DOC + "def f():\n    class InfoTable: ...", 3, "'Info'"),
    ("core/now.py", DOC + "import time\nt = time.monotonic()", 3, "take a Clock"),
    ("core/now.py", DOC + "import time as t\nf(t.time)", 3, "take a Clock"),
    ("core/now.py", DOC + "from time import perf_counter as now", 2, "take a Clock"),
    ("core/env.py", DOC + "import os\nx = os.environ.get('X')", 3, "environment()"),
    ("core/env.py", DOC + "import os\nx = os.getenv('X')", 3, "environment()"),
    ("core/env.py", DOC + "import os.path\nx = os.environ", 3, "environment()"),
    ("core/env.py", DOC + "from os import environ", 2, "environment()"),
]


@pytest.mark.parametrize(("path", "text", "line", "message"), BAD)
def test_a_bad_module_is_named(path: str, text: str, line: int, message: str) -> None:
    found = complaints(Module(path, text))
    assert [complaint.line for complaint in found] == [line], found
    assert message in str(found[0]) and str(found[0]).startswith(f"{path}:{line}: ")


GOOD: list[tuple[str, str]] = [
    ("core/__init__.py", ""),
    ("core/specs.py", DOC + "import msgspec\nfrom skate.core import errors\nfrom skate.core.clock import Clock"),
    ("controlplane/controller.py", DOC + "from skate.controlplane.decide.plan import plan\nimport skate.engine.base"),
    ("dataplane/router.py", DOC + "from skate.dataplane.call import Call\nfrom skate.dataplane import transport"),
    ("dataplane/proxy/server.py", DOC + "import httptools\nfrom skate.dataplane.proxy import asgi"),
    ("dataplane/routing/table.py", DOC + "import itertools\nfrom skate.dataplane.wire.head import CallHead"),
    ("cli.py", DOC + "import click\nfrom skate import serve"),
    ("cli/run.py", DOC + "from rich.console import Console"),
    ("__main__.py", DOC + "from skate.cli import main"),
    ("core/lazy.py", DOC + "try:\n    import json\nexcept ImportError:\n    pass"),
    ("authoring/ingress.py", DOC + "def f():\n    import fastapi\n    from numpy import ndarray"),
    ("core/full.py", DOC + LONG_FUNCTION.replace("    pass\n", "", 1) + "\n"),
    ("core/wide.py", DOC + "class C:\n    def f(self, a, b, c, d, e, f, g, h, *, i): ..."),
    ("core/names.py", DOC + "class Information: ...\nclass Utilities: ..."),
    ("core/now.py", DOC + "import time\ntime.strftime('%Y')\nclass A:\n    time = 1\nA().time"),
    (CLOCK_FILE, DOC + "import time\ntime.monotonic()"),
    (ENVIRONMENT_FILE, DOC + "import os\nos.environ"),
]


@pytest.mark.parametrize(("path", "text"), GOOD)
def test_a_good_module_passes(path: str, text: str) -> None:
    assert complaints(Module(path, text)) == []


PLACES = ["pypi.corp.example", "/srv/build/skate"]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("Makefile", "\tpip install -i https://pypi.corp.example/simple x"),
        ("docs/start.md", "cd /srv/build/skate"),
        ("pip.conf", "extra-index-url = https://anything.example/simple"),
        ("Makefile", "\tpip install --find-links file:///opt/wheels x"),
        ("docs/start.md", "see /home/jo/notes.txt"),
        ("docs/start.md", "`/Users/jo/notes.txt`"),
        ("requirements.txt", "skate @ https://example.org/skate.whl"),
        ("requirements-dev.txt", "--no-binary :all:"),
        ("requirements.txt", "anyio>=4"),
    ],
)
def test_a_line_that_holds_on_one_machine_is_named(path: str, line: str) -> None:
    assert [complaint.line for complaint in foreign_lines(path, f"first==1\n{line}\n", PLACES)] == [2]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("docs/start.md", "http://127.0.0.1:8000/home and /tmp/skate-7, ~/src/skate"),
        ("docs/start.md", "https://docs.example/srv/build/skate"),
        ("requirements.txt", "PyYAML==6.0.3"),
        ("requirements-dev.txt", "-r requirements.txt"),
    ],
)
def test_other_lines_pass(path: str, line: str) -> None:
    assert list(foreign_lines(path, line, PLACES)) == []


if __name__ == "__main__":
    everything = [complaint for each in source_modules() for complaint in complaints(each)]
    print(*everything, sep="\n")
    sys.exit(bool(everything))
