"""How an error crosses processes. Law: Skate's own go by name, the user's by pickle between our own processes only.

A user's exception arrives as the user's own type with the remote traceback as its ``__cause__``; what does not
pickle arrives as RemoteError with the type's name, its text and the traceback.
"""

from __future__ import annotations

from traceback import format_exception
from typing import Any

import msgspec

from skate.authoring.code import dumps, loads
from skate.core.errors import (
    BackPressureError,
    CancelCause,
    RemoteError,
    RemoteTraceback,
    RequestCancelledError,
    SkateError,
    WireError,
    by_name,
)
from skate.dataplane.wire.frames import CAUSES

TEXT_MAX = 64 * 1024  # characters of a message or a traceback that travel
PICKLE_MAX = 64 << 20  # bytes of a pickled exception that travel
_OWN = f"{SkateError.__module__.partition('.')[0]}."


class Failure(msgspec.Struct, array_like=True):
    """The body of an ERROR frame. ``name`` is the class of the tree, or the user's type when ``user`` is set."""

    name: str
    message: str
    user: bool = False
    pickled: bytes | None = None
    traceback: str = ""
    status_code: int = 0
    retry_after_s: float | None = None
    cause: CancelCause = "cancelled"


_decoder = msgspec.msgpack.Decoder(Failure)


def encode_failure(error: BaseException, traceback: str | None = None) -> bytes:
    """The bytes of a failure; never raises for any exception object."""
    trace = _sendable((traceback or "")[-TEXT_MAX:])
    text = _text(error)
    if isinstance(error, SkateError):
        failure = Failure(_own_name(type(error)), text, traceback=trace)
        if isinstance(error, BackPressureError):
            failure.status_code, failure.retry_after_s = _numbers(error)
        elif isinstance(error, RequestCancelledError) and error.cause in CAUSES:
            failure.cause = error.cause
        return msgspec.msgpack.encode(failure)
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    return msgspec.msgpack.encode(Failure(_sendable(name), text, True, _pickled(error), trace))


def _pickled(error: BaseException) -> bytes | None:
    """None for what cannot travel, or must not: a SystemExit of a handler would end the caller's process, too, and
    a StopAsyncIteration would look like the orderly end of a stream.
    """
    if not isinstance(error, Exception) or isinstance(error, StopIteration | StopAsyncIteration):
        return None
    for carried in (error, _Parts(error)):
        try:
            trial = dumps(carried)
            # Many exceptions pickle but cannot be rebuilt, mostly those whose __init__ takes other arguments than
            # it hands to Exception: better to know it here.
            if type(loads(trial)) is type(error):
                return trial if len(trial) <= PICKLE_MAX else None
        except BaseException:  # whatever the user's __reduce__ and __init__ do
            continue
    return None


class _Parts:
    """An exception as its class, arguments and attributes: it is made again without its ``__init__``."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error = self._error
        return _from_parts, (type(error), error.args, dict(error.__dict__))


def _from_parts(kind: type[Exception], args: tuple[Any, ...], attributes: dict[str, Any]) -> Exception:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


def _own_name(kind: type[BaseException]) -> str:
    """The nearest class of our own: what users derive from our errors may take other arguments than a message."""
    return next(base.__name__ for base in kind.__mro__ if base.__module__.startswith(_OWN))


def _numbers(error: BackPressureError) -> tuple[int, float | None]:
    try:
        return int(error.status_code), None if error.retry_after_s is None else float(error.retry_after_s)
    except (TypeError, ValueError):  # users may raise it themselves, with anything
        return 503, None


def _text(error: BaseException) -> str:
    try:
        return _sendable(str(error)[:TEXT_MAX])
    except BaseException:  # whatever the user's __str__ does
        return f"<{_sendable(type(error).__name__)} whose text cannot be shown>"


def described(error: BaseException) -> str:
    """Type, text and traceback, as far as the exception lets itself be shown; never raises."""
    try:
        trace = _sendable("".join(format_exception(error)))
    except Exception:
        trace = ""
    return f"{_sendable(type(error).__name__)}: {_text(error)}\n{trace}"


def _sendable(text: str) -> str:
    """The text without lone surrogates (which names of files may hold): they have no UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class UserFailure(Exception):
    """A user's exception as it came over the wire: for doors that answer without rebuilding it (the proxy)."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def decode_failure(data: bytes) -> BaseException:
    """The framework's error itself, or UserFailure around what the user raised (not unpickled yet).

    Never raises: who waits for a call must hear of its end, whatever the bytes are.
    """
    try:
        failure = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as unreadable:
        return WireError(f"a call failed, and its error came with unreadable bytes: {unreadable}")
    if failure.user:
        return UserFailure(failure)
    error = _own_error(failure)
    if failure.traceback:
        error.__cause__ = RemoteTraceback(failure.traceback)
    return error


def _own_error(failure: Failure) -> BaseException:
    kind: Any = by_name().get(failure.name, SkateError)
    try:
        if issubclass(kind, BackPressureError):
            return kind(failure.message, failure.status_code or 503, failure.retry_after_s)  # type: ignore[no-any-return]
        if issubclass(kind, RequestCancelledError):
            return kind(failure.message, failure.cause)  # type: ignore[no-any-return]
        return kind(failure.message)  # type: ignore[no-any-return]
    except Exception:  # a class of that name that takes something else than a message
        return SkateError(failure.message)


def rebuild(error: BaseException) -> BaseException:
    """The exception that a Python caller shall see: the user's own type where possible."""
    if not isinstance(error, UserFailure):
        return error
    failure = error.failure
    rebuilt: BaseException | None = None
    if failure.pickled is not None:
        try:
            found = loads(failure.pickled)
            rebuilt = found if isinstance(found, Exception) else None
        except Exception:
            rebuilt = None
    if rebuilt is None:
        rebuilt = RemoteError(f"{failure.name}: {failure.message}")
    rebuilt.__cause__ = RemoteTraceback(failure.traceback) if failure.traceback else None
    return rebuilt
