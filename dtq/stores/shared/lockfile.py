"""Lockfile: a file that a process locks. The kernel unlocks it when the process ends, however that happens.

Why flock, and not fcntl.lockf: those locks belong to the process, so two stores in one process would not exclude each
other, and closing any descriptor of the file would end all of them. A flock belongs to the opened file instead, which a
child made by os.fork shares. Unlocking it in the child would unlock it for the parent; keeping it open in the child
would keep it locked after the parent was killed. So a child closes its inherited lock files at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from errno import EBADF
from functools import partial
from pathlib import Path
from weakref import WeakSet

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_CLOSED, _INHERITED = -1, -2  # in place of a descriptor
_do_nothing = int
_open: WeakSet[Lockfile] = WeakSet()


class Lockfile:
    """The file at `path`, opened and not yet locked. It is created if it is missing, unless `create` is False.

    `unlock` ends the lock, and does nothing if there is none. It is pure C code, so no interrupt can come between its
    call and its effect. All methods raise OSError if the system refuses them.
    """

    def __init__(self, path: str, *, create: bool = True) -> None:
        self._descriptor = _CLOSED
        self.path = path
        self.unlock: Callable[[], object] = _do_nothing
        self._flags = os.O_RDWR | (os.O_CREAT if create else 0) | getattr(os, "O_CLOEXEC", 0)
        self._open()
        _open.add(self)

    def _open(self) -> None:
        self._descriptor = os.open(self.path, self._flags, 0o666)
        self._identity = _identity(os.fstat(self._descriptor))
        if sys.platform != "win32":
            self.unlock = partial(fcntl.flock, self._descriptor, fcntl.LOCK_UN)

    def _opened(self) -> int:
        """Return the descriptor. Open the file again if this process inherited it from a fork."""
        if self._descriptor == _CLOSED:
            raise OSError(EBADF, "the file was closed", self.path)
        if self._descriptor == _INHERITED:
            self._open()
        return self._descriptor

    def try_lock(self) -> bool:
        """Lock the file if nothing else holds the lock. Return True if it is locked now."""
        try:
            if sys.platform == "win32":
                msvcrt.locking(self._opened(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(self._opened(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    if sys.platform != "win32":

        def lock(self) -> None:
            """Wait in the kernel's queue until the file is locked."""
            fcntl.flock(self._opened(), fcntl.LOCK_EX)

    def rename(self, path: str) -> None:
        os.rename(self.path, path)
        self.path = path

    def is_in_place(self) -> bool:
        """Return True if the path still names this file, and not another one or none."""
        try:
            return _identity(os.stat(self.path)) == self._identity
        except FileNotFoundError:
            return False

    def reopen_if_removed(self) -> bool:
        """If this file was removed, switch to the file that the path names now. Return True if it was."""
        if os.fstat(self._opened()).st_nlink:
            return False
        self.close()
        self._descriptor = _INHERITED
        return True

    def holder(self) -> int | None:
        """Return the id of the process that has locked the file, if the system knows it (Linux)."""
        device, inode = self._identity
        name = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
        with suppress(OSError):
            for line in Path("/proc/locks").read_text().splitlines():
                words = line.split()
                if words[1] == "FLOCK" and words[5] == name:
                    return int(words[4])
        return None

    def close(self) -> None:
        """Close the file, which unlocks it. In a forked child the lock stays with the parent."""
        descriptor, self._descriptor = self._descriptor, _CLOSED
        self.unlock = _do_nothing
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()

    def close_inherited(self) -> None:
        """Close the file in a forked child. It is opened again on its next use."""
        if self._descriptor >= 0:
            self.close()
            self._descriptor = _INHERITED


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _close_inherited() -> None:
    for lockfile in list(_open):
        with suppress(OSError):
            lockfile.close_inherited()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
