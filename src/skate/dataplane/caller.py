"""What a process needs to call deployments: a loop, a router on it, a line to the controller. One Caller per process.

Law: the router lives on exactly one loop. In a replica that is the loop of the user's coroutines, so a call from
one deployment to the next changes neither thread nor task; in a script or notebook it is a thread of its own, so
handles work whatever loops the user runs, or none.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from skate.core.clock import Clock, SystemClock
from skate.core.errors import NotRunningError
from skate.dataplane.endings import instance_gone
from skate.dataplane.router import Router
from skate.dataplane.shared.pool import tend
from skate.dataplane.uplink import Uplink, may_live

T = TypeVar("T")

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 2.0


class Caller:
    """The calling side of one process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, router: Router, uplink: Uplink, address: str) -> None:
        self.loop = loop
        self.router = router
        self.uplink = uplink
        self.address = address  # of the controller
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine on the router's loop; it must deal with its own errors. Call it on that loop only."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends calls, reports the last counts, closes connections."""
        for task in list(self._tasks):
            task.cancel()
        await self.router.close()
        await self.uplink.close()


class IoThread:
    """A daemon thread with a loop, for processes whose loops are the user's."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        self._thread = threading.Thread(target=self._main, name="skate-io", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        pending = asyncio.all_tasks(self.loop)
        for task in pending:
            task.cancel()
        if pending:
            self.loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(asyncio.sleep(0))  # connections that were closed just now take one more turn
        self.loop.close()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine on the thread's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Runs a coroutine on the thread's loop and waits for its result from another thread."""
        future = self.submit(coroutine)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Ends the loop and the thread."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(STOP_TIMEOUT_S)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # uvloop has no build for some platforms; asyncio's own loop does everything, slower
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class _Place:
    """The process's Caller and, where there is one, the thread that it lives on."""

    def __init__(self) -> None:
        self.caller: Caller | None = None
        self.thread: IoThread | None = None
        self.lock = threading.RLock()

    def forget(self) -> None:
        self.__init__()  # type: ignore[misc]


_place = _Place()
os.register_at_fork(after_in_child=_place.forget)


def install(caller: Caller | None) -> None:
    """Makes ``caller`` the process's own (a replica does this at its start)."""
    _place.caller = caller


def here() -> Caller | None:
    """The process's Caller, if it has one."""
    return _place.caller


def current(address: str | None = None) -> Caller:
    """The process's Caller; with an ``address`` of a controller, one is started if there is none.

    Raises NotRunningError when there is none and no address.
    """
    caller = _place.caller
    if caller is not None:
        if caller.router.ended:
            raise instance_gone()
        return caller
    if address is None:
        raise NotRunningError(
            "this process is not connected to a Skate instance: call serve.run(...) or serve.start() first"
        )
    return start(address)


def start(address: str, name: str | None = None, clock: Clock | None = None) -> Caller:
    """Starts the process's Caller on a thread of its own and waits for the first snapshot.

    Raises NotRunningError when no controller answers at ``address``.
    """
    with _place.lock:
        if _place.caller is not None:
            return _place.caller
        if not may_live(address):
            raise instance_gone()
        thread = _place.thread or io_thread()
        try:
            _place.caller = thread.run(
                _make(address, name or f"driver {os.getpid()}", clock or SystemClock()), START_TIMEOUT_S
            )
        except TimeoutError:
            raise NotRunningError(f"the controller at {address} did not answer within {START_TIMEOUT_S} s") from None
        return _place.caller


def io_thread() -> IoThread:
    """The process's I/O thread; started when first asked for."""
    with _place.lock:
        if _place.thread is None:
            _place.thread = IoThread()
        return _place.thread


async def _make(address: str, name: str, clock: Clock) -> Caller:
    caller = await make(address, name, clock)
    try:
        await asyncio.wait_for(caller.router.known.wait(), START_TIMEOUT_S - 1)
    except TimeoutError:
        await caller.close()
        raise
    return caller


async def make(address: str, name: str, clock: Clock) -> Caller:
    """A Caller on the running loop, connecting in the background."""
    router = Router(name, clock)
    uplink = Uplink(address, name, router, clock)
    uplink.start()
    caller = Caller(asyncio.get_running_loop(), router, uplink, address)
    caller.spawn(tend(clock))
    return caller


def stop() -> None:
    """Ends the process's Caller if it lives on a thread of its own."""
    with _place.lock:
        caller, thread = _place.caller, _place.thread
        if thread is None:
            return
        _place.caller, _place.thread = None, None
        if caller is not None:
            with contextlib.suppress(Exception):
                thread.run(caller.close(), STOP_TIMEOUT_S)
        thread.stop()


atexit.register(stop)
