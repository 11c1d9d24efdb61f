"""The life of a forked process, from the fork to its last instruction.

Law: nothing of the supervisor's stack runs in here again; ``live`` never returns. A child ends when its entry
returns, when it is asked to (SIGTERM, then the entry has its grace), and at the latest a moment after its
lifeline is cut, even while user code blocks the loop: then a thread ends it and its whole process group.
"""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

import uvloop
from setproctitle import setproctitle

from skate.core.clock import SystemClock
from skate.core.specs import ProcessSpec
from skate.engine import lifeline, output, speech
from skate.engine.base import Life, exit_code_of, print_failure, resolve
from skate.engine.exits import ExitBoard

ORPHAN_GRACE_S = 0.3  # for an orderly end after the lifeline was cut
LEFTOVERS_S = 1.0  # for tasks that the entry left behind, after their cancellation
CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)  # blocked over a fork, so that none gets lost in it


@dataclass(frozen=True, slots=True)
class Birth:
    """What a child is given by the supervisor."""

    engine_address: str
    lifelines: tuple[int, ...]
    logs: str  # the folder for what it prints
    shown: bool  # whether that is also seen where the supervisor prints
    exits: ExitBoard
    close_inherited: Callable[[], None]  # shuts what belongs to the supervisors alone


def live(spec: ProcessSpec, birth: Birth, slot: int) -> NoReturn:
    """Runs the entry in this just forked process and ends the process with it."""
    orphaned = threading.Event()
    code = 1
    try:
        log = _settle(spec, birth)
        code = _run(spec, birth, log, orphaned)
    except SystemExit as stop:
        code = exit_code_of(stop)
    except BaseException as error:
        with suppress(Exception):
            print_failure(spec.title, error)
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()
        _flush()
        if orphaned.is_set():
            _end_group()
        birth.exits.note(slot, code)
        os._exit(code)


def _settle(spec: ProcessSpec, birth: Birth) -> output.Log | None:
    """From a copy of the supervisor to a process of its own; its log. Its signals stay blocked until its loop hears
    them."""
    signal.signal(signal.SIGHUP, _ignore)  # sent by the kernel to a halted group whose parent dies: we outlive that
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, _ignore)
    birth.close_inherited()
    setproctitle(spec.title)
    gc.enable()
    log = output.attach(birth.logs, spec.id, birth.shown)
    if log is None:
        faulthandler.enable()
    speech.begin(spec.title, replica=spec.role == "replica")
    _reseed()
    return log


def _ignore(signum: int, frame: object) -> None:
    """Unlike SIG_IGN this is not handed down to programs that user code starts."""


def _reseed() -> None:
    """``random`` and ``secrets`` see a fork themselves; numpy's global generator does not."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def _run(spec: ProcessSpec, birth: Birth, log: output.Log | None, orphaned: threading.Event) -> int:
    entry = resolve(spec.entry)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    life = Life(SystemClock(), inline=False, engine_address=birth.engine_address)

    def on_cut() -> None:
        orphaned.set()
        with suppress(RuntimeError):  # the loop is closed: we are ending anyway
            loop.call_soon_threadsafe(life.stopping.set)
        threading.Event().wait(ORPHAN_GRACE_S)
        _end_group()

    lifeline.watch(birth.lifelines, on_cut)
    loop.add_signal_handler(signal.SIGTERM, life.stopping.set)

    async def hear_and_run() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT)  # only a running loop of uvloop hears signals
        await entry(spec.config, life)

    def look_at_log(log: output.Log) -> None:
        log.keep_bounded()
        loop.call_later(output.LOOK_AGAIN_S, look_at_log, log)

    if log is not None:
        look_at_log(log)
    try:
        loop.run_until_complete(hear_and_run())
        return 0
    finally:
        loop.run_until_complete(_cancel_leftovers())


async def _cancel_leftovers() -> None:
    """Threads are not waited for: whoever runs a ``def`` for hours must not keep the process."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=LEFTOVERS_S)
    with suppress(Exception):
        await asyncio.wait_for(asyncio.get_running_loop().shutdown_asyncgens(), LEFTOVERS_S)


def _end_group() -> None:
    """Kills this process and what user code started in it."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # nobody reads any more
            stream.flush()


def fork(spec: ProcessSpec, birth: Birth, slot: int, known: Callable[[int], None]) -> int:
    """Forks a process that lives as ``spec`` says; its id. It leads a process group of its own.

    It does nothing before ``known`` was called with its id and has returned; if the supervisor dies before that, it
    ends without a trace. So no process runs that a standby does not know. ``slot``: its cell on the board.
    """
    _flush()  # or the child would print it once more
    gate, opener = os.pipe()
    with held_back():
        try:
            pid = os.fork()
            if pid == 0:
                os.close(opener)
                if not os.read(gate, 1):
                    os._exit(1)
                os.close(gate)
                live(spec, birth, slot)
            with suppress(OSError):  # the child does the same; whoever comes first
                os.setpgid(pid, pid)
            known(pid)
            os.write(opener, b"1")  # never refused: we hold the other end too
            return pid
        finally:
            os.close(gate)
            os.close(opener)


@contextmanager
def held_back() -> Iterator[None]:
    """Signals wait until a fork is over."""
    signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT)
