"""Where ``skate run`` gets its applications from: this process, or with ``--reload`` a fresh interpreter each time; or
a file, whose code the instance itself imports, in a process of its own each time.

Law: code that has been imported is never imported again in the same process; a new version is a new process. So a
half-changed module, a crash or an endless loop at import is nothing to the instance that serves the old version. What a
changed file concerns is said by the versions (``authoring.sources``): deployments that do not use it keep running.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import msgspec

from skate import serve
from skate.authoring.load import application, put_first
from skate.authoring.traces import short_path
from skate.cli import target as targets
from skate.cli.failure import said
from skate.cli.fresh import Interpreter
from skate.core.config import ApplyRequest, ServeConfig
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

    def spec(self) -> AppSpec:
        """The application, loaded in this process."""
        put_first(self.app_dir)
        app = application(self.path, self.arguments, self.app_dir)
        return serve.application_spec(app, self.name, self.route_prefix)

    def words(self) -> list[str]:
        """The same as a command line."""
        options = [f"--name={self.name}", f"--route-prefix={self.route_prefix}", f"--app-dir={self.app_dir}"]
        return [*options, "--", self.path, *(f"{key}={value}" for key, value in self.arguments.items())]


class Once:
    """The application as this process imports it."""

    def __init__(self, recipe: Recipe) -> None:
        self.target = recipe.path
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
        put_first(recipe.app_dir)
        self.target = recipe.path
        self._recipe = recipe
        self._verbose = verbose
        self._interpreter = Interpreter()
        self._watcher = Watcher((recipe.app_dir,))

    def load(self) -> AppSpec:
        words = ["spec", *(["-v"] if self._verbose else []), *self._recipe.words()]
        result = msgspec.msgpack.decode(self._interpreter.ask(words, self._recipe.path), type=Result)
        if result.spec is None:
            raise ImportPathError(result.error)
        return result.spec

    def watch(self, on_change: Callable[[tuple[str, ...]], None]) -> None:
        self._watcher.start(on_change)

    def close(self) -> None:
        self._interpreter.close()
        self._watcher.close()


class File:
    """The applications of a config file, as the instance builds them."""

    def __init__(self, path: str, app_dir: str, reloads: bool) -> None:
        self.target = path
        self._app_dir = app_dir
        self._config: ServeConfig | None = targets.read(path)  # until it is loaded for the first time
        self.http_options: Mapping[str, Any] = self._config.http_options
        self.without_http = targets.without_http(self._config)
        self.of_instance = targets.of_instance(self._config)
        own = (app.runtime_env.get("working_dir") for app in self._config.applications)
        folders = [folder for folder in (app_dir, *own) if folder and os.path.isdir(folder)]
        self._watcher = Watcher(folders, os.path.abspath(path)) if reloads else None

    def load(self) -> ApplyRequest:
        config, self._config = self._config or targets.read(self.target), None
        return targets.order("run", self.target, config, self._app_dir)

    def watch(self, on_change: Callable[[tuple[str, ...]], None]) -> None:
        if self._watcher is not None:
            self._watcher.start(on_change)

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.close()


# -- watching ---------------------------------------------------------------------------------------


class Watcher:
    """Tells which Python files below some folders, and which config file, have changed."""

    def __init__(self, folders: Sequence[str], file: str | None = None) -> None:
        """Raises OptionError where the package that watches is missing."""
        try:
            import watchfiles
        except ImportError:
            raise OptionError(
                "--reload needs the package watchfiles; install it with: pip install watchfiles"
            ) from None
        self._file = file
        beside = [os.path.dirname(file)] if file is not None else []  # editors put a new file in its place
        self._folders = list(dict.fromkeys(map(os.path.abspath, (*folders, *beside))))
        self._watch = watchfiles.watch
        self._python = watchfiles.PythonFilter()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, on_change: Callable[[tuple[str, ...]], None]) -> None:
        """Calls back at every change until ``close``."""
        watching = self._watch(
            *self._folders,
            watch_filter=lambda change, path: path == self._file or self._python(change, path),
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

        self._thread = threading.Thread(target=pass_on, name="skate-reload", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends watching."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(END_S)


def forget_bytecode(file: str) -> None:
    """Python tells old bytecode from new by seconds and sizes only; two quick changes of a digit look the same."""
    with contextlib.suppress(OSError, NotImplementedError):
        os.unlink(importlib.util.cache_from_source(file))


def answer(recipe: Recipe, to: IO[bytes]) -> BaseException | None:
    """The other interpreter's side: writes a Result, and returns the error that is in it."""
    try:
        to.write(msgspec.msgpack.encode(Result(recipe.spec())))
        return None
    except Exception as error:
        to.write(msgspec.msgpack.encode(Result(error=said(error))))
        return error
