"""The source texts that a deployment is made of: its module and the user's own modules that it imports.

Law: a version is the code as it was when it was deployed. So the version follows from these texts, and a replica that
is started later (after a crash, for a rollback) runs them even if the files have been edited meanwhile; where the
files are unchanged they are imported as usual. What is installed (the standard library, packages) is not looked at.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import os
import site
import sys
import sysconfig
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from types import MappingProxyType, ModuleType

from skate.core.clock import SystemClock
from skate.core.specs import Source

MODULES_MAX = 1000  # of one application; beyond that the texts are not kept
BYTES_MAX = 8 * 1024 * 1024  # of all texts together, before compression
_FILES_MAX = 4096  # of which the imports are remembered

_PID = os.getpid()  # of the process that imported this; what was forked from it has another
_BORN = SystemClock().wall()  # of this process or of what it was forked from: before user code was preloaded
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


# -- what belongs to a deployment -------------------------------------------------------------------


def sources_of(module: str) -> dict[str, Source]:
    """The user's own modules that ``module`` is made of, itself among them, by name; empty where there are no files.

    Follows import statements, also those inside functions, as they stand in the texts on disk. For a script
    (``__main__``) its own text is left out: its code travels by value.
    """
    found: dict[str, Source] = {}
    todo = [module]
    seen = set(todo)
    while todo:
        name = todo.pop()
        file = _file_of(name)
        text = _read(file) if file is not None else None
        if file is None or text is None:
            continue
        if name != "__main__":
            found[name] = Source(file, zlib.compress(text, 1))
        package = name if os.path.basename(file) == "__init__.py" else name.rpartition(".")[0]
        for other in _imports(text, package, file):
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return found


def fingerprint(sources: Mapping[str, Source]) -> bytes:
    """A hash of the texts and their names, whatever folder they lie in."""
    made = sha256()
    for name in sorted(sources):
        made.update(f"{name}\0".encode() + sha256(text_of(sources[name])).digest())
    return made.digest()


def text_of(source: Source) -> bytes:
    """The text itself."""
    return zlib.decompress(source.text)


def merged(parts: Iterable[Mapping[str, Source]]) -> dict[str, Source]:
    """The modules of a whole application; nothing when they are too many or too large to be kept."""
    together: dict[str, Source] = {}
    for part in parts:
        together.update(part)
    if len(together) > MODULES_MAX or sum(len(text_of(one)) for one in together.values()) > BYTES_MAX:
        return {}
    return together


def _imports(text: bytes, package: str, file: str) -> Iterator[str]:
    """Modules of the user's own that may be meant by the import statements of a text."""
    for name in _names(text, package, file):
        path = _file_of(name)
        if path is not None:
            yield name


@lru_cache(maxsize=_FILES_MAX)
def _names(text: bytes, package: str, file: str) -> tuple[str, ...]:
    try:
        tree = ast.parse(text, file)
    except (SyntaxError, ValueError, RecursionError):
        return ()
    names: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names.update(dict.fromkeys(_parents(alias.name)))
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node.module or "", node.level, package)
            names.update(dict.fromkeys(_parents(base)))
            names.update(dict.fromkeys(f"{base}.{alias.name}" for alias in node.names if base and alias.name != "*"))
    return tuple(names)


def _absolute(module: str, level: int, package: str) -> str:
    if not level:
        return module
    parts = package.split(".") if package else []
    base = parts[: len(parts) - (level - 1)]
    return ".".join([*base, module] if module else base)


