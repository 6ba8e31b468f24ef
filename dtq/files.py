"""Files that a handler may open: those below the directories that the node lists in DTQ_FILES.

The client that submits a task chooses its payload. A handler that takes a path from a payload opens it only with these:

    reading(path)      opens a regular file for reading
    replacing(path)    opens a new file, which replaces the one at the path when the block ends without an error

    path --resolve--> below an allowed directory? --open from there, one name at a time, no links--> a regular file?

A directory or file that becomes a link between the two steps is not followed. Hard links cannot be detected; to make
one, a process must already be able to write below the allowed directories.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, NoReturn
from uuid import uuid4

VARIABLE = "DTQ_FILES"
_HAS_DIR_FD = os.open in os.supports_dir_fd  # False on Windows, where the resolved path is opened
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_DIRECTORY = _NO_LINK | getattr(os, "O_DIRECTORY", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # else opening a pipe would wait for its writer


def directories() -> list[str]:
    """Return the resolved paths of the allowed directories: those in DTQ_FILES, separated as in PATH, or the working
    directory if it is not set."""
    named = [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    return [os.path.realpath(name) for name in named or [os.curdir]]


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a regular file below the allowed directories for reading. Raises PermissionError for any other path."""
    real = os.path.realpath(path)
    with _named(path), _parent(path, real) as (name, at):
        _require_regular(path, os.stat(name, follow_symlinks=False, **at))
        file = os.fdopen(os.open(name, os.O_RDONLY | _NO_LINK | _NONBLOCK | _BINARY, **at), "rb")
    with file:
        _require_regular(path, os.fstat(file.fileno()))
        yield file


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file beside `path`. It replaces `path` when the block ends, and is removed if the block raises.

    Its name is unique: two attempts at the same time (one may run on a node that was cut off) never share it. Raises
    PermissionError where the path is not below the allowed directories, or is something else than a regular file.
    """
    folder, last = os.path.split(os.fspath(path))
    if last in ("", os.curdir, os.pardir):
        _refuse(path, "names no file")
    with _parent(path, os.path.join(os.path.realpath(folder), last)) as (name, at):
        part = os.path.join(os.path.dirname(name), f".{last}.{uuid4().hex}.part")
        try:
            with _named(path):
                _require_regular_or_none(path, name, at)
                file = os.fdopen(os.open(part, _NEW, 0o666, **at), "wb")
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # before the task is reported as completed
            with _named(path):
                os.replace(part, name, **{f"{end}_{key}": fd for end in ("src", "dst") for key, fd in at.items()})
        except BaseException:
            with suppress(FileNotFoundError):  # it was not created yet
                os.unlink(part, **at)
            raise


@contextmanager
def _parent(path: str | os.PathLike[str], real: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Check that the resolved path is allowed. Yield its name and keyword arguments for functions of `os`: `dir_fd`, a
    descriptor of its directory, which was reached without following a link."""
    for directory in directories():
        if real != directory and os.path.commonpath([real, directory]) == directory:
            break
    else:
        _refuse(path, "leads elsewhere")
    if not _HAS_DIR_FD:
        yield real, {}
        return
    with _named(path):
        *folders, name = os.path.relpath(real, directory).split(os.sep)
        here = os.open(directory, _DIRECTORY)
    try:
        with _named(path):
            for folder in folders:
                above, here = here, os.open(folder, _DIRECTORY, dir_fd=here)
                os.close(above)
        yield name, {"dir_fd": here}
    finally:
        os.close(here)


@contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make an OSError name the whole path, not the part of it that failed."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # raised by _refuse
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def _require_regular(path: str | os.PathLike[str], found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        _refuse(path, "is no regular file")


def _require_regular_or_none(path: str | os.PathLike[str], name: str, at: dict[str, Any]) -> None:
    with suppress(FileNotFoundError):
        _require_regular(path, os.stat(name, follow_symlinks=False, **at))


def _refuse(path: str | os.PathLike[str], why: str) -> NoReturn:
    raise PermissionError(
        f"path {os.fspath(path)!r:.300} {why}; allowed: regular files below {', '.join(directories())} (the variable "
        f"{VARIABLE} of this node lists these directories, separated by {os.pathsep!r}; if it is not set, the working "
        "directory is allowed)"
    )
