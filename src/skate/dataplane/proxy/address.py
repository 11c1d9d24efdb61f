"""Addresses of HTTP. Law: one that cannot be had is said in one sentence, with cause and way out."""

from __future__ import annotations

import errno
import ipaddress
import socket

from skate.core.errors import AddressInUseError

BACKLOG = 2048  # connections the kernel holds until they are accepted
# Clients that vanished without a word (power, network) are found by the kernel after two minutes of silence.
# What is set on the listening socket holds for the connections it accepts.
ALIVE = (("SO_KEEPALIVE", 1), ("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))


def bind(host: str, port: int, share: bool = False) -> socket.socket:
    """A socket that listens on the address. ``share``: other proxies listen on the same one.

    Raises AddressInUseError, for whatever reason the address cannot be had; its text names address, cause and way out.
    """
    # For who binds this port after us: connections that we leave behind, killed, must not keep it for a minute.
    options = ["SO_REUSEADDR", "SO_REUSEPORT"] if share else ["SO_REUSEADDR"]
    listener = _bound(host, port, options)
    try:
        for name, value in ALIVE:
            if (option := getattr(socket, name, None)) is not None:  # not every system has them all
                level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
                listener.setsockopt(level, option, value)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise AddressInUseError(f"HTTP cannot be served on {host}:{port}: {_why(error, port)}") from None
    return listener


def reserve(host: str) -> socket.socket:
    """A free port that nobody gets but who shares it: the socket is bound and does not listen; close it to let go.

    Raises AddressInUseError.
    """
    return _bound(host, 0, ["SO_REUSEPORT"])


def is_local(client: tuple[str, int] | None) -> bool:
    """Whether a client is on this machine."""
    if client is None:
        return False
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _bound(host: str, port: int, options: list[str]) -> socket.socket:
    if not 0 <= port <= 65_535:  # the system would take it modulo 65536
        raise AddressInUseError(f"HTTP cannot be served on port {port}: choose one from 0 (any free one) to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise AddressInUseError(
            f"HTTP cannot be served on host {host!r}: the name leads to no address ({error}); "
            "use 127.0.0.1 for this machine only or 0.0.0.0 for all its addresses"
        ) from None
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)  # "localhost" means 127.0.0.1 before ::1
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        for option in options:
            listener.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise AddressInUseError(f"HTTP cannot be served on {host}:{port}: {_why(error, port)}") from None
    return listener


def _why(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another process uses this port; stop that one, or choose another port (port 0 takes any free one)"
    if isinstance(error, PermissionError):
        return f"port {port} is reserved for the system administrator; choose one from 1024 on"
    return f"{error.strerror or error}; choose an address of this machine, 127.0.0.1 or 0.0.0.0"


def host_and_port(name: object) -> tuple[str, int] | None:
    """Host and port from what a socket calls an address, where there are such."""
    return (name[0], name[1]) if isinstance(name, tuple) and len(name) >= 2 else None
