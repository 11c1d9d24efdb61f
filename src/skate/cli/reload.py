"""Where ``skate run`` gets its application from: this process, or with ``--reload`` a fresh interpreter each time.

Law: code that has been imported is never imported again in the same process; a new version is a new process. So a
half-changed module, a crash or an endless loop at import is nothing to the instance that serves the old version.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import IO

import msgspec
from msgspec.structs import replace

from skate import serve
from skate.authoring.load import application, put_first
from skate.authoring.traces import short_path
from skate.cli.failure import said
from skate.cli.fresh import Interpreter
from skate.core.errors import ImportPathError, OptionError
from skate.core.specs import AppSpec

DEBOUNCE_MS = 400  # editors write several files, and some write one twice
END_S = 2.0


@dataclass(frozen=True)
class Recipe:
    """What the user said on the command line about the application."""

    path: str
    arguments: Mapping[str, str]
    name: str
    route_prefix: str
    app_dir: str = "."

    def spec(self, salt: str = "") -> AppSpec:
        """The application, loaded in this process. ``salt``: makes its versions differ from those without it."""
        put_first(self.app_dir)
        app = application(self.path, self.arguments, self.app_dir)
        made = serve.application_spec(app, self.name, self.route_prefix)
        if not salt:
            return made
        salted = (replace(one, version=_salted(one.version, salt)) for one in made.deployments)
        return replace(made, deployments=tuple(salted))

    def words(self) -> list[str]:
        """The same as a command line."""
        options = [f"--name={self.name}", f"--route-prefix={self.route_prefix}", f"--app-dir={self.app_dir}"]
        return [*options, "--", self.path, *(f"{key}={value}" for key, value in self.arguments.items())]


def _salted(version: str, salt: str) -> str:
    return sha256(f"{version} {salt}".encode()).hexdigest()


class Once:
    """The application as this process imports it."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def load(self) -> AppSpec:
        return self._recipe.spec()

    def watch(self, on_change: Callable[[tuple[str, ...]], None]) -> None:
        """Changes do not count."""

    def close(self) -> None:
        """There is nothing to end."""


# -- fresh interpreters -----------------------------------------------------------------------------


class Result(msgspec.Struct):
    """What the other interpreter answers: one of the two."""

    spec: AppSpec | None = None
    error: str = ""


class Fresh:
    """The application as a new interpreter imports it, each time it is loaded."""

    def __init__(self, recipe: Recipe, verbose: bool) -> None:
        try:
            import watchfiles
        except ImportError:
            raise OptionError(
                "--reload needs the package watchfiles; install it with: pip install watchfiles"
            ) from None
        self._watch = watchfiles.watch
        self._filter = watchfiles.PythonFilter()
        put_first(recipe.app_dir)
        self._recipe = recipe
        self._verbose = verbose
        self._loaded = False
        self._interpreter = Interpreter()
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None

    def load(self) -> AppSpec:
        salt = ["--salt", secrets.token_hex(8)] if self._loaded else []
        words = ["spec", *salt, *(["-v"] if self._verbose else []), *self._recipe.words()]
        result = msgspec.msgpack.decode(self._interpreter.ask(words, self._recipe.path), type=Result)
        if result.spec is None:
            raise ImportPathError(result.error)
        self._loaded = True
        return result.spec

    def watch(self, on_change: Callable[[tuple[str, ...]], None]) -> None:
        directory = os.path.abspath(self._recipe.app_dir)
        watching = self._watch(
            directory,
            watch_filter=self._filter,
            debounce=DEBOUNCE_MS,
            stop_event=self._closing,
            raise_interrupt=False,
        )

        def pass_on() -> None:
            for changes in watching:
                files = sorted({path for _, path in changes})
                for file in files:
                    forget_bytecode(file)
                on_change(tuple(map(short_path, files)))

        self._watcher = threading.Thread(target=pass_on, name="skate-reload", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        self._closing.set()
        self._interpreter.close()
        if self._watcher is not None:
            self._watcher.join(END_S)


def forget_bytecode(file: str) -> None:
    """Python tells old bytecode from new by seconds and sizes only; two quick changes of a digit look the same."""
    with contextlib.suppress(OSError, NotImplementedError):
        os.unlink(importlib.util.cache_from_source(file))


def answer(recipe: Recipe, salt: str, to: IO[bytes]) -> BaseException | None:
    """The other interpreter's side: writes a Result, and returns the error that is in it."""
    try:
        to.write(msgspec.msgpack.encode(Result(recipe.spec(salt))))
        return None
    except Exception as error:
        to.write(msgspec.msgpack.encode(Result(error=said(error))))
        return error
