"""Disk: every write of the file store to a file. Tests and lessons replace it with one that is slow, full or fails."""

from __future__ import annotations

import os
from contextlib import suppress

_flush = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class Disk:
    """Writes to files. What is appended or placed survives `kill -9`; once `flush` or `flush_all` has returned, it also
    survives a power cut."""

    def create(self, path: str) -> int:
        """Create an empty file. Return a descriptor that reads and appends."""
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._flush_directory(os.path.dirname(path))
        return descriptor

    def append(self, descriptor: int, data: bytes) -> None:
        """Append `data`. Raise OSError where not all of it could be written; a part may have been."""
        written = os.write(descriptor, data)
        while written < len(data):  # the disk is full, or a signal came in between
            written += os.write(descriptor, data[written:])

    def flush(self, descriptor: int) -> None:
        """Wait until all that was appended to this file is on the disk."""
        _flush(descriptor)

    def cut(self, descriptor: int, size: int) -> None:
        """Shorten the file to `size` bytes."""
        os.ftruncate(descriptor, size)

    def place(self, path: str, data: bytes) -> None:
        """Replace the content of the file in one step: readers see all of it, or what was there before."""
        folder, name = os.path.split(path)
        beside = f"{folder}/.{name}"
        with open(beside, "wb", buffering=0) as file:
            self.append(file.fileno(), data)
        os.replace(beside, path)

    def remove(self, path: str) -> None:
        """Remove the file, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(path)

    def flush_all(self) -> None:
        """Wait until everything placed so far is on the disk: one call for thousands of files."""
        os.sync()

    def _flush_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
