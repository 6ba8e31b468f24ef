"""Journal: every change in the order of its commit, one line each. A change is committed once its line is complete.

    journal-7   3f2a9c01 4711 {"put":[...]}       checksum, line number, and the change as JSON
                91d00b7e 4712 {"moved":[...]}
                a8                                a torn line: its writer died, so it does not count
    journal-8   a checkpoint begins a new journal; the old one is removed once the task files are written

One process at a time appends, and holds a lock; every process may read at any time. Lines are numbered without gaps, so
that a reader notices when the journal no longer continues what it has read: it then has to read everything again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from zlib import crc32

from dtq.errors import StoreError
from dtq.stores.file.disk import Disk

NAME = "journal-"
LONG = 64 << 20  # bytes: whoever opens the store reads a journal as a whole


class Diverged(StoreError):
    """The files do not continue what was read before: everything must be read again."""


class Journal:
    """The journals of a directory. Reads and appends continue in the last one."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self.directory = directory
        self.number = 0  # of the journal that is read; 0 before `read_all`
        self._disk = disk
        self._file = -1
        self._offset = 0
        self._next_line = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was read from, or appended to, the last journal."""
        return self._offset == 0

    @property
    def is_long(self) -> bool:
        """Whether a checkpoint is due, however short the time since the last one."""
        return self._offset > LONG

    def path(self, number: int) -> str:
        return f"{self.directory}/{NAME}{number}"

    def numbers(self) -> list[int]:
        """Return the numbers of the journals on the disk, oldest first."""
        names = (name.removeprefix(NAME) for name in os.listdir(self.directory) if name.startswith(NAME))
        return sorted(int(name) for name in names if name.isdecimal())

    # --- read

    def has_news(self) -> bool:
        """Return whether there is something to read that was not read yet."""
        return os.fstat(self._file).st_size != self._offset or os.path.exists(self.path(self.number + 1))

    def read_new(self, *, is_writer: bool) -> Iterator[tuple[int, bytes]]:
        """Yield what was appended since the last read, each line with the number of its journal.

        `is_writer`: the caller holds the lock, so a torn line is cut off. Raises Diverged.
        """
        while True:
            has_successor = os.path.exists(self.path(self.number + 1))  # if so, nothing more is appended to this one
            yield from ((self.number, body) for body in self._read_on(cut=is_writer))
            if not has_successor:
                break
            self._open(self.number + 1)
        if not os.fstat(self._file).st_nlink:
            raise Diverged(f"{self.path(self.number)} is gone, and the one after it too")

    def _read_on(self, *, cut: bool) -> Iterator[bytes]:
        size = os.fstat(self._file).st_size
        if size == self._offset:
            return
        *lines, torn = self._read(self._offset, size).split(b"\n")
        for line in lines:
            number, body = parse(line) or (None, b"")
            if number != self._next_line:
                raise Diverged(f"{self.path(self.number)} does not go on with line {self._next_line}")
            self._next_line += 1
            self._offset += len(line) + 1
            yield body
        if size < self._offset:
            raise Diverged(f"{self.path(self.number)} was cut off behind line {self._next_line}")
        if torn and cut:
            self._disk.cut(self._file, self._offset)

    def read_all(self) -> tuple[list[tuple[int, bytes]], list[bytes]]:
        """Read all journals from the start. Return their lines, each with the number of its journal, and the damaged
        lines. Needs the lock."""
        if not self.numbers():
            os.close(self._disk.create(self.path(1)))
        whole, damaged = [], []
        for number in self.numbers():
            self._open(number)
            for line in self._lines():
                if parsed := parse(line):
                    whole.append((number, parsed[1]))
                    self._next_line = parsed[0] + 1
                else:
                    damaged.append(line)
        return whole, damaged

    def _lines(self) -> list[bytes]:
        """Return all complete lines. Cut off a torn one at the end."""
        size = os.fstat(self._file).st_size
        *lines, torn = self._read(0, size).split(b"\n")
        self._offset = size - len(torn)
        if torn:
            self._disk.cut(self._file, self._offset)
        return lines

    def _read(self, start: int, end: int) -> bytes:
        """Return the bytes between these offsets, or fewer if the file ends before. One `pread` reads 2 GiB at most."""
        data = bytearray()
        while part := os.pread(self._file, max(0, end - start - len(data)), start + len(data)):
            data += part
        return bytes(data)

    def _open(self, number: int) -> None:
        file = os.open(self.path(number), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self.close()
        self._file, self.number, self._offset = file, number, 0

    # --- write: needs the lock, and that everything new was read

    def append(self, bodies: Sequence[bytes], *, flush: bool) -> None:
        """Append one line for each body. Raise OSError where that fails; nothing is appended then."""
        lines = b"".join(map(format_line, count(self._next_line), bodies))
        offset, next_line = self._offset + len(lines), self._next_line + len(bodies)
        try:
            self._disk.append(self._file, lines)
            if flush:
                self._disk.flush(self._file)
        except BaseException:
            with suppress(OSError):  # the next writer cuts off a torn line
                self._undo_append()
            raise
        self._offset, self._next_line = offset, next_line

    def _undo_append(self) -> None:
        """Cut off what was written. Begin a new journal where other processes may have read complete lines of it, or
        they would take what follows for what they have read."""
        may_be_read = b"\n" in os.pread(self._file, os.fstat(self._file).st_size, self._offset)
        self._disk.cut(self._file, self._offset)
        if may_be_read:
            os.close(self._disk.create(self.path(self.number + 1)))

    def rotate(self) -> None:
        """Begin a new journal. The old one is complete and on the disk."""
        self._disk.flush(self._file)
        os.close(self._disk.create(self.path(self.number + 1)))
        self._open(self.number + 1)

    def remove(self, numbers: Iterable[int]) -> None:
        """Remove these journals, oldest first: those that are left must be the last ones, also after a crash."""
        for number in sorted(numbers):
            self._disk.remove(self.path(number))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def format_line(number: int, body: bytes) -> bytes:
    """Return the line of a change, with its newline."""
    content = b"%d %s" % (number, body)
    return b"%08x %s\n" % (crc32(content), content)


def parse(line: bytes) -> tuple[int, bytes] | None:
    """Return number and body of a line without its newline, or None where it is damaged."""
    checksum, _, content = line.partition(b" ")
    number, _, body = content.partition(b" ")
    if checksum != b"%08x" % crc32(content) or not number.isdigit():
        return None
    return int(number), body
