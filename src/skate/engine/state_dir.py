"""The folder for what an instance without an owner must not lose when it ends, or when the machine does.

Law: one folder, one instance, held by a lock that the supervisors keep open; it is never swept. Only its user can enter
it (0700): what is kept are pickles, and whoever can write them can run code as that user.
"""

from __future__ import annotations

import fcntl
import os
import threading

from skate.core.clock import SystemClock
from skate.engine.base import EngineError
from skate.engine.runtime_dir import LOCK, check_base, check_private

VARIABLE = "SKATE_STATE_DIR"
WAIT_S = 2.0  # for an instance that was killed: its last descriptors close after its socket
LOOK_S = 0.01


def claim(path: str, holder: str) -> int:
    """Makes the folder ours; it is, as long as the descriptor that this returns is open in some process.

    ``holder``: the runtime directory of the instance, for whoever finds the folder taken. EngineError if it is.
    """
    base = os.path.dirname(path)
    try:
        os.makedirs(base, mode=0o700, exist_ok=True)
        check_base(base, "state", VARIABLE)
        os.makedirs(path, mode=0o700, exist_ok=True)
        check_private(path, "state", VARIABLE)
        fd = os.open(os.path.join(path, LOCK), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise EngineError(
            f"the state directory {path}, where the instance keeps what is deployed, cannot be made ({error}): "
            f"set {VARIABLE} to a directory that you can write to"
        ) from error
    try:
        _lock(fd, path)
        os.ftruncate(fd, 0)
        os.pwrite(fd, os.fsencode(holder), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int, path: str) -> None:
    clock = SystemClock()
    until = clock.now() + WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if clock.now() > until:
                where = os.fsdecode(os.pread(fd, 4096, 0)) or "another runtime directory"
                raise EngineError(
                    f"the state directory {path} is in use by an instance of the same name in {where}: set "
                    f"SKATE_INSTANCE to another name, or {VARIABLE} to another directory"
                ) from None
        threading.Event().wait(LOOK_S)
