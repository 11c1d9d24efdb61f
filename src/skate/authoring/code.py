"""How user code and values reach another process: by import path where that works, by value elsewhere.

Law: ``load(pack(target))`` is the target itself, or an equal one, in any process of the same interpreter; what cannot
travel is a ``CodeError`` where it is sent, never a surprise where it arrives. Values take plain pickle (about 1 µs) and
cloudpickle only where that fails or names ``__main__``, which is another module in every process.

Why not cloudpickle alone: (1) code of a script often holds objects with locks or context variables (a FastAPI app
does), which are made anew in the replica; in plain *values* a lock stays an error. (2) cloudpickle writes a class into
every value of it and lays it over the class that the receiver already has; here a known class is left alone, so that
an exception or a result comes back as the very class of the caller, untouched.
"""

from __future__ import annotations

import importlib
import io
import pickle
import re
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import Context, ContextVar
from functools import cached_property
from hashlib import sha256
from types import CodeType, FunctionType, ModuleType
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, WeakSet

import cloudpickle
import msgspec
from cloudpickle import cloudpickle as cloud

from skate.core.checks import nearest
from skate.core.errors import CodeError, ImportPathError
from skate.core.specs import CodeRef

PROTOCOL = 5
BUFFER_MIN = 16 * 1024  # bytes of a buffer that is taken out of the pickle, where somebody takes it
_SCRIPTS = ("__main__", "__mp_main__")
_REMADE: dict[type, Callable[[], Any]] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
    threading.local: threading.local,
}

Reduced = tuple[Any, ...]


# -- values -----------------------------------------------------------------------------------------


class Buffers(list[pickle.PickleBuffer]):
    """Takes the large buffers of a value out of its pickle; those below ``BUFFER_MIN`` bytes stay in it."""

    __slots__ = ()

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < BUFFER_MIN:
            return True
        self.append(buffer)
        return False


def dumps(value: Any, buffers: Buffers | None = None) -> bytes:
    """Pickle a value for another process; with ``buffers``, its large ones go there and not into the pickle.

    Raises ``CodeError`` when it cannot travel.
    """
    try:
        data = pickle.dumps(value, PROTOCOL, buffer_callback=buffers)
    except Exception:
        return _dumps_by_value(value, buffers)
    if b"__main__" in data or cloud._PICKLE_BY_VALUE_MODULES:
        return _dumps_by_value(value, buffers)
    return data


def loads(data: bytes | bytearray | memoryview, buffers: Iterable[Any] = ()) -> Any:
    """Rebuild what ``dumps`` wrote. Raises ``CodeError`` when its classes cannot be found or rebuilt here."""
    try:
        return pickle.loads(data, buffers=buffers)
    except Exception as error:
        raise CodeError(f"a value from another process cannot be rebuilt in this one: {_said(error)}") from error


def _dumps_by_value(value: Any, buffers: Buffers | None = None) -> bytes:
    try:
        return _dump(_ValuePickler, value, buffers)
    except Exception as first:
        try:  # functions, too, as packages of their own: what their code refers to may be made anew
            return _dump(_FunctionValuePickler, value, buffers)
        except Exception:
            kind = type(value).__name__
            raise CodeError(f"a value of type {kind} cannot be sent to another process: {_said(first)}") from first


def _dump(pickler: type[cloudpickle.Pickler], value: Any, buffers: Buffers | None = None) -> bytes:
    if buffers is not None:
        buffers.clear()  # of an attempt before this one
    with io.BytesIO() as file:
        pickler(file, protocol=PROTOCOL, buffer_callback=buffers).dump(value)
        return file.getvalue()


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).rstrip('.')}" if str(error) else type(error).__name__


# -- code -------------------------------------------------------------------------------------------


def pack(target: Any, name: str = "") -> CodeRef:
    """Say where a class or function comes from; ``name`` is its deployment's, for messages. Raises ``CodeError``."""
    if path := import_path(target):
        return CodeRef(import_path=path)
    module = sys.modules.get(target.__module__)
    strange = module is not None and target.__module__ not in _SCRIPTS and not _can_import(target.__module__)
    try:
        if strange and module is not None:
            cloudpickle.register_pickle_by_value(module)
        return CodeRef(pickled=_dump(_CodePickler, target))
    except Exception as error:
        raise CodeError(_unpackable(target, name, error)) from error
    finally:
        if strange and module is not None:
            cloudpickle.unregister_pickle_by_value(module)


