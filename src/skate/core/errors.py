"""One tree of errors. Each class knows whose fault it is and what it is to a client.

Law: an error says what is wrong, whose fault, where, and the way out. ``status`` is the HTTP status a proxy
answers with, ``grpc`` the gRPC code name, ``retryable`` whether the same call may simply be sent again.
Errors of the framework cross processes as ``(class name, message, details)``, never as a pickle.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

Fault = Literal["caller", "application", "server"]

# Why a request was cancelled. "cancelled": somebody called .cancel(), or dropped the response; "shutting_down": a
# replica or proxy that worked on it ended; "caller_lost": the process that asked is gone, so nobody takes the answer.
CancelCause = Literal["cancelled", "client_disconnected", "timed_out", "shutting_down", "caller_lost"]


class SkateError(Exception):
    """Root of everything Skate raises itself. Errors of user code are the user's own types."""

    status: ClassVar[int] = 500
    grpc: ClassVar[str] = "INTERNAL"
    fault: ClassVar[Fault] = "server"
    retryable: ClassVar[bool] = False


# -- said before anything runs ------------------------------------------------------------------


class OptionError(SkateError, ValueError):
    """An option has an unknown name, a wrong type or a value out of its bounds."""

    status, grpc, fault = 400, "INVALID_ARGUMENT", "caller"


class ConfigError(OptionError):
    """A config file, or what came in its place, is wrong. ``mistakes``: each by itself, with its place."""

    def __init__(self, message: str = "", mistakes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.mistakes = mistakes


class GraphError(SkateError, ValueError):
    """The bound deployments do not form a valid application."""

    status, grpc, fault = 400, "INVALID_ARGUMENT", "caller"


class IngressError(SkateError, ValueError):
    """``serve.ingress`` was applied to something that it cannot serve."""

    status, grpc, fault = 400, "INVALID_ARGUMENT", "caller"


class CodeError(SkateError, TypeError):
    """User code or a value cannot be sent to another process (does not pickle), or cannot be imported there."""

    status, grpc, fault = 400, "INVALID_ARGUMENT", "caller"


class ImportPathError(SkateError, ImportError):
    """An import path such as ``module:attribute`` does not lead to an application."""

    status, grpc, fault = 400, "INVALID_ARGUMENT", "caller"


# -- the instance -------------------------------------------------------------------------------


class NotRunningError(SkateError, RuntimeError):
    """No Skate instance is running where one is needed."""

    status, grpc = 503, "UNAVAILABLE"


class AddressInUseError(SkateError, OSError):
    """The HTTP address cannot be bound."""

    fault = "caller"


class DeployError(SkateError, RuntimeError):
    """An application did not become ready. The message holds the cause and the replica's traceback."""

    fault = "application"


class StoreError(SkateError, OSError):
    """What is wanted cannot be stored (a full disk), so it is not taken up."""

    status, grpc, retryable = 507, "RESOURCE_EXHAUSTED", True


class NotFoundError(SkateError, KeyError):
    """No application, deployment or route of that name."""

    status, grpc, fault = 404, "NOT_FOUND", "caller"

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class ContextError(SkateError, RuntimeError):
    """A function was called where its context is missing (for instance outside a replica)."""

    fault = "caller"


# -- the way of a request -----------------------------------------------------------------------


class CallError(SkateError):
    """A call ended without the user's answer."""


class BackPressureError(CallError):
    """The queue in front of a deployment is full; come back after ``retry_after_s`` (always known to who is refused
    by Skate; None only where user code raises it without one)."""

    status, grpc, fault, retryable = 503, "RESOURCE_EXHAUSTED", "caller", True

    def __init__(self, message: str, status_code: int = 503, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.retry_after_s = retry_after_s


class DeploymentUnavailableError(CallError):
    """The deployment failed to start, or was deleted while the call waited."""

    status, grpc, retryable = 503, "UNAVAILABLE", True


class ReplicaDiedError(CallError):
    """The replica died after it had accepted the call; the call may have been executed."""

    status, grpc = 500, "UNAVAILABLE"


class ReplicaStoppedError(ReplicaDiedError):
    """The replica was told to end, and the call outlasted the grace (``graceful_shutdown_timeout_s``)."""


class CallTimeoutError(CallError, TimeoutError):
    """The deadline of the call has passed."""

    status, grpc = 408, "DEADLINE_EXCEEDED"


class RequestCancelledError(CallError):
    """The call was cancelled: by ``.cancel()``, or because nobody waits for the request that it belongs to.

    ``cause`` says which, as a word that programs can compare: ``cancelled``, ``client_disconnected``, ``timed_out``,
    ``shutting_down`` or ``caller_lost``.
    """

    status, grpc, fault = 499, "CANCELLED", "caller"

    def __init__(self, message: str = "", cause: CancelCause = "cancelled") -> None:
        super().__init__(message)
        self.cause = cause


class MethodNotFoundError(CallError, AttributeError):
    """The deployment has no public method of that name."""

    status, grpc, fault = 500, "UNIMPLEMENTED", "caller"


class StreamMismatchError(CallError, TypeError):
    """A generator was called without ``stream=True``, or something else with it."""

    status, grpc, fault = 500, "INVALID_ARGUMENT", "caller"


class PayloadTooLargeError(CallError, ValueError):
    """A body, argument or result is above the limit."""

    status, grpc, fault = 413, "RESOURCE_EXHAUSTED", "caller"


class ResultInLoopError(CallError, RuntimeError):
    """``.result()`` was called on a thread whose event loop is running; it would block the loop."""

    fault = "caller"


class RemoteError(CallError):
    """User code raised something that cannot be rebuilt here; the message holds its type, text and traceback."""

    fault = "application"


class WireError(SkateError):
    """The other side of a connection broke the protocol; the connection is closed."""


class RemoteTraceback(Exception):
    """Attached as ``__cause__`` to an exception that was raised in another process, so that it prints."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


def by_name() -> dict[str, type[SkateError]]:
    """All classes of the tree by class name, to rebuild an error that came over the wire."""
    found: dict[str, type[SkateError]] = {}
    todo: list[type[SkateError]] = [SkateError]
    while todo:
        cls = todo.pop()
        found[cls.__name__] = cls
        todo += cls.__subclasses__()
    return found


def http_status(error: BaseException) -> int:
    """The HTTP status that answers a request which ended with this error; 500 for errors of user code."""
    status: Any = getattr(error, "status_code", None) if isinstance(error, BackPressureError) else None
    return int(status or (error.status if isinstance(error, SkateError) else 500))
