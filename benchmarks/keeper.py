"""Keeps one system under test: ``python -m benchmarks.keeper LIFELINE COMMAND...``

Law: when the lifeline (the read end of a pipe) reports end-of-file or the command ends, everything that the command
ever started ends, by pid: asked first, killed then. The keeper is the reaper of all its descendants (Linux: a child
subreaper), so none of them can get out of its sight by losing its parent. Why: some of the peers are a dozen
processes that outlive whoever started them, and the benchmark may itself be killed at any moment.

It imports nothing but the standard library, because its own memory and its own start stand beside what is measured.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
LOOK_S = 0.05
ASKED_S = 6.0  # from the end of the lifeline (stdin is closed then, too) to SIGTERM
TERM_S = 4.0  # from SIGTERM to SIGKILL
KILL_S = 5.0  # for the kernel


def descendants(ancestor: int) -> list[int]:
    """All living processes below one, by pid."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(entry.name)] = int(fields[1])
    found = [ancestor]
    for pid in found:  # grows while it is walked
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def reap() -> dict[int, int]:
    """The exit codes of all children that have ended."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def send(signum: int) -> bool:
    """A signal to everything below; whether there is anything."""
    pids = descendants(os.getpid())
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            pass
    return bool(pids)


def end_all(command: int, asked_s: float) -> None:
    """Waits for the command to end by itself, then asks whatever is left, then kills it."""
    send(signal.SIGCONT)  # those that were made to pause
    until = time.monotonic() + asked_s
    while time.monotonic() < until and command in descendants(os.getpid()):
        time.sleep(LOOK_S)
        reap()
    for signum, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
        send(signum)
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            reap()
            if not send(signal.SIGKILL if signum == signal.SIGKILL else 0):
                return
            time.sleep(LOOK_S)


def main() -> int:
    """Runs until one of the two ends; the exit code of the command."""
    lifeline, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the lifeline decides
    os.set_inheritable(lifeline, False)
    child = subprocess.Popen(command, restore_signals=True, start_new_session=True, preexec_fn=_default_signals)
    code: int | None = None
    while code is None:
        code = reap().get(child.pid)
        if select.select([lifeline], [], [], LOOK_S)[0]:
            break
    else:
        end_all(child.pid, 0.0)
        return code
    # whoever holds the other end of stdin has closed it or is gone
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    end_all(child.pid, ASKED_S)
    return 0


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
