"""How processes log, in this one; what it changes is put back."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
from collections.abc import Iterator

from skate.core import context
from skate.core.context import RequestContext
from skate.engine import speech


@contextlib.contextmanager
def speaking() -> Iterator[io.StringIO]:
    """This process logs as a replica; what it writes."""
    root, own = logging.getLogger(), logging.getLogger("skate")
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in (root, own)]
    rest = logging.lastResort, logging.getLogRecordFactory(), sys.stderr
    sys.stderr = said = io.StringIO()
    root.handlers[:] = []  # pytest's, which it has set just before the test
    speech.begin("skate: replica a/A#1", replica=True)
    try:
        yield said
    finally:
        for logger, level, handlers, propagate in before:
            logger.setLevel(level)
            logger.handlers[:], logger.propagate = handlers, propagate
        logging.lastResort, _, sys.stderr = rest
        logging.setLogRecordFactory(rest[1])


@contextlib.contextmanager
def request(id: str) -> Iterator[None]:
    token = context.request.set(RequestContext(id, "a", "A"))
    try:
        yield
    finally:
        context.request.reset(token)


def test_records_have_time_level_speaker_and_request() -> None:
    with speaking() as said:
        logging.getLogger("my.module").info("one")
        with request("abc-1"):
            logging.getLogger().warning("two")
            logging.getLogger("skate.replica").warning("three")
        logging.getLogger("my.module").debug("never")
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    lines = said.getvalue().splitlines()
    assert re.fullmatch(stamp + r" INFO \[skate: replica a/A#1\] one", lines[0])
    assert re.fullmatch(stamp + r" WARNING \[skate: replica a/A#1, request abc-1\] two", lines[1])
    assert re.fullmatch(stamp + r" WARNING \[skate: replica a/A#1, request abc-1\] three", lines[2])
    assert len(lines) == 3


def test_a_handler_of_the_user_takes_the_place_of_ours() -> None:
    own = io.StringIO()
    with speaking() as said:
        logging.basicConfig(stream=own, format="%(request_id)s|%(message)s", level="DEBUG")
        with request("abc-1"):
            logging.getLogger("my.module").debug("mine")
    assert (own.getvalue(), said.getvalue()) == ("abc-1|mine\n", "")
