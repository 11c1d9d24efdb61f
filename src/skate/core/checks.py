"""How values of options are read: small checks that are put together, and the shape of a declaration.

Law: a check takes any value and returns it in normal form (plain data) or raises ``Refused`` with what would be
right; it never guesses and never converts silently. Why: options are declared in one place with these words, and
every door (decorator, file, command) gives the same answer to the same mistake.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from operator import attrgetter
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from skate.core.errors import OptionError
from skate.core.ids import name_problem

Change = Literal["restart", "reconfigure", "nothing"]
S = TypeVar("S", bound=msgspec.Struct)

DEPTH_MAX = 64  # levels of nesting in user_config and other free-form values


class Refused(ValueError):
    """A check's answer to a bad value: what it takes instead (or what is wrong), and the path and value below it."""

    def __init__(self, takes: str, path: str = "", value: Any = None, wrong: str = "") -> None:
        super().__init__(wrong or takes)
        self.takes, self.path, self.value, self.wrong = takes, path, value, wrong

    @property
    def sentence(self) -> str:
        """The second half of a message, after ``option=value:``."""
        return self.wrong or f"takes {self.takes}"


@dataclass(frozen=True, slots=True)
class Check:
    """Reads one value: ``read`` returns it in normal form or raises ``Refused``; ``bounds`` says what it takes.

    ``schema`` says the same in the words of JSON Schema, as far as those go; a class under ``$ref`` stands for a
    group of options. ``group``: the check takes a dict with the options of this class.
    """

    bounds: str
    read: Callable[[Any], Any]
    schema: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    group: type[msgspec.Struct] | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """The declaration of one option. ``change`` is what a new value does to replicas that are running."""

    check: Check
    about: str
    unit: str = ""
    change: Change = "nothing"
    since: Literal["now", "later"] = "now"
    name: str = ""  # filled in from the field
    default: Any = None  # filled in from the field


# -- checks -----------------------------------------------------------------------------------------


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80
_short.maxlevel = 3


def shown(value: Any) -> str:
    """The value as a message shows it: one line of at most 120 characters, however large the value is."""
    try:
        said = " ".join(_short.repr(value).split())
    except Exception:  # a user's own __repr__
        said = f"<{type(value).__name__}>"
    return said if len(said) <= 120 else said[:117] + "..."


def _range_text(kind: str, low: float | None, high: float | None, above: bool) -> str:
    if low is not None and high is not None:
        return f"{kind} above {low:g} and at most {high:g}" if above else f"{kind} from {low:g} to {high:g}"
    return kind if low is None else f"{kind} {'>' if above else '>='} {low:g}"


def _range_schema(kind: str, low: float | None, high: float | None, above: bool = False) -> dict[str, Any]:
    ends = {"exclusiveMinimum" if above else "minimum": low, "maximum": high}
    return {"type": kind, **{name: end for name, end in ends.items() if end is not None}}


def _or_none(schema: Mapping[str, Any], none: bool) -> Mapping[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]} if none else schema


def whole(low: int | None = None, high: int | None = None, also: tuple[Any, ...] = ()) -> Check:
    """An int within bounds (bool is not one), or one of the values in ``also``."""
    text = _range_text("a whole number", low, high, False)
    text += "".join(f", or {value!r}" for value in also)

    def read(value: Any) -> Any:
        if any(value is one or (type(value) is type(one) and value == one) for one in also):
            return value
        if not isinstance(value, int) or isinstance(value, bool):
            raise Refused(text)
        if (low is not None and value < low) or (high is not None and value > high):
            raise Refused(text)
        return int(value)

    schema = _range_schema("integer", low, high)
    return Check(text, read, {"anyOf": [schema, {"enum": list(also)}]} if also else schema)


