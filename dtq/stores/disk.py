"""Disk: all that the file store does to files goes through here, so that a test, or a lesson, can put a slow, a full or
a dying one in its place."""

from __future__ import annotations

import os
from pathlib import Path

_flush = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class Disk:
    """What is appended or placed survives `kill -9`; a power cut it survives once `flush` or `flush_all` has
    returned."""

    def create(self, path: Path) -> int:
        """A new, empty file, to be read and appended to."""
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._flush_directory(path.parent)
        return descriptor

    def append(self, descriptor: int, data: bytes) -> None:
        """Raises OSError where not all of it could be written; some of it may have been."""
        written = os.write(descriptor, data)
        while written < len(data):  # a disk that is full, or a signal that came between
            written += os.write(descriptor, data[written:])

    def flush(self, descriptor: int) -> None:
        _flush(descriptor)

    def cut(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def place(self, path: Path, data: bytes) -> None:
        """The file has this content from now on: at any moment either all of it, or what was there before."""
        beside = path.with_name(f".{path.name}")
        beside.write_bytes(data)
        os.replace(beside, path)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def flush_all(self) -> None:
        """Whatever was placed, anywhere: one call for thousands of files."""
        os.sync()

    def _flush_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
