"""Any value as compact JSON. Law: what plain JSON knows goes straight through the C encoder; only the rest comes here.

``jsonable`` turns one value one level deep into what JSON knows; the encoder calls it again for what is inside.
NaN and the infinities become null, because JSON has no word for them and browsers refuse the whole document.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import ipaddress
import json
import math
import pathlib
import re
import sys
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from functools import singledispatch
from typing import Any

import msgspec

_KEPT_BY_MSGSPEC = (
    *(bytes, bytearray, memoryview, decimal.Decimal, uuid.UUID),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta),
)


def encode_json(value: Any) -> bytes:
    """The value as compact JSON in UTF-8. Raises TypeError naming what JSON cannot express."""
    try:
        return _strict.encode(value).encode()
    except (ValueError, TypeError):
        pass  # a NaN, a key that is no string, a lone surrogate, or really impossible: the slow way finds out
    return _ascii.encode(_deep(value)).encode()


@singledispatch
def jsonable(value: Any) -> Any:
    """One value of an unknown kind as something that JSON knows, or that this function knows."""
    kind = type(value)
    for attribute, convert in _BY_ATTRIBUTE:
        if hasattr(kind, attribute):
            return convert(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if kind.__module__.partition(".")[0] in ("pydantic", "pydantic_core"):
        return str(value)  # Url, SecretStr ...
    return _last_resort(value)


def _pydantic(model: Any) -> Any:
    try:
        return model.model_dump(mode="json", by_alias=True)
    except Exception:  # a field that pydantic cannot express, an array for instance: perhaps we can
        return model.model_dump(by_alias=True)


def _frame(frame: Any) -> Any:
    return frame.to_dict(orient="records")


_BY_ATTRIBUTE = (  # recognised by what it can do, so that none of these libraries is imported for it
    ("model_dump", _pydantic),
    ("__struct_fields__", lambda value: msgspec.to_builtins(value, builtin_types=_KEPT_BY_MSGSPEC, enc_hook=jsonable)),
    ("to_dicts", lambda value: value.to_dicts()),  # polars.DataFrame
    ("iterrows", _frame),  # pandas.DataFrame
    ("tolist", lambda value: value.tolist()),  # arrays and scalars of numpy, tensors, pandas.Series
)


def _last_resort(value: Any) -> Any:
    fastapi = sys.modules.get("fastapi.encoders")
    if fastapi is not None:  # knows what the user has registered there
        try:
            return fastapi.jsonable_encoder(value)
        except ValueError:
            pass
    elif hasattr(type(value), "keys") and hasattr(type(value), "__getitem__"):
        return dict(value)
    elif hasattr(value, "__dict__") and not callable(value):
        return vars(value)
    raise TypeError(
        f"a value of type {type(value).__module__}.{type(value).__qualname__} cannot be written as JSON; "
        "return plain data, or a Response that you made yourself"
    )


@jsonable.register(bytes)
@jsonable.register(bytearray)
@jsonable.register(memoryview)
def _(value: Any) -> str:
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as error:
        raise TypeError(
            f"bytes inside a JSON answer are written as text, and these are not UTF-8 ({error.reason} at byte "
            f"{error.start}); encode them (base64), or return the bytes alone"
        ) from None


@jsonable.register
def _(value: decimal.Decimal) -> int | float | None:
    if not value.is_finite():
        return None
    exponent = value.as_tuple().exponent
    return int(value) if isinstance(exponent, int) and exponent >= 0 else float(value)


@jsonable.register(datetime.date)
@jsonable.register(datetime.time)
def _(value: Any) -> str:
    text: str = value.isoformat()
    return text


@jsonable.register
def _(value: datetime.timedelta) -> float:
    return value.total_seconds()


@jsonable.register
def _(value: enum.Enum) -> Any:
    return value.value


@jsonable.register
def _(value: re.Pattern) -> Any:  # type: ignore[type-arg]
    return value.pattern


@jsonable.register(BaseException)
@jsonable.register(pathlib.PurePath)
@jsonable.register(uuid.UUID)
@jsonable.register(ipaddress.IPv4Address)
@jsonable.register(ipaddress.IPv6Address)
@jsonable.register(ipaddress.IPv4Network)
@jsonable.register(ipaddress.IPv6Network)
def _(value: Any) -> str:
    return str(value)


@jsonable.register(set)
@jsonable.register(frozenset)
@jsonable.register(deque)
@jsonable.register(range)
@jsonable.register(Iterator)
def _(value: Any) -> list[Any]:
    return list(value)


@jsonable.register(Mapping)
def _(value: Any) -> dict[Any, Any]:
    return dict(value)


# -- the slow way, for what the C encoder refuses ------------------------------------------------


def _deep(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_key(key): _deep(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_deep(item) for item in value]
    return _deep(jsonable(value))


def _key(key: Any) -> str | int | float | bool | None:
    if isinstance(key, enum.Enum):
        key = key.value
    if key is None or isinstance(key, str | int | float | bool):
        return key
    plain = None if isinstance(key, tuple) else jsonable(key)
    if isinstance(plain, str | int | float | bool):
        return plain
    raise TypeError(f"a key of type {type(key).__name__} cannot stand in a JSON object: {key!r}")


_strict = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=jsonable)
_ascii = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=jsonable)
