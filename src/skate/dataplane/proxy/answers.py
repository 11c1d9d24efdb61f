"""What the proxy itself says: one short plain text for every error, and the answers of its own pages.

Law: a text names the cause, whose fault it is and what to do; never a traceback unless ``show_traceback`` is set,
and never the text of a user's exception, which may hold what is nobody's business outside.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from skate.core.errors import (
    BackPressureError,
    CallTimeoutError,
    CancelCause,
    DeploymentUnavailableError,
    MethodNotFoundError,
    NotFoundError,
    RemoteError,
    RemoteTraceback,
    RequestCancelledError,
    SkateError,
    http_status,
)
from skate.dataplane.proxy.request import Headers, RequestError
from skate.dataplane.transport.failure import UserFailure

SHOWN_PATH_MAX = 200  # characters of a path that an error text repeats
TEXT_TYPE = (b"content-type", b"text/plain; charset=utf-8")
JSON_TYPE = (b"content-type", b"application/json")


class Answer(NamedTuple):
    """A whole HTTP answer of the proxy's own."""

    status: int
    text: str
    headers: Headers = []


def not_found(path: str, root_path: str) -> Answer:
    """No route for this path."""
    shown = path if len(path) <= SHOWN_PATH_MAX else path[:SHOWN_PATH_MAX] + "…"
    return Answer(404, f"No application is mounted at path {shown!r}. See {root_path}/-/routes for those there are.")


def not_ready(reason: str) -> Answer:
    """Nothing can be served at the moment."""
    return Answer(503, reason, [(b"retry-after", b"1")])


def of_error(error: BaseException, request_id: str, show_traceback: bool = False) -> Answer:
    """What answers a request that ended with this error."""
    answer = _of_error(error, request_id)
    if show_traceback and (trace := traceback_of(error)):
        return Answer(answer.status, f"{answer.text}\n\n{trace}", answer.headers)
    return answer


def _of_error(error: BaseException, request_id: str) -> Answer:
    if isinstance(error, UserFailure):
        return user_error(error.failure.name, request_id)
    if isinstance(error, RemoteError):
        return user_error(str(error).partition(":")[0], request_id)
    if isinstance(error, RequestError):
        return Answer(error.status_code, _sentence(error))
    if isinstance(error, BackPressureError):
        return Answer(http_status(error), _sentence(error), _retry_after(error.retry_after_s) or _retry_after(1.0))
    if isinstance(error, CallTimeoutError):
        hint = "Set another limit with the header X-Request-Timeout-Seconds (0: none) or with request_timeout_s."
        return Answer(408, f"{_sentence(error)} {hint}")
    if isinstance(error, NotFoundError):  # the route is there, its deployment is not: it is coming or going
        return Answer(503, f"{_sentence(error)} Try again in a moment.", _retry_after(1.0))
    if isinstance(error, MethodNotFoundError):
        return Answer(500, f"{_sentence(error)} (request {request_id})")
    if isinstance(error, RequestCancelledError):
        return Answer(499, _sentence(error))
    if isinstance(error, SkateError):
        retry = _retry_after(1.0) if error.status == 503 else []
        return Answer(http_status(error), f"{_sentence(error)} (request {request_id})", retry)
    return Answer(500, f"Skate itself failed with {type(error).__name__} while it handled request {request_id}.")


def cause_of(error: BaseException) -> CancelCause:
    """Why the code under a request is cancelled when the proxy answers that request with this error."""
    if isinstance(error, CallTimeoutError) or (isinstance(error, RequestError) and error.status_code == 408):
        return "timed_out"
    return "shutting_down" if isinstance(error, DeploymentUnavailableError) else "cancelled"


def unusable(what: str, request_id: str, deployment_key: str) -> Answer:
    """The application answered something that cannot be sent."""
    text = f"The application's answer to request {request_id} has {what} that HTTP does not allow."
    return Answer(500, f"{text} Correct it in the handler of {deployment_key!r}.")


def user_error(name: str, request_id: str) -> Answer:
    """The user's code raised."""
    text = (
        f"The application raised {name} while it handled request {request_id}. "
        "The traceback is in the log of its replica, under this request id."
    )
    return Answer(500, text)


def traceback_of(error: BaseException) -> str:
    """The remote traceback that came with an error, or nothing."""
    if isinstance(error, UserFailure):
        return error.failure.traceback
    cause = error.__cause__
    return cause.text if isinstance(cause, RemoteTraceback) else ""


def _sentence(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def _retry_after(seconds: float | None) -> Headers:
    if seconds is None or not 0 <= seconds < math.inf:
        return []
    return [(b"retry-after", b"%d" % math.ceil(seconds))]
