"""The first cell of every chapter: a seed, a place for files, one line that says where this runs, and the map."""

from __future__ import annotations

import os
import platform
import random
import sqlite3
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import msgspec
from IPython.display import display

import dtq
from dtq.lab import hygiene, system_map

STYLE = {
    "figure.figsize": (9, 3.6),
    "figure.dpi": 100,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


class Chapter(msgspec.Struct, frozen=True):
    """Where a chapter works. `path` is a directory of its own, `handlers` the repository's; `fast` asks for less."""

    number: int
    path: Path
    handlers: Path
    fast: bool

    def size(self, full: int, fast: int) -> int:
        """How much to do: less where DTQ_FAST is set, on small or busy machines."""
        return fast if self.fast else full


def start(chapter: int) -> Chapter:
    """Begins a chapter, and shows where it is on the map. Everything that it starts has to have ended when
    `lab.assert_clean` is called."""
    you_are_here = system_map.draw(chapter)
    random.seed(chapter)
    plt.style.use(STYLE)
    path = Path(tempfile.mkdtemp(prefix=f"dtq-chapter-{chapter:02}-"))
    hygiene.begin(path)
    fast = os.environ.get("DTQ_FAST", "") not in ("", "0")
    print(
        f"dtq {dtq.__version__}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{os.cpu_count()} cores{', fast mode' if fast else ''}"
    )
    display(you_are_here)
    return Chapter(chapter, path, _find_handlers(), fast)


def _find_handlers() -> Path:
    """The directory with handlers such as process_image.py: beside the package, or above where we are."""
    for place in (Path(dtq.__file__).parent.parent, Path.cwd(), *Path.cwd().parents):
        if (place / "handlers" / "process_image.py").exists():
            return place / "handlers"
    raise FileNotFoundError(
        "handlers/process_image.py is not found: open the notebook in a checkout of the repository, "
        'installed there with pip install -e ".[lab]"'
    )
