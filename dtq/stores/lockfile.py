"""Lockfile: a file that a process holds locked. The kernel ends the lock with the process, whatever way it ends.

Why flock, and not the locks of fcntl.lockf: those belong to the process, so two stores in one process would not keep
each other out, and all of them are lost when the process closes any descriptor of the file. A flock belongs to the
opened file instead, which a child made by os.fork shares. To unlock it there would free the lock of the parent; to keep
it open there would hold the lock after the parent was killed. So a child closes what it has inherited, at once.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from weakref import WeakSet

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_open: WeakSet[Lockfile] = WeakSet()


class Lockfile:
    """The file at `path`, opened and not yet locked. It is made if it is missing, unless `create` is False.

    Raises OSError where it cannot be opened.
    """

    def __init__(self, path: str, *, create: bool = True) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0) | getattr(os, "O_CLOEXEC", 0), 0o666)
        self._identity = _identity(os.fstat(self._descriptor))
        _open.add(self)

    def try_lock(self) -> bool:
        """Lock the file if no other open file holds the lock. Return whether that succeeded."""
        try:
            if sys.platform == "win32":
                msvcrt.locking(self._descriptor, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def rename(self, path: str) -> None:
        os.rename(self.path, path)
        self.path = path

    def is_in_place(self) -> bool:
        """Return whether the path still names this very file, and not another one or none."""
        try:
            return _identity(os.stat(self.path)) == self._identity
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the file, which ends its lock. In a child made by os.fork the lock stays with the parent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _close_inherited() -> None:
    for lockfile in list(_open):
        with suppress(OSError):
            lockfile.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
