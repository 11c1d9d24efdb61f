"""The process engine: the owner's side (``launch``) and the controller's side (``ProcessEngine``).

Law: the owner starts exactly one process, the supervisor, and holds one end of a pipe; when the owner is gone, by
whatever signal, the supervisor ends everything. The controller talks to the supervisor over ``engine.sock`` and
keeps nothing: a controller that comes back connects and observes.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import msgspec

from skate.core.clock import Clock
from skate.core.environment import handed_on
from skate.core.errors import WireError
from skate.core.specs import ProcessSpec
from skate.engine import runtime_dir as directories
from skate.engine.base import Action, Changed, EngineError, ProcessSeen
from skate.engine.lifeline import Lifeline
from skate.engine.messages import (
    ANSWER_MAX_BYTES,
    ASK_MAX_BYTES,
    Answer,
    Ask,
    Ended,
    FrameReader,
    ListProcesses,
    SupervisorConfig,
    frame,
    read_told,
)
from skate.engine.output import log_path

ANSWER_LIMIT_S = 30.0  # the supervisor answers within milliseconds, unless it still imports what the user preloads
PENDING_MAX = 1024
SUPERVISOR = "supervisor"  # its log is named so
SECOND_ASKING_S = 3.0  # after it the supervisor has killed its children, waited, and must be gone

_PROGRAM = (
    "import sys; root = sys.argv[1]; root in sys.path or sys.path.insert(0, root); "
    "from skate.engine.supervisor import main; main()"
)


# -- the owner ----------------------------------------------------------------------------------


class _Spawned(subprocess.Popen[bytes]):
    """Not waiting for it is no mistake: it ends by its lifeline, or lives on when detached."""

    def __del__(self) -> None:
        pass


class Launched:
    """A running instance, as its starter holds it."""

    def __init__(self, process: _Spawned, runtime_dir: str, lifeline: Lifeline | None) -> None:
        self.pid = process.pid
        self.runtime_dir = runtime_dir
        self._process = process
        self._lifeline = lifeline
        self._starter = os.getpid()

    @property
    def engine_address(self) -> str:
        return f"unix:{os.path.join(self.runtime_dir, directories.ENGINE_SOCKET)}"

    @property
    def logs(self) -> str:
        """The folder of what its processes print."""
        return os.path.join(self.runtime_dir, directories.LOGS)

    @property
    def exit_code(self) -> int | None:
        """The supervisor's, once it has ended; 1 when it gave up."""
        return self._process.poll()

    def alive(self) -> bool:
        """Does the supervisor run?"""
        return self._process.poll() is None

    def close(self, timeout_s: float = 10.0) -> None:
        """Ends the instance: asks, waits up to ``timeout_s``, then kills. Nothing of it is left. Safe to repeat.

        In a forked copy of the starter this does nothing: the instance is not the copy's.
        """
        if os.getpid() != self._starter:
            return
        if not self._asked_to_end(timeout_s) and not self._asked_to_end(SECOND_ASKING_S):
            self._process.kill()
            self._process.wait()
        if self._lifeline is not None:
            self._lifeline.cut()
        directories.remove_stale(self.runtime_dir)

    def _asked_to_end(self, timeout_s: float) -> bool:
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True


def launch(
    runtime_dir: str,
    controller: ProcessSpec,
    *,
    modules: Sequence[str] = (),
    preload: Sequence[str] = (),
    sys_path: Sequence[str] = (),
    detached: bool = False,
    grace_s: float = 5.0,
    restarts_max: int = 10,
    output: int | None = None,
) -> Launched:
    """Starts an instance: its directory, its supervisor, and through that the controller. Does not wait for them.

    ``modules`` (of Skate) and ``preload`` (of the user) are imported once, before replicas are forked; ``grace_s`` is
    what the processes get when the instance is asked to end. ``output``: a descriptor for what they print, instead of
    the starter's own (detached: instead of the log). Raises AlreadyRunningError if ``runtime_dir`` is in use.
    """
    claimed = directories.claim(runtime_dir)
    lifeline = None if detached else Lifeline()
    try:
        config = SupervisorConfig(
            runtime_dir=runtime_dir,
            controller=controller,
            lock_fd=claimed.lock_fd,
            lifeline_fd=None if lifeline is None else lifeline.read_fd,
            modules=tuple(modules),
            preload=tuple(preload),
            sys_path=tuple(sys_path),
            grace_s=grace_s,
            restarts_max=restarts_max,
        )
        process = _spawn(config, output)
    except BaseException:
        if lifeline is not None:
            lifeline.close_reader()
            lifeline.cut()
        directories.remove(claimed)
        raise
    if lifeline is not None:
        lifeline.close_reader()
    os.close(claimed.lock_fd)  # the supervisor's copy holds the lock from now on
    return Launched(process, runtime_dir, lifeline)


