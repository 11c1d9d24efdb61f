"""One real instance for each module of tests, applications of its own for each test; nothing may be left at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from skate import serve
from skate.core.environment import environment
from skate.core.errors import NotFoundError
from tests.e2e.notes import Gate, Notes
from tests.e2e.world import Instance, Script, client, here, until

Deploy = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="module")
def runtime_dir() -> Iterator[Path]:
    """An empty runtime folder for this module, short because Unix socket paths are."""
    before = os.environ.get("SKATE_RUNTIME_DIR")
    folder = tempfile.mkdtemp(prefix="sk-")
    os.environ["SKATE_RUNTIME_DIR"] = folder
    environment.cache_clear()
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    if before is not None:
        os.environ["SKATE_RUNTIME_DIR"] = before
    environment.cache_clear()


@pytest.fixture(scope="module")
def instance(request: pytest.FixtureRequest, runtime_dir: Path) -> Iterator[Instance]:
    """A running instance; a module's HTTP_OPTIONS and PRELOAD change it."""
    options = {"port": 0, **getattr(request.module, "HTTP_OPTIONS", {})}
    serve.start(http_options=options, preload=getattr(request.module, "PRELOAD", ()))
    running = here()
    yield running
    serve.shutdown()
    assert running.leftovers() == []


@pytest.fixture(scope="module")
def http(instance: Instance) -> Iterator[httpx.Client]:
    with client(instance.url) as opened:
        yield opened


@pytest.fixture
def deploy(instance: Instance, request: pytest.FixtureRequest) -> Iterator[Deploy]:
    """``deploy(app)`` runs an application as ``a1`` at ``/a1``, or under another name, until the test ends."""
    names: list[str] = []

    def run(app: Any, name: str = "a1", route_prefix: str | None = "") -> Any:
        names.append(name)
        return serve.run(app, name=name, route_prefix=f"/{name}" if route_prefix == "" else route_prefix)

    yield run
    for name in reversed(list(dict.fromkeys(names))):
        try:
            serve.delete(name)
        except NotFoundError:
            pass  # the test did


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path / "gate")
    yield made
    made.open()  # handlers that still wait must not hold up the end of the instance


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Callable[[object], Gate]]:
    made: list[Gate] = []

    def gate_of(name: object) -> Gate:
        made.append(Gate(tmp_path / f"gate-{name}"))
        return made[-1]

    yield gate_of
    for one in made:
        one.open()


@pytest.fixture
def script(tmp_path: Path, runtime_dir: Path) -> Iterator[Callable[..., Script]]:
    """Starts a user's program with the module's runtime folder; what it started must be gone when the test ends."""
    started: list[Script] = []

    def start(text: str, *arguments: str, **more: Any) -> Script:
        started.append(Script(tmp_path, text, arguments, **more))
        return started[-1]

    yield start
    for one in started:
        one.close()


__all__ = ["Deploy", "until"]