def number(low: float | None = None, high: float | None = None, *, above: bool = False, none: bool = False) -> Check:
    """A finite int or float within bounds; ``above`` leaves out the lower bound itself."""
    text = _range_text("a number", low, high, above) + (", or None" if none else "")

    def read(value: Any) -> Any:
        if none and value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise Refused(text)
        if (low is not None and (value <= low if above else value < low)) or (high is not None and value > high):
            raise Refused(text)
        return float(value)

    return Check(text, read, _or_none(_range_schema("number", low, high, above), none))


def text(*, none: bool = False, empty: bool = True) -> Check:
    """A string."""
    bounds = ("a string" if empty else "a string that is not empty") + (", or None" if none else "")

    def read(value: Any) -> Any:
        if (value is None and none) or (isinstance(value, str) and (value or empty)):
            return value
        raise Refused(bounds)

    return Check(bounds, read, _or_none({"type": "string", **({} if empty else {"minLength": 1})}, none))


def one_of(*allowed: Any) -> Check:
    """One of a few values."""
    bounds = "one of " + ", ".join(repr(value) for value in allowed)

    def read(value: Any) -> Any:
        if any(type(value) is type(one) and value == one for one in allowed):
            return value
        raise Refused(bounds)

    return Check(bounds, read, {"enum": list(allowed)})


TRUTH = one_of(True, False)


def _read_name(value: Any) -> Any:
    if value is not None and (problem := name_problem(value)):
        raise Refused(f"a name, or None for the name of the class or function; it {problem}")
    return value


NAME = Check(
    "a string without '#', '/' and '\\', or None for the name of the class or function",
    _read_name,
    {"type": ["string", "null"], "minLength": 1},
)


