"""What the controller and the supervisor say to each other on ``engine.sock``.

Law: pure; bytes in, messages out. A frame is four bytes of length, big-endian, and one msgpack value. A frame
above its limit is an error before its body is read, so neither side can make the other hoard memory.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from skate.core.errors import WireError
from skate.core.specs import ProcessSpec
from skate.engine.base import ForgetProcess, ProcessSeen, StartProcess, StopProcess

HEAD_BYTES = 4
ASK_MAX_BYTES = 128 * 1024 * 1024  # a start carries the pickled code and constructor arguments of a replica
ANSWER_MAX_BYTES = 4 * 1024 * 1024  # some ten thousand processes


class ListProcesses(msgspec.Struct, frozen=True, array_like=True, tag="list"):
    """Say what runs."""


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """One question of the controller; ``seq`` comes back with its answer."""

    seq: int
    what: StartProcess | StopProcess | ForgetProcess | ListProcesses


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """The answer to the question ``seq``; ``error`` None means done. ``seen``: everything, or what was started."""

    seq: int
    error: str | None = None
    seen: tuple[ProcessSeen, ...] = ()


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="ended"):
    """A process ended. Sent to every connection, unasked."""

    seen: ProcessSeen


Told: TypeAlias = Answer | Ended


class SupervisorConfig(msgspec.Struct, frozen=True):
    """What a supervisor is started with. Descriptors are numbers that it inherited."""

    runtime_dir: str
    controller: ProcessSpec
    lock_fd: int
    lifeline_fd: int | None  # None: detached, no owner
    outcome_fd: int  # supervisors alone hold this pipe's write end; their last act is to write the exit code
    modules: tuple[str, ...] = ()  # of Skate; imported before the first replica is forked
    preload: tuple[str, ...] = ()  # of the user; imported after them
    sys_path: tuple[str, ...] = ()  # put in front of sys.path
    grace_s: float = 5.0
    restarts_max: int = 10
    restart_window_s: float = 30.0
    state_fd: int | None = None  # the lock of the state directory, where there is one
    standby_after_s: float = 0.5  # of the start: what is waited for comes first


_ask_decoder = msgspec.msgpack.Decoder(Ask)
_told_decoder: msgspec.msgpack.Decoder[Answer | Ended] = msgspec.msgpack.Decoder(Answer | Ended)
_encoder = msgspec.msgpack.Encoder()


def frame(message: Ask | Answer | Ended, max_bytes: int) -> bytes:
    """The bytes that carry ``message``."""
    body = _encoder.encode(message)
    if len(body) > max_bytes:
        raise WireError(
            f"a message to the engine has {len(body)} bytes, {max_bytes} are allowed; pass large constructor "
            "arguments by path instead of by value"
        )
    return len(body).to_bytes(HEAD_BYTES, "big") + body


def read_ask(body: bytes) -> Ask:
    """The question in a frame; WireError when it is none."""
    try:
        return _ask_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise WireError(f"not a question to the engine: {error}") from error


def read_told(body: bytes) -> Told:
    """What a supervisor said in a frame; WireError when it makes no sense."""
    try:
        return _told_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise WireError(f"not an answer of the engine: {error}") from error


class FrameReader:
    """Cuts a stream of bytes into the bodies of frames."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that are complete now."""
        self._buffer += data
        bodies: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= HEAD_BYTES:
            size = int.from_bytes(self._buffer[start : start + HEAD_BYTES], "big")
            if size > self._max_bytes:
                raise WireError(f"a frame of {size} bytes was announced, {self._max_bytes} are allowed")
            end = start + HEAD_BYTES + size
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[start + HEAD_BYTES : end]))
            start = end
        del self._buffer[:start]
        return bodies
