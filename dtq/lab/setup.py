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
from dtq.lab import hygiene, recorded, system_map
from dtq.lab.source import Page

STYLE = {
    "figure.figsize": (9, 3.6),
    "figure.dpi": 100,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}
LARGE = {  # for a projector: what is not here stays as it is
    "figure.figsize": (12, 5),
    "font.size": 17,
    "lines.linewidth": 3,
    "lines.markersize": 10,
}
LARGE_PAGE = (  # sizes of JupyterLab, of this page only, until it is loaded again
    "<style>:root{--jp-content-font-size1:20px;--jp-code-font-size:18px;--jp-ui-font-size1:16px;"
    "--jp-widgets-font-size:18px;--jp-cell-prompt-width:80px}.jp-RenderedHTMLCommon{font-size:20px}"
    ".jp-MarkdownOutput pre{font-size:16px}"
    ".jp-CodeCell .cm-content{white-space:break-spaces!important;overflow-wrap:anywhere;flex-shrink:1!important}"
    "</style>"
)


class Chapter(msgspec.Struct, frozen=True):
    """Where a chapter works. `path` is a directory of its own, `handlers` the repository's; `fast` asks for less,
    `instructor` is instructor mode."""

    number: int
    path: Path
    handlers: Path
    fast: bool
    instructor: bool = False

    def size(self, full: int, fast: int) -> int:
        """How much to do: less where DTQ_FAST is set, on small or busy machines."""
        return fast if self.fast else full

    def fresh(self) -> Path:
        """Return a new, empty directory, so that a cell that runs again does not meet what it left before."""
        return Path(tempfile.mkdtemp(dir=self.path))


def start(chapter: int) -> Chapter:
    """Begins a chapter, and shows where it is on the map. Everything that it starts has to have ended when
    `lab.assert_clean` is called. What `lab.serve` has started is ended there.

    Handlers that take paths may touch what lies below the chapter's own directory and the working directory, or those
    that DTQ_FILES names.

    Two switches are read from the environment, here, and so may be set before the notebook server starts, or in a cell
    above this one with %env: DTQ_FAST=1 asks for less work, and DTQ_INSTRUCTOR=1 is instructor mode, which makes type
    and figures larger, and records complete experiments in recorded/ to fall back on when one fails.
    """
    you_are_here = system_map.draw(chapter)
    random.seed(chapter)
    fast, instructor = _is_set("DTQ_FAST"), _is_set("DTQ_INSTRUCTOR")
    recorded.use(Path.cwd() / "recorded" if instructor else None, chapter)
    plt.style.use(STYLE | LARGE if instructor else STYLE)
    path = Path(tempfile.mkdtemp(prefix=f"dtq-chapter-{chapter:02}-"))
    hygiene.begin(path)
    os.environ["DTQ_FILES"] = os.pathsep.join([str(path), os.environ.get("DTQ_FILES") or os.getcwd()])
    print(
        f"dtq {dtq.__version__}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{os.cpu_count()} cores{', fast mode' if fast else ''}"
        f"{f', instructor mode, seed {chapter}' if instructor else ''}"
    )
    display(Page(you_are_here.html + LARGE_PAGE, you_are_here.text) if instructor else you_are_here)
    return Chapter(chapter, path, _find_handlers(), fast, instructor)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def _find_handlers() -> Path:
    """The directory with handlers such as process_image.py: beside the package, or above where we are."""
    for place in (Path(dtq.__file__).parent.parent, Path.cwd(), *Path.cwd().parents):
        if (place / "handlers" / "process_image.py").exists():
            return place / "handlers"
    raise FileNotFoundError(
        "handlers/process_image.py is not found: open the notebook in a checkout of the repository, "
        'installed there with pip install -e ".[lab]"'
    )