def _read_plain(value: Any, path: str = "", depth: int = 0) -> Any:
    if depth > DEPTH_MAX:
        raise Refused(f"at most {DEPTH_MAX} levels of nesting (does it contain itself?)", path, "...")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise Refused("whole numbers of at most 64 bits", path, value)
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Refused("finite numbers", path, value)
        return value
    if isinstance(value, list | tuple):
        return [_read_plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise Refused("dicts with strings as keys", path, bad[0])
        return {key: _read_plain(item, f"{path}[{key!r}]", depth + 1) for key, item in value.items()}
    raise Refused("plain data as in JSON (None, bool, int, float, str, list, dict)", path, value)


PLAIN = Check("plain data as in JSON (None, bool, int, float, str, list, dict)", _read_plain)


def mapping(values: Check, *, none: bool = False) -> Check:
    """A dict from strings to values that pass the given check."""
    bounds = f"a dict from names to {values.bounds}" + (", or None" if none else "")

    def read(value: Any) -> Any:
        if value is None and none:
            return None
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise Refused(bounds)
        return {key: _inside(f"[{key!r}]", values, item) for key, item in value.items()}

    return Check(bounds, read, _or_none({"type": "object", "additionalProperties": values.schema}, none))


def either(first: Check, second: Check) -> Check:
    """What passes one of two checks; the complaint about a value is that of the check whose kind it is."""
    bounds = f"{first.bounds}, or {second.bounds}"

    def read(value: Any) -> Any:
        try:
            return first.read(value)
        except Refused:
            pass
        try:
            return second.read(value)
        except Refused as refused:
            raise refused if refused.path else Refused(bounds) from None

    return Check(bounds, read, {"anyOf": [first.schema, second.schema]})


def listing(items: Check, *, none: bool = False, least: int = 0) -> Check:
    """A list whose items pass the given check."""
    bounds = f"a list of {items.bounds}" + (f" (at least {least})" if least else "") + (", or None" if none else "")

    def read(value: Any) -> Any:
        if value is None and none:
            return None
        if not isinstance(value, list | tuple) or len(value) < least:
            raise Refused(bounds)
        return [_inside(f"[{index}]", items, item) for index, item in enumerate(value)]

    schema = {"type": "array", "items": items.schema, **({"minItems": least} if least else {})}
    return Check(bounds, read, _or_none(schema, none))


def _inside(step: str, check: Check, value: Any) -> Any:
    try:
        return check.read(value)
    except Refused as refused:
        inner = refused.value if refused.path else value
        raise Refused(refused.takes, step + refused.path, inner, refused.wrong) from None


def target(*, none: bool = False) -> Check:
    """An import path, or a class or function that is then written as one."""
    bounds = "an import path such as 'package.module:name', or the class or function itself" + (", or None" * none)

    def read(value: Any) -> Any:
        if (value is None and none) or (isinstance(value, str) and value):
            return value
        if callable(value) and hasattr(value, "__qualname__"):
            return f"{value.__module__}:{value.__qualname__}"
        raise Refused(bounds)

    return Check(bounds, read, {"type": ["string", "null"] if none else "string", "minLength": 1})


def struct(cls: type[S], *, none: bool = False) -> Check:
    """A dict with the options of ``cls``, or a ready value of it; None is kept or becomes the default value."""

    def read(value: Any) -> Any:
        if value is None and none:
            return None
        value = {} if value is None else value
        if isinstance(value, cls):
            value = msgspec.structs.asdict(value)
        if not isinstance(value, Mapping):
            raise Refused(f"a dict or {cls.__name__}")
        return read_struct(cls, value)

    return Check(f"a dict or {cls.__name__}" + (", or None" if none else ""), read, _or_none({"$ref": cls}, True), cls)


def read_struct(cls: type[S], given: Mapping[str, Any]) -> S:
    """Build one group of options from a dict."""
    options = options_of(cls)
    for key, value in given.items():
        if key not in options:
            raise Refused("", f".{key}", value, unknown_hint(str(key), options))
    for one in msgspec.structs.fields(cls):
        if one.required and one.name not in given:
            raise Refused("", wrong=f"lacks {one.name!r}")
    made = cls(**{key: _inside(f".{key}", options[key].check, value) for key, value in given.items()})
    refuse_contradictions(made, ".")
    return made


def refuse_contradictions(made: msgspec.Struct, prefix: str = "") -> None:
    """Raise ``Refused`` for the first pair of options that cannot stand together."""
    pairs: Callable[[], Iterable[tuple[str, str]]] = getattr(made, "contradictions", tuple)
    for name, takes in pairs():
        raise Refused(takes, prefix + name, attrgetter(name)(made))


def read_option(where: str, key: str, check: Check, value: Any) -> Any:
    """Read one option the user gave; a bad value becomes an ``OptionError`` that names place, option and bounds."""
    try:
        return check.read(value)
    except Refused as refused:
        bad = refused.value if refused.path else value
        raise OptionError(f"{where}: {key}{refused.path}={shown(bad)}: {refused.sentence}.") from None


def nearest(key: str, known: Iterable[str]) -> str:
    """``; the nearest is 'name'`` for a name that was probably meant, else nothing."""
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.6)
    return f"; the nearest is {near[0]!r}" if near else ""


def unknown_hint(key: str, known: Iterable[str]) -> str:
    """'no such option' with the nearest right one, or with all of them."""
    return "no such option" + (nearest(key, known) or f"; there are {', '.join(sorted(known))}")


@cache
def options_of(cls: type[msgspec.Struct]) -> dict[str, Option]:
    """The declarations of a class of options, by name, with their defaults."""
    found: dict[str, Option] = {}
    hints = get_type_hints(cls, include_extras=True)
    for field in msgspec.structs.fields(cls):
        hint = hints[field.name]
        if get_origin(hint) is not Annotated:
            raise TypeError(f"{cls.__name__}.{field.name} has no declaration")
        option = next(part for part in get_args(hint)[1:] if isinstance(part, Option))
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        found[field.name] = replace(option, name=field.name, default=None if field.required else default)
    return found


def without_defaults(group: msgspec.Struct) -> dict[str, Any]:
    """A group of options as plain data, as far as it differs from its defaults; by value, so an empty group is none."""
    found: dict[str, Any] = {}
    for name, option in options_of(type(group)).items():
        value = getattr(group, name)
        if value != option.default:
            found[name] = without_defaults(value) if isinstance(value, msgspec.Struct) else msgspec.to_builtins(value)
    return found
