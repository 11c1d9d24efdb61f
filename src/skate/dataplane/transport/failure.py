"""How an error crosses processes. Law: Skate's own go by name, the user's by pickle between our own processes only.

A user's exception arrives as the user's own type with the remote traceback as its ``__cause__``; what does not
pickle arrives as RemoteError with the type's name, its text and the traceback.
"""

from __future__ import annotations

from typing import Any

import msgspec

from skate.authoring.code import dumps, loads
from skate.core.errors import (
    BackPressureError,
    RemoteError,
    RemoteTraceback,
    SkateError,
    by_name,
)

TEXT_MAX = 64 * 1024  # characters of a message or a traceback that travel


class Failure(msgspec.Struct, array_like=True):
    """The body of an ERROR frame. ``name`` is the class of the tree, or the user's type when ``user`` is set."""

    name: str
    message: str
    user: bool = False
    pickled: bytes | None = None
    traceback: str = ""
    status_code: int = 0
    retry_after_s: float | None = None


_decoder = msgspec.msgpack.Decoder(Failure)


def encode_failure(error: BaseException, traceback: str | None = None) -> bytes:
    """The bytes of a failure; never raises for any exception object."""
    trace = (traceback or "")[-TEXT_MAX:]
    text = _text(error)
    if isinstance(error, SkateError):
        failure = Failure(type(error).__name__, text, traceback=trace)
        if isinstance(error, BackPressureError):
            failure.status_code, failure.retry_after_s = error.status_code, error.retry_after_s
        return msgspec.msgpack.encode(failure)
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    pickled: bytes | None = None
    if isinstance(error, Exception):  # a SystemExit of a handler must not end the caller's process, too
        try:
            trial = dumps(error)
            loads(trial)  # many exceptions pickle but cannot be rebuilt: better to know it here
            pickled = trial
        except Exception:
            pickled = None
    return msgspec.msgpack.encode(Failure(name, text, True, pickled, trace))


def _text(error: BaseException) -> str:
    try:
        return str(error)[:TEXT_MAX]
    except Exception:
        return f"<{type(error).__name__} whose text cannot be shown>"


class UserFailure(Exception):
    """A user's exception as it came over the wire: for doors that answer without rebuilding it (the proxy)."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def decode_failure(data: bytes) -> BaseException:
    """The framework's error itself, or UserFailure around what the user raised (not unpickled yet)."""
    failure = _decoder.decode(data)
    if failure.user:
        return UserFailure(failure)
    kind: Any = by_name().get(failure.name, SkateError)
    error: BaseException
    if issubclass(kind, BackPressureError):
        error = kind(failure.message, failure.status_code or 503, failure.retry_after_s)
    else:
        error = kind(failure.message)
    if failure.traceback:
        error.__cause__ = RemoteTraceback(failure.traceback)
    return error


def rebuild(error: BaseException) -> BaseException:
    """The exception that a Python caller shall see: the user's own type where possible."""
    if not isinstance(error, UserFailure):
        return error
    failure = error.failure
    rebuilt: BaseException | None = None
    if failure.pickled is not None:
        try:
            found = loads(failure.pickled)
            rebuilt = found if isinstance(found, BaseException) else None
        except Exception:
            rebuilt = None
    if rebuilt is None:
        rebuilt = RemoteError(f"{failure.name}: {failure.message}")
    rebuilt.__cause__ = RemoteTraceback(failure.traceback) if failure.traceback else None
    return rebuilt
