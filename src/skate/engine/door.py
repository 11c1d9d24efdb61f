"""``engine.sock``: where the supervisor hears the controller.

Law: never waits; reads what is there, keeps what cannot be written yet up to a limit, drops whoever breaks the
protocol or does not read. Only processes of the same user are heard.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import sys
from collections.abc import Callable

from skate.core.errors import WireError
from skate.engine.messages import ANSWER_MAX_BYTES, ASK_MAX_BYTES, Answer, Ask, Ended, FrameReader, frame, read_ask

CONNECTIONS_MAX = 256  # when a controller dies, every process of the instance knocks to hear whether we live
BACKLOG = 1024
READ_BYTES = 256 * 1024
UNSENT_MAX_BYTES = 2 * ANSWER_MAX_BYTES


class Door:
    """The listening socket and its connections, on the supervisor's selector (``data`` is called with the events)."""

    def __init__(self, path: str, selector: selectors.BaseSelector, answer: Callable[[Ask], Answer]) -> None:
        self._selector = selector
        self._answer = answer
        self._guests: set[_Guest] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)
        old = os.umask(0o177)
        try:
            self._listener.bind(path)
        finally:
            os.umask(old)
        self._listener.listen(BACKLOG)

    def open(self) -> None:
        """Hears whoever knocked meanwhile, and everybody from now on."""
        self._selector.register(self._listener, selectors.EVENT_READ, self._enter)

    def hand_over(self, selector: selectors.BaseSelector) -> None:
        """In a fork that goes on in our place: the same socket, so nobody knocks in vain, and no guest of before."""
        self._selector = selector
        self._guests.clear()

    def tell(self, ended: Ended) -> None:
        """Tells everyone who is connected."""
        data = frame(ended, ANSWER_MAX_BYTES)
        for guest in list(self._guests):
            self._send(guest, data)

    def close_guests(self) -> None:
        """Closes the connections without a word; what a fork does with its copies."""
        for guest in self._guests:
            guest.socket.close()

    def close_sockets(self) -> None:
        """The same, and no listening any more."""
        self._listener.close()
        self.close_guests()

    def _enter(self, events: int) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return  # gone again, or out of descriptors: it may try again
        if len(self._guests) >= CONNECTIONS_MAX or not _same_user(accepted):
            accepted.close()
            return
        accepted.setblocking(False)
        guest = _Guest(accepted)
        self._guests.add(guest)
        self._selector.register(accepted, selectors.EVENT_READ, lambda events: self._serve(guest, events))

    def _serve(self, guest: _Guest, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._send(guest, b"")
        if events & selectors.EVENT_READ and guest in self._guests:
            self._read(guest)

    def _read(self, guest: _Guest) -> None:
        try:
            data = guest.socket.recv(READ_BYTES)
            if not data:
                self._leave(guest)
                return
            for body in guest.reader.feed(data):
                self._send(guest, frame(self._answer(read_ask(body)), ANSWER_MAX_BYTES))
        except BlockingIOError:
            return
        except WireError as error:
            print(f"skate: supervisor: a connection was closed: {error}", file=sys.stderr, flush=True)
            self._leave(guest)
        except OSError:
            self._leave(guest)

    def _send(self, guest: _Guest, data: bytes) -> None:
        if guest not in self._guests:
            return
        guest.unsent += data
        try:
            sent = guest.socket.send(guest.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._leave(guest)
            return
        del guest.unsent[:sent]
        if len(guest.unsent) > UNSENT_MAX_BYTES:
            self._leave(guest)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if guest.unsent else 0)
        key = self._selector.get_key(guest.socket)
        if key.events != wanted:
            self._selector.modify(guest.socket, wanted, key.data)

    def _leave(self, guest: _Guest) -> None:
        self._guests.discard(guest)
        self._selector.unregister(guest.socket)
        guest.socket.close()


class _Guest:
    """One connection."""

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.reader = FrameReader(ASK_MAX_BYTES)
        self.unsent = bytearray()


def _same_user(accepted: socket.socket) -> bool:
    """Where the system does not say who is there (macOS), the mode of the socket and its directory must do."""
    peercred = getattr(socket, "SO_PEERCRED", None)
    if peercred is None:
        return True
    _, uid, _ = struct.unpack("3i", accepted.getsockopt(socket.SOL_SOCKET, peercred, struct.calcsize("3i")))
    return bool(uid == os.getuid())
