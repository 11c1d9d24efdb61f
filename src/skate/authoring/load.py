"""From an import path and the arguments of a builder to a bound application.

Law: every way in which this can fail is an ImportPathError that names the module or attribute, the place in the user's
file, and what to write instead. User code runs here; what it raises is never shown as a mistake of Skate.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from skate.authoring.deployment import Application, Deployment
from skate.authoring.traces import one_line, place
from skate.core.checks import nearest, shown
from skate.core.errors import ImportPathError


def application(path: str, arguments: Mapping[str, Any], app_dir: str = ".") -> Application[Any]:
    """The application at ``module:attribute``; a builder function is called with the arguments.

    Modules are looked for in ``app_dir`` and the working directory first. Raises ``ImportPathError``.
    """
    put_first(app_dir)
    way_out = "go to the directory that holds it, or name that with --app-dir"
    return imported(path, arguments, f"in {os.path.abspath(app_dir)} or on Python's import path; {way_out}")


def imported(path: str, arguments: Mapping[str, Any], looked: str) -> Application[Any]:
    """The same on the import path as it is. ``looked``: where modules are looked for, and what to do, in words."""
    module_name, attribute = parsed(path)
    found = _attribute(_module(module_name, looked), attribute, path)
    if isinstance(found, Application):
        if arguments:
            raise ImportPathError(
                f"{path} is a bound application and takes no arguments ({', '.join(arguments)}); only a function that "
                "builds one does: def build(args: dict) -> Application"
            )
        return found
    if isinstance(found, Deployment):
        raise ImportPathError(
            f"{path} is a deployment that is not bound yet: write app = {attribute}.bind(...) in {module_name} and run "
            f"{module_name}:app"
        )
    if inspect.isclass(found) or not callable(found):
        raise ImportPathError(
            f"{path} is {_kind(found)}, no application; it must lead to what .bind(...) of a deployment returns, or to "
            "a function that returns that"
        )
    return _built(found, arguments, path)


def put_first(app_dir: str) -> None:
    """Makes modules below ``app_dir`` and then those of the working directory win over all others."""
    directory = os.path.abspath(app_dir)
    if not os.path.isdir(directory):
        raise ImportPathError(f"--app-dir {app_dir} is no directory")
    importlib.invalidate_caches()
    first = list(dict.fromkeys((directory, os.getcwd())))
    sys.path[:] = first + [entry for entry in sys.path if os.path.abspath(entry) not in first]


def check_preload(modules: Sequence[str]) -> None:
    """Refuses modules that are not there, before a process is started that could not import them."""
    for module in modules:
        try:
            known = importlib.util.find_spec(module) is not None
        except Exception:  # a package above it that is not there, or does not import
            known = False
        if not known:
            raise ImportPathError(f"--preload {module}: there is no such module on Python's import path")


def parsed(path: str) -> tuple[str, str]:
    """Module and attribute of an import path."""
    if path.endswith((".yaml", ".yml", ".json")):
        raise ImportPathError(f"{path!r} is no import path such as module:app; config files stand by themselves")
    module, colon, attribute = path.partition(":")
    if module.endswith(".py") or "/" in module or os.sep in module:
        right = module.removesuffix(".py").removeprefix("./").replace(os.sep, ".").strip(".")
        raise ImportPathError(f"{path!r} names a file; write it as a module: {right}:{attribute or 'app'}")
    if not colon:
        first, _, last = path.rpartition(".")
        right = f"{first}:{last}" if first else f"{path}:app"
        raise ImportPathError(f"{path!r} has no colon between module and attribute; write {right}")
    if ":" in attribute or not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise ImportPathError(f"{path!r} is no import path; write module:attribute, for example package.module:app")
    return module, attribute


def _module(name: str, looked: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ImportPathError(f"there is no module {error.name!r} {looked}") from error
        raise ImportPathError(f"module {name!r} does not import: {one_line(error)}{place(error)}") from error
    except SystemExit as error:
        raise ImportPathError(
            f"module {name!r} does not import: it ended the program with exit code {error.code}{place(error)}; "
            "put what runs the script under: if __name__ == '__main__':"
        ) from error
    except Exception as error:
        raise ImportPathError(f"module {name!r} does not import: {one_line(error)}{place(error)}") from error


def _attribute(module: Any, attribute: str, path: str) -> Any:
    found = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            apps = [name for name, value in vars(module).items() if isinstance(value, Application)]
            has = f"; its applications are: {', '.join(apps)}" if apps else nearest(part, dir(found))
            raise ImportPathError(f"module {module.__name__!r} has no {attribute!r}{has}") from None
    return found


def _kind(value: Any) -> str:
    if inspect.isclass(value):
        return "a class without @serve.deployment" if value.__module__ != "builtins" else "a class"
    return f"{shown(value)} of type {type(value).__name__}"


# -- builders -----------------------------------------------------------------------------------------


def _built(builder: Callable[..., Any], arguments: Mapping[str, Any], path: str) -> Application[Any]:
    value = _converted(_parameter_type(builder, path), arguments, path)
    try:
        made = builder(value)
    except (Exception, SystemExit) as error:
        raise ImportPathError(f"the builder {path} raised {one_line(error)}{place(error)}") from error
    if not isinstance(made, Application):
        hint = "; put .bind(...) on it" if isinstance(made, Deployment) else ""
        raise ImportPathError(
            f"the builder {path} returned {shown(made)}, which is no application; it must return what .bind(...) of a "
            f"deployment returns{hint}"
        )
    return made


def _parameter_type(builder: Callable[..., Any], path: str) -> Any:
    """The annotation of the one parameter; ``dict`` where there is none."""
    parameters = list(inspect.signature(builder).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(parameters) != 1 or parameters[0].kind not in positional:
        raise ImportPathError(
            f"{path} is a function with {len(parameters)} parameters. A builder takes exactly one, a dict or a typed "
            "model: def build(args: dict) -> Application. To serve the function itself, put @serve.deployment on it, "
            "and .bind() it"
        )
    name = parameters[0].name
    try:
        annotation = typing.get_type_hints(builder).get(name, dict)
    except Exception as error:
        raise ImportPathError(
            f"the annotation of {name!r} in the builder {path} is wrong: {one_line(error)}"
        ) from error
    origin = typing.get_origin(annotation) or annotation
    return dict if origin in (Any, dict, Mapping) or isinstance(origin, str) else annotation


def _converted(kind: Any, arguments: Mapping[str, Any], path: str) -> Any:
    if kind is dict or (inspect.isclass(kind) and issubclass(dict, kind)):
        return dict(arguments)
    try:
        if hasattr(kind, "model_validate"):  # pydantic
            return kind.model_validate(dict(arguments))
        if hasattr(kind, "parse_obj"):  # pydantic before 2
            return kind.parse_obj(dict(arguments))
        return msgspec.convert(dict(arguments), kind, strict=False)
    except (ValueError, TypeError) as error:
        raise ImportPathError(
            f"the arguments do not fit {getattr(kind, '__name__', kind)}, which the builder {path} takes: "
            f"{_reason(error)}{_fields(kind)}"
        ) from error


def _reason(error: Exception) -> str:
    errors = getattr(error, "errors", None)
    if not callable(errors):
        return " ".join(str(error).split())
    found: Sequence[Mapping[str, Any]] = errors()
    return "; ".join(f"{'.'.join(map(str, one.get('loc', ())))}: {one.get('msg', '')}" for one in found)


def _fields(kind: Any) -> str:
    names = getattr(kind, "model_fields", None) or getattr(kind, "__struct_fields__", None)
    if names is None and dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    return f" (it has: {', '.join(names)})" if names else ""
