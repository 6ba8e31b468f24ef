"""RotatingFile: JSON lines in `name`, rotated to `name.1`, `name.2`, ... by size and age.

A line is written whole or not at all: a part that a full disk took is cut off again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec


class RotatingFile:
    """Appends JSON lines, each with the field `at` (UTC seconds). Not thread-safe. After an OSError the next call opens
    the file again.

    Args:
        path: the file.
        max_bytes: it is rotated before it would grow beyond this size.
        keep: how many rotated files are kept.
        clock: returns the time, UTC seconds.
        max_age: seconds from the first line after which it is rotated.
    """

    def __init__(
        self, path: Path, max_bytes: int, keep: int, clock: Callable[[], float], max_age: float = float("inf")
    ) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._clock = clock
        self._max_age = max_age
        self._file: int | None = None
        self._size = 0
        self._first_at = 0.0

    def write(self, text: bytes) -> None:
        """Append one or more whole lines. Raises OSError; then none of them was written."""
        file = self._open()
        if self._size and (self._size + len(text) > self._max_bytes or self._clock() - self._first_at > self._max_age):
            self.close()
            self._rotate()
            file = self._open()
        try:
            written = os.write(file, text)
            if written < len(text):
                raise OSError(f"only {written} of {len(text)} bytes could be written")
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, self._size)
            self.close()
            raise
        self._size += len(text)

    def _open(self) -> int:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
            self._size = os.fstat(self._file).st_size
            self._end_last_line(self._file)
            self._first_at = _first_time(self.path) or self._clock()
        return self._file

    def _end_last_line(self, file: int) -> None:
        """End a line that a killed process or a power cut has left unfinished."""
        if self._size:
            os.lseek(file, -1, os.SEEK_END)
            if os.read(file, 1) != b"\n":
                self._size += os.write(file, b"\n")

    def _rotate(self) -> None:
        for number in range(self._keep, 0, -1):
            with suppress(FileNotFoundError):
                os.replace(self._numbered(number - 1), self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path

    def read(self) -> Iterator[bytes]:
        """Yield all lines, oldest first."""
        for number in range(self._keep, -1, -1):
            with suppress(FileNotFoundError), self._numbered(number).open("rb") as file:
                yield from file

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def _first_time(path: Path) -> float | None:
    try:
        with path.open("rb") as file:
            return float(msgspec.json.decode(file.readline())["at"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
