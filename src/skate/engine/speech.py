"""How a process logs: its time, its level, who speaks, and for which request.

Law: Skate's own loggers have a handler of theirs; the user's logging is left alone. A record made while a request is
served knows that request, as ``record.request_id``, whoever formats it. In a replica, records for which the user has
no handler at all are written in Skate's form, from INFO on; a handler of the user takes their place at once.
"""

from __future__ import annotations

import logging
from typing import Any

from skate.core import context
from skate.core.environment import environment


class Form(logging.Formatter):
    """``2026-11-27 07:26:57,123 INFO [skate: replica shop/Model#3, request 7f3a] the message``."""

    def __init__(self, title: str) -> None:
        super().__init__("%(asctime)s %(levelname)s [%(speaker)s] %(message)s")
        self._title = title

    def format(self, record: logging.LogRecord) -> str:
        id = getattr(record, "request_id", "")
        record.speaker = f"{self._title}, request {id}" if id else self._title
        return super().format(record)


def begin(title: str, *, replica: bool) -> None:
    """From now on this process logs so."""
    logging.setLogRecordFactory(_with_request(logging.getLogRecordFactory()))
    handler = logging.StreamHandler()
    handler.setFormatter(Form(title))
    own = logging.getLogger("skate")
    own.handlers[:] = [handler]
    own.setLevel(environment().log_level)
    own.propagate = False
    if replica:
        last = logging.StreamHandler()
        last.setLevel(logging.INFO)
        last.setFormatter(Form(title))
        logging.lastResort = last
        logging.getLogger().setLevel(logging.INFO)


def _with_request(make: Any) -> Any:
    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = make(*args, **kwargs)
        here = context.request.get()
        record.request_id = here.request_id if here is not None else ""
        return record

    return made