def _parents(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _file_of(name: str) -> str | None:
    """The source file of a module of the user's own, without importing anything that is not imported yet."""
    module = sys.modules.get(name)
    if module is not None:
        file = getattr(module, "__file__", None)
    else:
        file = _unimported_file(name)
    if not isinstance(file, str) or not file.endswith(".py"):
        return None
    path = os.path.abspath(file)
    return None if path.startswith(_installed()) else path


def _unimported_file(name: str) -> str | None:
    parent, _, _ = name.rpartition(".")
    search: Sequence[str] | None = None
    if parent:
        package = sys.modules.get(parent)
        if package is not None:
            search = list(getattr(package, "__path__", ()))
        else:
            above = _unimported_file(parent)
            search = [os.path.dirname(above)] if above is not None and above.endswith("__init__.py") else []
        if not search:
            return None
    try:
        spec = importlib.machinery.PathFinder.find_spec(name, search)
    except (ImportError, ValueError):
        return None
    return spec.origin if spec is not None else None


@lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    """Where code lies that is not the user's own."""
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths.update(site.getsitepackages() if hasattr(site, "getsitepackages") else ())
    paths.add(site.getusersitepackages())
    return (_OWN, *(os.path.abspath(path) + os.sep for path in paths if path))


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(BYTES_MAX + 1)
    except OSError:
        return None


# -- running them -----------------------------------------------------------------------------------


def imported() -> dict[str, str]:
    """The files of the user's own modules that are imported in this process, by the module's name."""
    return {
        name: file
        for name, module in list(sys.modules.items())
        if name != "__main__"
        and isinstance(file := getattr(module, "__file__", None), str)
        and file.endswith(".py")
        and not file.startswith(_installed())
    }


_at_fork: dict[str, str] | None = None  # what ``imported`` said before this process was forked
_counted = -1  # modules there were then


def _before_fork() -> None:
    """Whoever forks many looks once: a forked process that touches every module gets a copy of its memory."""
    global _at_fork, _counted
    if len(sys.modules) != _counted:
        _at_fork, _counted = imported(), len(sys.modules)


os.register_at_fork(before=_before_fork)


def forget(modules: Iterable[str]) -> None:
    """Whoever imports these modules from now on gets them anew."""
    for name in modules:
        parent, _, last = name.rpartition(".")
        if parent in sys.modules and getattr(sys.modules[parent], last, None) is sys.modules[name]:
            delattr(sys.modules[parent], last)
        del sys.modules[name]


def renew(sources: Mapping[str, Source] = MappingProxyType({})) -> None:
    """Forgets the user's own modules that were imported before this process was forked, all of them, if the file of one
    was edited since, or one is another text than in ``sources``. What is unchanged stays: it is shared memory. Where
    this process was not forked its modules are its own, and nothing is forgotten."""
    if os.getpid() == _PID:
        return
    own = imported() if _at_fork is None else _at_fork
    if any(_is_edited(file) for file in own.values()) or any(
        name in own and _read(own[name]) != text_of(source) for name, source in sources.items()
    ):
        forget(own)


def _is_edited(file: str) -> bool:
    try:
        seen = os.stat(file)
    except OSError:
        return True
    return max(seen.st_mtime, seen.st_ctime) >= _BORN


def install(sources: Mapping[str, Source]) -> None:
    """From now on these modules are imported as they were, whatever stands in their files now."""
    if sources:
        sys.meta_path.insert(0, _KeptFinder(sources))


class _KeptFinder(importlib.abc.MetaPathFinder):
    """Finds modules whose file has changed since; for all others the usual finders do."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = dict(sources)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        source = self._sources.get(fullname)
        if source is None:
            return None
        text = text_of(source)
        if _read(source.path) == text:
            return None
        is_package = os.path.basename(source.path) == "__init__.py"
        return importlib.util.spec_from_file_location(
            fullname,
            source.path,
            loader=_KeptLoader(fullname, source.path, text),
            submodule_search_locations=[os.path.dirname(source.path)] if is_package else None,
        )


class _KeptLoader(importlib.abc.SourceLoader):
    """Loads a module from its kept text; ``__file__`` is the file's path, so data beside it is found."""

    def __init__(self, name: str, path: str, text: bytes) -> None:
        self._name, self._path, self._text = name, path, text

    def get_filename(self, fullname: str) -> str:
        """Where the module's file is, or was."""
        return self._path

    def exec_module(self, module: ModuleType) -> None:
        """Runs the text; tracebacks show its lines and not those of the file."""
        lines = self._text.decode(errors="replace").splitlines(keepends=True)
        linecache.cache[self._path] = (len(self._text), None, lines, self._path)  # no time: never looked up anew
        super().exec_module(module)

    def get_data(self, path: str | bytes) -> bytes:
        """The text; everything else from the disk. No bytecode: what is cached belongs to the file of today."""
        if path == self._path:
            return self._text
        if os.fsdecode(path).endswith(".pyc"):
            raise OSError("bytecode of another text")
        with open(path, "rb") as file:
            return file.read()