def _spawn(config: SupervisorConfig, output: int | None) -> _Spawned:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = [sys.executable, "-P", "-c", _PROGRAM, root]
    inherited = [fd for fd in (config.lock_fd, config.lifeline_fd) if fd is not None]
    log = None
    if config.lifeline_fd is None and output is None:
        output = log = _open_log(config.runtime_dir)
    try:
        with tempfile.TemporaryFile() as file:  # whole before the supervisor runs: it never waits for us
            file.write(msgspec.msgpack.encode(config))
            file.seek(0)
            return _Spawned(
                command,
                stdin=file,
                stdout=output,
                stderr=output,
                env=handed_on(),
                pass_fds=inherited,
                start_new_session=True,
            )
    finally:
        if log is not None:
            os.close(log)


def _open_log(runtime_dir: str) -> int:
    """For what a detached supervisor itself has to say."""
    logs = os.path.join(runtime_dir, directories.LOGS)
    os.mkdir(logs, 0o700)
    return os.open(log_path(logs, SUPERVISOR), os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)


# -- the controller -----------------------------------------------------------------------------


class ProcessEngine:
    """The Engine whose processes the supervisor at ``address`` (``unix:/…/engine.sock``) forks."""

    def __init__(self, address: str, clock: Clock) -> None:
        if not address.startswith("unix:"):
            raise EngineError(f"the engine's address {address!r} does not begin with 'unix:'")
        self._path = address.removeprefix("unix:")
        self._clock = clock
        self._callbacks: list[Changed] = []
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()

    async def observe(self) -> list[ProcessSeen]:
        return list((await self._ask(ListProcesses())).seen)

    async def perform(self, action: Action) -> ProcessSeen | None:
        seen = (await self._ask(action)).seen
        return seen[0] if seen else None

    def on_change(self, callback: Changed) -> None:
        self._callbacks.append(callback)

    async def close(self) -> None:
        """The connection only; the processes are the supervisor's."""
        if self._link is not None:
            self._link.close()
            await self._link.closed.wait()

    async def _ask(self, what: Action | ListProcesses) -> Answer:
        async with self._connecting:
            if self._link is None or self._link.closed.is_set():
                self._link = await self._connect()
            link = self._link
        answered = link.ask(what)
        limit = asyncio.ensure_future(self._clock.sleep(ANSWER_LIMIT_S))
        either: set[asyncio.Future[Any]] = {answered, limit}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                raise EngineError(f"the supervisor did not answer within {ANSWER_LIMIT_S:g} s")
        finally:
            limit.cancel()
            answered.cancel()
        answer = answered.result()
        if answer.error is not None:
            raise EngineError(answer.error)
        return answer

    async def _connect(self) -> _Link:
        loop = asyncio.get_running_loop()
        try:
            _, link = await loop.create_unix_connection(lambda: _Link(self._changed), self._path)
        except OSError as error:
            raise EngineError(f"no supervisor listens on {self._path} ({error}); the instance has ended") from error
        return link

    def _changed(self, seen: ProcessSeen | None) -> None:
        for callback in self._callbacks:
            callback(seen)


class _Link(asyncio.Protocol):
    """One connection to the supervisor."""

    def __init__(self, changed: Changed) -> None:
        self.closed = asyncio.Event()
        self._changed = changed
        self._reader = FrameReader(ANSWER_MAX_BYTES)
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self._seq = 0
        self._transport: asyncio.Transport | None = None
        self._cause: Exception | None = None
        self._closing = False

    def ask(self, what: Action | ListProcesses) -> asyncio.Future[Answer]:
        """Sends the question; its answer, or EngineError when the connection is lost."""
        if self._transport is None or self.closed.is_set():
            raise EngineError("the connection to the supervisor is closed")
        if len(self._pending) >= PENDING_MAX:
            raise EngineError(f"{PENDING_MAX} questions to the supervisor are unanswered; it seems to hang")
        self._seq += 1
        seq = self._seq
        data = frame(Ask(seq, what), ASK_MAX_BYTES)
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        answered.add_done_callback(lambda _: self._pending.pop(seq, None))
        self._pending[seq] = answered
        self._transport.write(data)
        return answered

    def close(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop transports are no asyncio.Transport, so there is nothing to assert
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._reader.feed(data):
                self._hear(read_told(body))
        except WireError as error:
            self._cause = error
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set()
        unasked = not self._closing or self._cause is not None
        cause = self._cause or error
        for answered in list(self._pending.values()):
            if not answered.done():
                answered.set_exception(EngineError(f"the connection to the supervisor was lost: {cause or 'it ended'}"))
        if unasked:  # what runs is unknown now: look again
            self._changed(None)

    def _hear(self, told: Answer | Ended) -> None:
        if isinstance(told, Ended):
            self._changed(told.seen)
            return
        answered = self._pending.get(told.seq)
        if answered is not None and not answered.done():
            answered.set_result(told)
