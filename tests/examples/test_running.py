"""How the examples find out what an instance left behind: shown on a process that does leave something."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from examples.running import alive, descendants, listens, process_table

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=sys.stdin)
print(child.pid, flush=True)
child.wait()
"""


def test_a_grandchild_is_found_until_it_ends() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout and parent.stdin
        grandchild = int(parent.stdout.readline())
        family = descendants(os.getpid(), process_table())
        assert {parent.pid, grandchild} <= set(family)
        assert {parent.pid, grandchild} <= set(alive(family, process_table()))
        parent.stdin.close()
    assert not {parent.pid, grandchild} & set(alive(family, process_table()))


def test_a_later_process_with_the_same_pid_is_another_one() -> None:
    table = process_table()
    me = os.getpid()
    assert alive({me: table[me]}, table) == [me]
    assert alive({me: table[me]._replace(started="before")}, table) == []


def test_a_listener_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listens(port)
    assert not listens(port)