def load(ref: CodeRef) -> Any:
    """The class or function that ``pack`` was given. Raises ``ImportPathError`` or ``CodeError`` with the cause."""
    if ref.import_path is not None:
        found = resolve(ref.import_path)
        return getattr(found, "func_or_class", found)
    try:
        return pickle.loads(ref.pickled or b"")
    except (Exception, SystemExit) as error:
        raise CodeError(
            "the code of this deployment was sent by value and cannot be rebuilt in this process: "
            f"{_said(error)}\n{traceback.format_exc()}"
        ) from error


def resolve(path: str) -> Any:
    """What ``module:attribute`` (or ``module.attribute``) leads to. Raises ``ImportPathError`` with the cause."""
    module_name, sign, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if not sign or not module_name or not attribute:
        raise ImportPathError(f"{path!r} is no import path; write 'package.module:attribute'.")
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ImportPathError(
            f"{path!r}: module {module_name!r} does not import in this process: {_said(error)}\n"
            f"{traceback.format_exc()}"
        ) from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            hint = nearest(part, dir(found))
            raise ImportPathError(f"{path!r}: module {module_name!r} has no {attribute!r}{hint}.") from None
    return found


_importing = threading.Lock()


def resolve_within(path: str, places: Iterable[str]) -> Any:
    """The same with ``places`` in front of this process's search path meanwhile. Raises ``ImportPathError``."""
    with _importing:
        added = [place for place in places if place not in sys.path]
        sys.path[:0] = added
        try:
            return resolve(path)
        finally:
            for place in added:
                sys.path.remove(place)


def import_path(target: Any) -> str | None:
    """``module:qualname`` where importing that gives exactly the target (or the Deployment around it), else None."""
    module, qualname = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or module in _SCRIPTS or "<" in qualname:
        return None
    found: Any = sys.modules.get(module)
    if found is None or found in cloud._PICKLE_BY_VALUE_MODULES or module in cloud._PICKLE_BY_VALUE_MODULES:
        return None
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if found is not target and getattr(found, "func_or_class", None) is not target:
        return None
    return f"{module}:{qualname}" if _can_import(module) else None


def _can_import(module: str) -> bool:
    """Whether another process finds the module; one that a program made up in memory is not found."""
    if getattr(sys.modules.get(module), "__spec__", None) is None:
        return False
    top = module.partition(".")[0]
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    return any(find(top, None) is not None for find in finders if find is not None)


def module_of(target: Any) -> str:
    """The module that a class or function was written in."""
    return str(getattr(target, "__module__", None) or "")


def fingerprint(ref: CodeRef) -> bytes:
    """A hash of what travels; for an import path that is the path, and the texts behind it are ``sources``' matter."""
    return sha256(
        ref.import_path.encode() if ref.import_path is not None else without_tracks(ref.pickled or b"")
    ).digest()


_TRACK = re.compile(rb"[0-9a-f]{32}")


def without_tracks(data: bytes) -> bytes:
    """The pickle with the random ids of its classes and context variables replaced by their order of appearance."""
    if b"cloudpickle" not in data and __name__.encode() not in data:
        return data
    order: dict[bytes, int] = {}

    def number(match: re.Match[bytes]) -> bytes:
        track = match[0].decode()
        if track not in cloud._DYNAMIC_CLASS_TRACKER_BY_ID and track not in _variables:
            return match[0]
        return b"%032d" % order.setdefault(match[0], len(order))

    return _TRACK.sub(number, data)


# -- picklers ---------------------------------------------------------------------------------------


