"""The threads of a replica on which ``def`` handlers run: jobs in, in order of arrival; results back to the loop.

Law: a job that was dropped before it began never begins; one that has begun cannot be interrupted, and whoever
waits for it waits until it has really ended, so that no more handlers run than were allowed. The queue of jobs is
bounded by the number of calls that the replica accepts. Threads are daemons: a hanging handler keeps no process.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

FEED_BYTES_MAX = 512 * 1024  # bytes of such items, about
FEED_ITEMS_MAX = 32  # items of a generator between its thread and the loop; enough to amortise a wake-up


class Job:
    """One function to run on a thread, in the context of whoever asked for it."""

    __slots__ = ("_claim", "context", "ended", "error", "function", "on_end", "result")

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.context = contextvars.copy_context()
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = False
        self.on_end: Callable[[], None] | None = None
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """True for the first who asks: the thread that begins it, or the loop that drops it."""
        return self._claim.acquire(blocking=False)

    def work(self) -> None:
        """Runs it (on the thread)."""
        try:
            self.result = self.context.run(self.function)
        except BaseException as error:
            self.error = error

    def outcome(self) -> Any:
        """The result, or raises what the function raised."""
        if self.error is not None:
            raise self.error
        return self.result


class Threads:
    """At most ``max_threads`` daemon threads, started when first needed; ``resize`` changes how many."""

    def __init__(self, max_threads: int, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._max = max_threads
        self._started = 0
        self._open = 0  # jobs that were submitted and have not ended
        self._jobs: deque[Job] = deque()
        self._tickets: SimpleQueue[bool | None] = (
            SimpleQueue()
        )  # True: for a job; False: end; None: look at the surplus
        self._surplus: deque[None] = deque()  # one for each thread that is too many: who takes it, ends
        self._ended: deque[Job] = deque()
        self._woken = False

    async def run(self, function: Callable[[], Any]) -> Any:
        """Runs the function on a thread. Cancelled: drops it if it has not begun, else waits until it ends."""
        job = self.submit(function)
        await self.finished(job)
        return job.outcome()

    def submit(self, function: Callable[[], Any]) -> Job:
        """Queues the function, in the caller's context."""
        job = Job(function)
        if self._started < min(self._max, self._open + 1):
            self._start_thread()
        self._open += 1
        self._jobs.append(job)
        self._tickets.put(True)
        return job

    def resize(self, max_threads: int) -> None:
        """Changes how many threads there may be. What runs goes on; nothing new begins on a thread too many."""
        self._max = max_threads
        while self._started < max_threads and self._surplus:
            with suppress(IndexError):  # taken this moment
                self._surplus.pop()
                self._started += 1
        while self._started < min(max_threads, self._open):
            self._start_thread()
        while self._started > max_threads:
            self._started -= 1
            self._surplus.append(None)
            self._tickets.put(None)  # for one that waits for a job; the others look when theirs has ended

    def drop(self, job: Job) -> None:
        """A job that has not begun never begins, and nothing is kept of it; one that has begun is left alone."""
        if not job.ended and job.claim():
            job.ended = True
            self._open -= 1
            with suppress(ValueError):  # a thread has it in hand, and will see that it is claimed
                self._jobs.remove(job)

    async def finished(self, job: Job) -> None:
        """Waits until the job has ended (or will never begin), come what may; then passes a cancellation on."""
        cancelled: asyncio.CancelledError | None = None
        while not job.ended:
            waiter: asyncio.Future[None] = self._loop.create_future()
            job.on_end = partial(_resolve, waiter)
            try:
                await waiter
            except asyncio.CancelledError as error:
                cancelled = error
                self.drop(job)
        if cancelled is not None:
            raise cancelled

    def close(self) -> None:
        """Lets the threads end after the jobs that are queued."""
        self._max = 0  # no more are started
        for _ in range(self._started):
            self._tickets.put(False)

    def _start_thread(self) -> None:
        threading.Thread(target=self._work, name=f"skate-handler-{self._started + 1}", daemon=True).start()
        self._started += 1  # not before: when the system has no thread left, the next call tries again

    def _is_surplus(self) -> bool:
        try:
            self._surplus.pop()
        except IndexError:
            return False
        return True

    def _work(self) -> None:
        while not self._is_surplus():
            ticket = self._tickets.get()
            if ticket is None:
                continue
            if not ticket:
                return
            try:
                job = self._jobs.popleft()
            except IndexError:  # its job was dropped
                continue
            if not job.claim():
                continue
            job.work()
            self._ended.append(job)
            del job  # the thread keeps no result alive while it waits
            if not self._woken:
                self._woken = True
                if not wake(self._loop, self._settle):
                    return

    def _settle(self) -> None:
        self._woken = False  # before the look into the queue: who appends after it wakes us again
        while self._ended:
            job = self._ended.popleft()
            self._open -= 1
            job.ended = True
            if job.on_end is not None:
                job.on_end()


