"""Pipes that end processes: whoever holds the read end ends when the last write end is gone.

Law: a write end exists in exactly one process, or in two that are one life: the supervisor and its standby. The kernel
closes it when a holder dies by whatever signal, and every reader sees the end of the stream. Descriptors of Python do
not pass an ``exec``; against plain forks of the holder (``multiprocessing`` in a user's script) a hook closes the copy.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_held: set[int] = set()  # write ends of this process


def _let_go_after_fork() -> None:
    for fd in _held:
        try:
            os.close(fd)
        except OSError:
            pass  # closed already by whoever forked
    _held.clear()


os.register_at_fork(after_in_child=_let_go_after_fork)


class Lifeline:
    """A new pipe; this process is the one whose life it tells."""

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe()
        _held.add(self._write_fd)

    def close_reader(self) -> None:
        """The holder itself need not watch its own life."""
        if self.read_fd >= 0:
            os.close(self.read_fd)
            self.read_fd = -1

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Whoever is forked meanwhile is a holder too: the end comes when both are gone."""
        _held.discard(self._write_fd)
        try:
            yield
        finally:
            _held.add(self._write_fd)

    def cut(self) -> None:
        """Ends everyone who watches. In a forked copy of the holder this does nothing."""
        if self._write_fd in _held:
            _held.discard(self._write_fd)
            os.close(self._write_fd)
        self._write_fd = -1


def watch(read_fds: Sequence[int], on_cut: Callable[[], None]) -> None:
    """Calls ``on_cut`` on a thread of its own as soon as one of the lifelines is cut."""
    threading.Thread(target=_wait_for_cut, args=(tuple(read_fds), on_cut), name="lifeline", daemon=True).start()


def _wait_for_cut(read_fds: tuple[int, ...], on_cut: Callable[[], None]) -> None:
    poll = select.poll()
    for fd in read_fds:
        poll.register(fd, select.POLLIN)
    while not poll.poll():
        pass
    on_cut()
