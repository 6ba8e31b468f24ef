"""Disk: all that the file store does to files goes through here, so that a test, or a lesson, can put a slow, a full or
a dying one in its place."""

from __future__ import annotations

import os
from contextlib import suppress

_flush = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class Disk:
    """What is appended or placed survives `kill -9`; a power cut it survives once `flush` or `flush_all` has
    returned."""

    def create(self, path: str) -> int:
        """A new, empty file, to be read and appended to."""
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._flush_directory(os.path.dirname(path))
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

    def place(self, path: str, data: bytes) -> None:
        """The file has this content from now on: at any moment either all of it, or what was there before."""
        folder, name = os.path.split(path)
        beside = f"{folder}/.{name}"
        with open(beside, "wb", buffering=0) as file:
            self.append(file.fileno(), data)
        os.replace(beside, path)

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)

    def flush_all(self) -> None:
        """Whatever was placed, anywhere: one call for thousands of files."""
        os.sync()

    def _flush_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