class _CodePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Packs code by value: locks and context variables in it are made anew where it is loaded."""

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind in _REMADE or kind is ContextVar:
            if home := self._homes.get(id(obj)):
                return getattr, home
            return _reduce_variable(obj) if kind is ContextVar else (_REMADE[kind], ())
        if (isinstance(obj, type) or kind is FunctionType) and (path := _hidden_path(obj)):
            return load, (CodeRef(import_path=path),)
        if isinstance(obj, type(msgspec.Struct)) and not cloud._should_pickle_by_reference(obj):
            return _reduce_struct(obj)
        if _asks_itself(kind, obj):
            return _bare, (kind,), obj.__dict__, None, None, _fill
        return _with_annotations(obj, super().reducer_override(obj))

    @cached_property
    def _homes(self) -> dict[int, tuple[ModuleType, str]]:
        """Locks and context variables that are attributes of modules; those go by reference."""
        return dict(_module_state())


def _module_state() -> Iterator[tuple[int, tuple[ModuleType, str]]]:
    for name, module in list(sys.modules.items()):
        if name not in _SCRIPTS and getattr(module, "__spec__", None) is not None:
            for attribute, value in list(vars(module).items()):
                if type(value) in _REMADE or type(value) is ContextVar:
                    yield id(value), (module, attribute)


def _with_annotations(obj: Any, reduced: Any) -> Any:
    """Annotations written as text are read here: in the replica their names would be looked up in another __main__."""
    if reduced is NotImplemented or len(reduced) < 3 or not isinstance(obj, type | FunctionType):
        return reduced
    scope = vars(sys.modules.get(obj.__module__ or "", object)) if isinstance(obj, type) else obj.__globals__
    state = tuple(
        {**part, **_read(part, scope), **_alone(part)} if isinstance(part, dict) else part for part in reduced[2]
    )
    return (*reduced[:2], state, *reduced[3:])


def _alone(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A pydantic model that is complete does not need the local variables among which it was written."""
    name = "__pydantic_parent_namespace__"
    return {name: None} if name in attributes and attributes.get("__pydantic_complete__") else {}


def _read(attributes: Mapping[str, Any], scope: Mapping[str, Any]) -> dict[str, Any]:
    written = attributes.get("__annotations__")
    if not isinstance(written, dict) or not any(isinstance(one, str) for one in written.values()):
        return {}
    return {"__annotations__": {name: _read_one(one, scope) for name, one in written.items()}}


def _read_one(annotation: Any, scope: Mapping[str, Any]) -> Any:
    read = annotation
    try:
        for _ in range(2):  # twice where a module defers annotations and one is quoted besides
            read = eval(read, dict(scope)) if isinstance(read, str) else read
    except Exception:  # a name for type checkers only
        return annotation
    return read


def _hidden_path(obj: Any) -> str | None:
    """The import path of a class or function whose name in its module leads to the Deployment around it."""
    if obj.__module__ in _SCRIPTS or cloud._should_pickle_by_reference(obj):
        return None
    return import_path(obj)


class _ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles values; a class that must go by value is a package of its own, opened only where it is unknown."""

    packages: ClassVar[WeakKeyDictionary[type, bytes]] = WeakKeyDictionary()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type) and not cloud._should_pickle_by_reference(obj):
            if path := _hidden_path(obj):
                return load, (CodeRef(import_path=path),)
            track = cloud._get_or_create_tracker_id(obj)
            if (package := self.packages.get(obj)) is None:
                package = self.packages[obj] = _dump(_CodePickler, obj)
            return _known_class, (track, package)
        return super().reducer_override(obj)


class _FunctionValuePickler(_ValuePickler):
    """The same for functions; they lose what they share with other functions of the same value."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is FunctionType and not cloud._should_pickle_by_reference(obj):
            return pickle.loads, (_dump(_CodePickler, obj),)
        return super().reducer_override(obj)


def _known_class(track: str, package: bytes) -> Any:
    known = cloud._DYNAMIC_CLASS_TRACKER_BY_ID.get(track)
    return pickle.loads(package) if known is None else known


_variables: dict[str, ContextVar[Any]] = {}  # by id; context variables live as long as the process anyway
_variable_ids: dict[ContextVar[Any], str] = {}


def _reduce_variable(variable: ContextVar[Any]) -> Reduced:
    track = _variable_ids.setdefault(variable, uuid.uuid4().hex)
    _variables[track] = variable
    try:
        return _known_variable, (track, variable.name, Context().run(variable.get))
    except LookupError:
        return _known_variable, (track, variable.name)


def _known_variable(track: str, name: str, *default: Any) -> ContextVar[Any]:
    if track not in _variables:
        made: ContextVar[Any] = ContextVar(name, default=default[0]) if default else ContextVar(name)
        _variables[track] = made
        _variable_ids[made] = track
    return _variables[track]


