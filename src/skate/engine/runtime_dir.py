"""The private directory of an instance: sockets, pid, logs.

Law: one directory, one instance, held by a lock that the kernel gives back when its holder dies by any
signal; so a directory whose lock is free is litter and may be swept. Only its user can enter it (0700): the
sockets inside carry pickles, and whoever can reach them can run code as that user.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from dataclasses import dataclass

from skate.core.environment import RUNTIME_DIR_MAX
from skate.engine.base import AlreadyRunningError, EngineError

LOCK = "lock"
PID = "pid"
STANDBY = "standby"
PID_BYTES = 20
LOGS = "logs"
ENGINE_SOCKET = "engine.sock"
CLAIM_TRIES_MAX = 20  # each lost try means that another instance swept the directory in that very moment


@dataclass(frozen=True, slots=True)
class RuntimeDir:
    """A directory that is ours as long as ``lock_fd`` is open in some process."""

    path: str
    lock_fd: int


def claim(path: str) -> RuntimeDir:
    """Makes the directory ours: created or swept, empty but for the lock. AlreadyRunningError if it is someone's."""
    size = len(os.fsencode(path))
    if size > RUNTIME_DIR_MAX:
        raise EngineError(
            f"the runtime directory {path} has a path of {size} bytes; the sockets in it leave room for "
            f"{RUNTIME_DIR_MAX}: set SKATE_RUNTIME_DIR to a shorter one"
        )
    cause: OSError | None = None
    for _ in range(CLAIM_TRIES_MAX):
        try:
            lock_fd = _lock(path)
        except (FileNotFoundError, FileExistsError) as error:
            cause = error
            continue  # swept between two of our steps
        if lock_fd is not None:
            _sweep(path, keep=(LOCK,))
            return RuntimeDir(path, lock_fd)
    raise EngineError(f"the runtime directory {path} cannot be made: {cause or 'it is replaced all the time'}")


def remove(claimed: RuntimeDir, keep_logs: bool = False) -> None:
    """Sweeps the directory and gives the lock back. The parent goes too when it is Skate's own and empty."""
    keep = (LOCK, LOGS) if keep_logs else (LOCK,)
    try:
        _sweep(claimed.path, keep)
        os.unlink(os.path.join(claimed.path, LOCK))
        os.rmdir(claimed.path)
        base = os.path.dirname(claimed.path)
        if os.path.basename(base) in ("skate", f"skate-{os.getuid()}"):
            os.rmdir(base)
    except OSError:
        pass  # logs are kept, another instance lives beside us, or someone swept first
    finally:
        os.close(claimed.lock_fd)


def remove_stale(path: str) -> bool:
    """Removes the directory that a killed instance left. False when it is in use."""
    if os.path.isdir(path):
        try:
            claimed = claim(path)
        except EngineError:
            return False
        remove(claimed)
    return True


def running_pid(path: str) -> int | None:
    """The process id of the supervisor that serves this directory now, or None."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(os.path.join(path, ENGINE_SOCKET))
    except (BlockingIOError, TimeoutError):
        pass  # somebody listens, and more wait than it has got round to: a busy supervisor, not a dead one
    except OSError:
        return None
    return read_pid(path)


def write_pid(path: str, name: str = PID, pid: int | None = None) -> None:
    """Notes who serves the directory (``STANDBY``: who would), by default this process. May raise OSError.

    Over what stands there and as long as that: a full disk has room for it.
    """
    fd = os.open(os.path.join(path, name), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{os.getpid() if pid is None else pid:<{PID_BYTES}}".encode())
    finally:
        os.close(fd)


def read_pid(path: str, name: str = PID) -> int | None:
    """Who serves the directory, or served it when all were killed; None: nobody, or it is gone."""
    try:
        with open(os.path.join(path, name), encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _lock(path: str) -> int | None:
    """The descriptor of the lock, or None when the directory was replaced under our hands."""
    base = os.path.dirname(path)
    os.makedirs(base, mode=0o700, exist_ok=True)
    check_base(base)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    check_private(path)
    lock_path = os.path.join(path, LOCK)
    fd = os.open(lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(lock_path)):
            return fd
    except BlockingIOError:
        os.close(fd)
        pid = read_pid(path)
        raise AlreadyRunningError(
            f"an instance is running in {path}" + (f" (supervisor {pid})" if pid else "") + "; "
            "use that one, end it with 'skate shutdown', or set SKATE_INSTANCE to another name"
        ) from None
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def check_private(path: str, kind: str = "runtime", variable: str = "SKATE_RUNTIME_DIR") -> None:
    """Only its user may enter the directory."""
    seen = os.lstat(path)
    if not stat.S_ISDIR(seen.st_mode):
        raise EngineError(f"the {kind} directory {path} is not a directory: remove it or set {variable}")
    if seen.st_uid != os.getuid():
        raise EngineError(
            f"the {kind} directory {path} belongs to user {seen.st_uid}, not to you ({os.getuid()}): "
            f"set {variable} to a directory of your own"
        )
    if seen.st_mode & 0o077:
        raise EngineError(
            f"the {kind} directory {path} is open to others (mode {stat.S_IMODE(seen.st_mode):o}): chmod 700 it, "
            f"remove it, or set {variable} to another one"
        )


def check_base(base: str, kind: str = "runtime", variable: str = "SKATE_RUNTIME_DIR") -> None:
    """Others must not be able to rename what is in it."""
    seen = os.stat(base)
    trusted = seen.st_uid in (os.getuid(), 0)
    if not trusted or (seen.st_mode & 0o022 and not seen.st_mode & stat.S_ISVTX):
        raise EngineError(
            f"the directory {base}, which holds the {kind} directories, can be changed by others "
            f"(owner {seen.st_uid}, mode {stat.S_IMODE(seen.st_mode):o}): chmod 700 it or set {variable}"
        )


def _sweep(path: str, keep: tuple[str, ...] = ()) -> None:
    with os.scandir(path) as entries:
        for entry in list(entries):
            if entry.name in keep:
                continue
            if entry.is_dir(follow_symlinks=False):
                _sweep(entry.path)
                os.rmdir(entry.path)
            else:
                os.unlink(entry.path)
