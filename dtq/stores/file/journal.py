"""Journal: the order in which everything happened, as lines at the end of a file. A line that is there has happened.

    journal-7   3f2a9c01 4711 {"put":[...]}       checksum, number, and what changed, as JSON
                91d00b7e 4712 {"moved":[...]}
                a8                                a torn line: its writer died, and it has not happened
    journal-8   when the tasks are in files of their own, a new journal begins, and the old one goes

One process at a time appends, behind a lock; everybody may read at any time. Lines are numbered without a gap, so that
a reader sees when what it has read is not what has stood: then it has to begin anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from zlib import crc32

from dtq.stores.file.disk import Disk

NAME = "journal-"


class Diverged(Exception):
    """What was read before is not what stands in the journal now: all has to be read anew."""


class Journal:
    """The journals of a directory, of which it reads on and appends to the last one."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self.directory = directory
        self.number = 0  # of the file that is read; 0 before `begin`
        self._disk = disk
        self._file = -1
        self._offset = 0
        self._next_line = 0

    @property
    def is_empty(self) -> bool:
        return self._offset == 0

    def path(self, number: int) -> str:
        return f"{self.directory}/{NAME}{number}"

    def numbers(self) -> list[int]:
        """Of the files that are there, oldest first."""
        names = (name.removeprefix(NAME) for name in os.listdir(self.directory) if name.startswith(NAME))
        return sorted(int(name) for name in names if name.isdecimal())

    # --- read

    def has_news(self) -> bool:
        return os.fstat(self._file).st_size != self._offset or os.path.exists(self.path(self.number + 1))

    def news(self, *, alone: bool) -> Iterator[tuple[int, bytes]]:
        """What was appended since the last look: in which journal, and what. `alone` is who holds the lock: it cuts off
        a torn line. Raises Diverged."""
        while True:
            has_successor = os.path.exists(self.path(self.number + 1))  # if so, nothing more is appended to this one
            yield from ((self.number, body) for body in self._read_on(cut=alone))
            if not has_successor:
                break
            self._open(self.number + 1)
        if not os.fstat(self._file).st_nlink:
            raise Diverged(f"{self.path(self.number)} is gone, and the one after it too")

    def _read_on(self, *, cut: bool) -> Iterator[bytes]:
        size = os.fstat(self._file).st_size
        if size == self._offset:
            return
        *lines, torn = os.pread(self._file, max(0, size - self._offset), self._offset).split(b"\n")
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

    def begin(self) -> tuple[list[tuple[int, bytes]], list[bytes]]:
        """Reads all journals from the start: what they hold, and the lines that are damaged. For who holds the lock."""
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
        """All complete lines; what is behind the last one is cut off."""
        size = os.fstat(self._file).st_size
        *lines, torn = os.pread(self._file, size, 0).split(b"\n")
        self._offset = size - len(torn)
        if torn:
            self._disk.cut(self._file, self._offset)
        return lines

    def _open(self, number: int) -> None:
        file = os.open(self.path(number), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self.close()
        self._file, self.number, self._offset = file, number, 0

    # --- write: for who holds the lock, and has read all that is new

    def append(self, bodies: Sequence[bytes], *, flush: bool) -> None:
        """Raises OSError where they cannot be written; then it is as if it had not been tried."""
        lines = b"".join(map(format_line, count(self._next_line), bodies))
        offset, next_line = self._offset + len(lines), self._next_line + len(bodies)
        try:
            self._disk.append(self._file, lines)
            if flush:
                self._disk.flush(self._file)
        except BaseException:
            with suppress(OSError):  # what is torn is cut off by the next one who writes
                self._take_back()
            raise
        self._offset, self._next_line = offset, next_line

    def _take_back(self) -> None:
        """Cuts off what was written. Whole lines of it may have been read: then what follows stands in a new journal,
        lest a reader take it for what he knows."""
        was_seen = b"\n" in os.pread(self._file, os.fstat(self._file).st_size, self._offset)
        self._disk.cut(self._file, self._offset)
        if was_seen:
            os.close(self._disk.create(self.path(self.number + 1)))

    def rotate(self) -> None:
        """Begins a new journal; the old one is complete, and on the disk."""
        self._disk.flush(self._file)
        os.close(self._disk.create(self.path(self.number + 1)))
        self._open(self.number + 1)

    def remove(self, numbers: Iterable[int]) -> None:
        """Oldest first: what is left must always be the end of the story."""
        for number in sorted(numbers):
            self._disk.remove(self.path(number))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def format_line(number: int, body: bytes) -> bytes:
    content = b"%d %s" % (number, body)
    return b"%08x %s\n" % (crc32(content), content)


def parse(line: bytes) -> tuple[int, bytes] | None:
    """Number and body of a line without its newline; None where it is damaged."""
    checksum, _, content = line.partition(b" ")
    number, _, body = content.partition(b" ")
    if checksum != b"%08x" % crc32(content) or not number.isdigit():
        return None
    return int(number), body