def _asks_itself(kind: Any, obj: Any) -> bool:
    """Whether plain unpickling would run the class's ``__getattr__`` on an object that has no state yet."""
    return (
        hasattr(kind, "__getattr__")
        and not isinstance(obj, type | ModuleType)
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and not hasattr(kind, "__setstate__")
        and kind.__new__ is object.__new__
        and kind.__getstate__ is object.__getstate__
        and not any("__slots__" in vars(base) for base in kind.__mro__)
        and isinstance(getattr(obj, "__dict__", None), dict)
    )


def _bare(kind: type) -> Any:
    return object.__new__(kind)


def _fill(obj: Any, state: dict[str, Any]) -> None:
    object.__getattribute__(obj, "__dict__").update(state)


# msgspec makes a Struct from its fields when the class is created; cloudpickle creates classes empty and fills them.

_whole: WeakSet[type] = WeakSet()  # Struct classes of this process that a package must not fill again


def _reduce_struct(cls: Any) -> Reduced:
    track = cloud._get_or_create_tracker_id(cls)
    _whole.add(cls)
    names, defaults = cls.__struct_fields__, cls.__struct_defaults__
    default_of = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    own = [name for name in names if name in vars(cls).get("__annotations__", {})]
    fields = []
    for name, encoded in zip(names, cls.__struct_encode_fields__, strict=True):
        if name in own:
            default = default_of.get(name, msgspec.NODEFAULT)
            factory = getattr(default, "factory", None) if type(default).__name__ == "Factory" else None
            how: dict[str, Any] = {"name": encoded if encoded != name else None}
            if factory is not None:
                how["default_factory"] = factory
            elif default is not msgspec.NODEFAULT:
                how["default"] = default
            fields.append((name, how))
    config = {key: getattr(cls.__struct_config__, key) for key in dir(cls.__struct_config__) if key[0] != "_"}
    config["kw_only"] = bool(own) and not any(name in cls.__match_args__ for name in own)
    hidden = {*names, "__slots__", "__dict__", "__weakref__"}
    state = {key: value for key, value in vars(cls).items() if key not in hidden}
    making = (track, cls.__name__, cls.__bases__, fields, config, "__post_init__" in state)
    state |= {"__qualname__": cls.__qualname__, **_read(state, vars(sys.modules.get(cls.__module__, object)))}
    return _known_struct, making, state, None, None, _fill_struct


def _known_struct(
    track: str, name: str, bases: tuple[type, ...], fields: list[Any], config: dict[str, Any], checks_itself: bool
) -> Any:
    if (known := cloud._DYNAMIC_CLASS_TRACKER_BY_ID.get(track)) is not None:
        return known
    declared = [(field, Any, msgspec.field(**how)) for field, how in fields]
    namespace = {"__post_init__": _late_post_init} if checks_itself else {}
    made = msgspec.defstruct(name, declared, bases=bases, namespace=namespace, **config)
    return cloud._lookup_class_or_track(track, made)


def _fill_struct(cls: type, state: dict[str, Any]) -> None:
    if cls in _whole:
        return
    _whole.add(cls)
    for key, value in state.items():
        setattr(cls, key, value)


def _late_post_init(self: Any) -> None:
    type(self).__post_init__(self)  # msgspec looks the method up once, before it is filled in


# -- who is to blame --------------------------------------------------------------------------------


def _unpackable(target: Any, name: str, error: BaseException) -> str:
    culprit = next(_unpackable_names(target), None)
    through = f", which refers to {culprit!r}," if culprit else ""
    return (
        f"deployment {name or target.__name__!r}: the code of {target.__qualname__!r}{through} cannot be sent to a "
        f"replica: {_said(error)}. It goes by value because it cannot be imported from {target.__module__!r} there; "
        "make such objects in the constructor, or move the code into a module."
    )


def _unpackable_names(target: Any) -> Iterator[str]:
    members = [target, *vars(target).values()] if isinstance(target, type) else [target]
    for function in members:
        function = getattr(function, "__func__", function)
        if not isinstance(function, FunctionType):
            continue
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
        named = {n: function.__globals__[n] for n in _names(function.__code__) if n in function.__globals__}
        for cell_name, cell in cells:
            try:
                named[cell_name] = cell.cell_contents
            except ValueError:
                continue  # still empty
        yield from (n for n, value in named.items() if value is not target and not _packs(value))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _packs(value: Any) -> bool:
    try:
        _dump(_CodePickler, value)
    except Exception:
        return False
    return True
