"""Witness: the log in which handlers, clients and nodes write down what has happened, outside of any store.

Each line is one write to the end of one file, so the lines of all processes stand in one order; those of handlers and
clients are flushed to the disk before they go on. What a process had not yet written when it was killed, nobody claims
to have seen.
"""

from __future__ import annotations

import os
from pathlib import Path

from dtq.testing.chaos.invariants import Line


class Witness:
    """Appends to the log at this path."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def write(self, *lines: Line, flush: bool = True) -> None:
        if lines:
            os.write(self._file, "".join(f"{what}\t{task}\t{n}\t{who}\n" for what, task, n, who in lines).encode())
            if flush:
                os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> list[Line]:
    """All whole lines, in the order in which they were written."""
    rows = (line.split("\t") for line in path.read_text().splitlines())
    return [Line(row[0], row[1], int(row[2]), row[3]) for row in rows if len(row) == 4]  # type: ignore[arg-type]