async def aside(function: Callable[[], Any], name: str) -> Any:
    """Runs a function on a new thread of its own, beside the handlers' and behind none of them.

    Cancelled: the thread goes on, and nobody hears of its end.
    """
    loop = asyncio.get_running_loop()
    job, ended = Job(function), loop.create_future()

    def work() -> None:
        job.work()
        wake(loop, partial(_resolve, ended))

    threading.Thread(target=work, name=name, daemon=True).start()
    await ended
    return job.outcome()


class Feed:
    """The items of an iterator that runs on a thread, on their way to the loop: a few at a time, never more.

    No more than ``FEED_ITEMS_MAX`` items, or about ``FEED_BYTES_MAX`` bytes of them, are between the two; the loop
    takes all that is there at once, so that a fast iterator costs one wake-up for many items.
    """

    def __init__(self, threads: Threads, iterator: Iterator[Any], encode: Callable[[Any], Any]) -> None:
        self._iterator = iterator
        self._encode = encode
        self._made: list[Any] = []  # by the thread, not yet taken; both under the lock
        self._dropped = False
        self._change = threading.Condition(threading.Lock())
        self._items: deque[Any] = deque()  # taken over by the loop
        self._full = False  # the thread waits for room
        self._bytes_in = self._bytes_out = 0  # of items that came in and went out; each is written by one side only
        self._waiter: asyncio.Future[None] | None = None
        self._threads = threads
        self._loop = threads._loop
        self._job = threads.submit(self._pump)
        self._job.on_end = self._wake

    def __aiter__(self) -> Feed:
        return self

    async def __anext__(self) -> Any:
        """The next item; raises what the iterator raised after its last one."""
        while not self._items:
            if self._take():
                break
            if self._job.ended:
                try:
                    self._job.outcome()
                except StopAsyncIteration as error:  # would look like the end
                    raise RuntimeError("a generator raised StopAsyncIteration") from error
                raise StopAsyncIteration
            self._waiter = self._loop.create_future()
            await self._waiter
        item = self._items.popleft()
        self._bytes_out += _weight(item)
        if self._full:
            with self._change:
                self._make_room()
        return item

    def _has_room(self, items: int, size: int) -> bool:
        return len(self._made) + len(self._items) < items and self._bytes_in - self._bytes_out < size

    def _take(self) -> bool:
        """Takes over what the thread has made; whether there was anything."""
        with self._change:
            taken = bool(self._made)
            self._items.extend(self._made)
            self._made.clear()
            self._make_room()
        return taken

    def _make_room(self) -> None:
        """Lets the thread go on if it waits and may (under the lock: it decides to wait under it, too)."""
        if self._full and self._has_room(FEED_ITEMS_MAX // 2, FEED_BYTES_MAX // 2):
            self._full = False
            self._change.notify()

    async def aclose(self) -> None:
        """Stops the iterator at its next item, and waits until its thread is free again."""
        with self._change:
            self._dropped = True
            self._change.notify()
        self._threads.drop(self._job)
        await self._threads.finished(self._job)

    def _pump(self) -> None:
        iterator, encode = self._iterator, self._encode
        try:
            for item in iterator:
                if not self._put(encode(item)):
                    break
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def _put(self, item: Any) -> bool:
        made = self._made
        with self._change:
            while not self._dropped and not self._has_room(FEED_ITEMS_MAX, FEED_BYTES_MAX):
                self._full = True
                self._change.wait()
            if self._dropped:
                return False
            made.append(item)
            self._bytes_in += _weight(item)
            if len(made) > 1:  # the loop has been woken for the first of them and not been here since
                return True
        return wake(self._loop, self._wake)

    def _wake(self) -> None:
        if self._waiter is not None:
            _resolve(self._waiter)


def _weight(item: Any) -> int:
    """Bytes of an encoded item, alone or behind the value that it was made from."""
    encoded = item[-1] if type(item) is tuple and item else item
    return len(encoded) if isinstance(encoded, bytes) else 0


def wake(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> bool:
    """Has the loop call ``callback`` soon; False if the loop is gone."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:  # closed
        return False
    return True


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
