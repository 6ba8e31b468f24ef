"""Recordings: what an instructor shows if a live run fails in front of the class. They are marked as recordings.

DTQ_INSTRUCTOR=1
    a run that is complete, and has no recording yet --keep--> recorded/03-its-name.json, beside the notebook
    a run that failed, or takes too long             <--recall-- the same; figures bear its date and its machine

So a rehearsal makes the recordings; to make one again, delete its file. Without instructor mode nothing is recorded,
and nothing replaces a run that failed: tests must see it fail.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

_folder: Path | None = None  # None: not in instructor mode
_chapter = 0


class Recording(msgspec.Struct, frozen=True):
    """A table as it was measured: when (a date), on which machine, and its rows."""

    at: str
    machine: str
    columns: list[str]
    rows: list[list[Any]]

    def frame(self) -> pd.DataFrame:
        """Return the table. Its attributes, and those of selections from it, tell the stamp of a figure that it is a
        recording."""
        frame = pd.DataFrame(self.rows, columns=self.columns)
        frame.attrs["recorded"] = f"recorded {self.at}, {self.machine}"
        return frame


def use(folder: Path | None, chapter: int) -> None:
    """Set the folder for the recordings of this chapter; None: make and use none."""
    global _folder, _chapter
    _folder, _chapter = folder, chapter


def chapter() -> int:
    """Return the number of the chapter that `lab.start` began last."""
    return _chapter


def keep(name: str, frame: pd.DataFrame, machine: str) -> None:
    """Write the table to a file, unless there is a recording of this name."""
    path = _path(name)
    if path is None or path.exists():
        return
    rows = [[_plain(value) for value in row] for row in frame.itertuples(index=False)]
    recording = Recording(time.strftime("%Y-%m-%d"), machine, [*map(str, frame.columns)], rows)
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(msgspec.json.encode(recording))
    os.replace(unfinished, path)


def recall(name: str) -> Recording | None:
    """Return the recording of this name; None if there is none, or without instructor mode."""
    path = _path(name)
    return msgspec.json.decode(path.read_bytes(), type=Recording) if path is not None and path.exists() else None


def _path(name: str) -> Path | None:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return _folder and _folder / f"{_chapter:02}-{slug}.json"


def _plain(value: Any) -> Any:
    """Return a value that JSON can represent: numpy's numbers as Python's, and anything else as text."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, str | int | float | bool | None) else str(value)
