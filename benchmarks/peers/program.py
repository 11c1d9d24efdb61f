"""What all programs of this folder share: the lines they are told and answer, and constants of the work.

Law: standard library only, because each program runs in the environment of its own framework. A program is started as
``python -m benchmarks.peers.NAME PORT APP``. One that serves a fixed application serves it until its stdin closes.
One that can deploy reads a JSON object per line (``{"do": NAME, ...}``) and answers each with one line, ``{"value":
...}`` or ``{"error": text}``; its stdin closing is its end. What the framework prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

HOST = "127.0.0.1"
HELLO = "Hello, world!"
SLEEP_S = 0.010  # of the model
REPLICAS = 4  # of the model
CHUNK, CHUNKS = b"0123456789abcde\n", 1000  # of the stream
PIECE, PIECES = 65536, 1600  # of the long body: 100 MB
WIDE = 1000  # concurrent requests that a replica may take where the work asks for no limit

Answers = Callable[..., Any]


def told() -> tuple[int, str]:
    """The port and the application from the command line."""
    return int(sys.argv[1]), sys.argv[2]


def end_with_stdin() -> None:
    """Ends this process when whoever started it closes the pipe or is gone."""

    def watch() -> None:
        try:
            while os.read(0, 4096):
                pass
        except OSError:
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()


def answer_lines(answers: dict[str, Answers]) -> None:
    """Answers one line after the other until stdin closes."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        words = json.loads(line)
        try:
            said = {"value": answers[words.pop("do")](**words)}
        except Exception:
            said = {"error": traceback.format_exc()[-3000:]}
        out.write(json.dumps(said) + "\n")
        out.flush()
