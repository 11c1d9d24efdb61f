"""Where the instance of a chaos lives: a folder of its own, on a small file system of its own where that is allowed.

Law: nothing outside is touched. The file system is mounted in a mount namespace of this process and its children, so
the kernel takes it away with the last of them, however they end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from pathlib import Path

NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
NEW_NETWORK = 0x40000000  # CLONE_NEWNET
NO_SUID, NO_DEVICES, RECURSIVE, PRIVATE, DETACH = 2, 4, 16384, 1 << 18, 2
DISK_MB = 16
FILLER = "filler"
PIECES = (1 << 16, 1 << 12, 512)  # bytes; the last ones fill the last page


def unshare(what: int) -> None:
    """This process gets a namespace of its own. Raises OSError where it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(what) != 0:
        raise _error("unshare")


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


class Place:
    """The folder. ``why_no_disk``: why it is on no file system of its own; '' if it is."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="skc-"))  # short, because Unix socket paths are
        self.why_no_disk = self._mount()

    def _mount(self) -> str:
        """Mounts the small file system over the folder. Call it before there are threads."""
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            unshare(NEW_MOUNTS)
            if libc.mount(b"none", b"/", None, RECURSIVE | PRIVATE, None) != 0:
                raise _error("mount")
            options = f"size={DISK_MB}m,mode=0700".encode()
            if libc.mount(b"tmpfs", os.fsencode(self.folder), b"tmpfs", NO_SUID | NO_DEVICES, options) != 0:
                raise _error("mount")
        except (OSError, AttributeError) as error:  # not allowed, or not Linux
            return str(error)
        return ""

    def fill(self) -> int:
        """Leaves no byte free; how many were written."""
        written = 0
        descriptor = os.open(self.folder / FILLER, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for size in PIECES:
                with contextlib.suppress(OSError):  # no space is left: what is meant
                    while written < 2 * DISK_MB << 20:
                        written += os.write(descriptor, b"\0" * size)
        finally:
            os.close(descriptor)
        return written

    def free(self) -> None:
        """Gives it back."""
        (self.folder / FILLER).unlink(missing_ok=True)

    def close(self) -> None:
        """Removes the folder."""
        if not self.why_no_disk:
            ctypes.CDLL(None).umount2(os.fsencode(self.folder), DETACH)
        shutil.rmtree(self.folder, ignore_errors=True)
