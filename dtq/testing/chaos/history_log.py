"""The history of a chaos run: a log in which handlers, clients and nodes record what happened, outside of any store.

Each record is one write to the end of one file, so the file has the records of all processes in one order. Handlers and
clients flush theirs to the disk before they go on. A process that is killed may lose what it has not written yet; no
invariant depends on such a record.
"""

from __future__ import annotations

import os
from pathlib import Path

from dtq.testing.chaos.invariants import Line


class HistoryLog:
    """Appends lines to the file at this path."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def write(self, *lines: Line, flush: bool = True) -> None:
        """Append these lines in one write; with `flush`, wait until they are on the disk."""
        if lines:
            os.write(self._file, "".join(f"{what}\t{task}\t{n}\t{who}\n" for what, task, n, who in lines).encode())
            if flush:
                os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> list[Line]:
    """Return all complete lines, in the order in which they were written."""
    rows = (line.split("\t") for line in path.read_text().splitlines())
    return [Line(row[0], row[1], int(row[2]), row[3]) for row in rows if len(row) == 4]  # type: ignore[arg-type]
