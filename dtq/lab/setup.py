"""The first cell of every chapter: a seed, a directory, one line about versions and machine, and the map."""

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
LARGE = {  # for a projector; added to STYLE
    "figure.figsize": (12, 5),
    "font.size": 17,
    "lines.linewidth": 3,
    "lines.markersize": 10,
}
LARGE_PAGE = (  # sizes in JupyterLab, for this page only, until it is loaded again
    "<style>:root{--jp-content-font-size1:20px;--jp-code-font-size:18px;--jp-ui-font-size1:16px;"
    "--jp-widgets-font-size:18px;--jp-cell-prompt-width:80px}.jp-RenderedHTMLCommon{font-size:20px}"
    ".jp-MarkdownOutput pre{font-size:16px}"
    ".jp-CodeCell .cm-content{white-space:break-spaces!important;overflow-wrap:anywhere;flex-shrink:1!important}"
    "</style>"
)


class Chapter(msgspec.Struct, frozen=True):
    """Where a chapter works: `path` is its own directory, `handlers` the directory of the repository's handlers; `fast`
    asks for less work, `instructor` is instructor mode."""

    number: int
    path: Path
    handlers: Path
    fast: bool
    instructor: bool = False

    def size(self, full: int, fast: int) -> int:
        """Return how much to do: less if DTQ_FAST is set, for small or busy machines."""
        return fast if self.fast else full

    def fresh(self) -> Path:
        """Return a new, empty directory, so that a cell that runs again does not meet what it left before."""
        return Path(tempfile.mkdtemp(dir=self.path))


def start(chapter: int) -> Chapter:
    """Begin a chapter, and show its place on the map.

    Everything that the chapter starts must have ended when `lab.assert_clean` is called, which itself ends what
    `lab.serve` has started. Handlers that take paths may use files below the chapter's own directory and the working
    directory, or below those in DTQ_FILES.

    Two environment variables are read here. Set them before the notebook server starts, or with %env in a cell above
    this one. DTQ_FAST=1 asks for less work. DTQ_INSTRUCTOR=1 is instructor mode: text and figures are larger, and
    complete experiments are recorded in recorded/ as a replacement if one fails later.

    Args:
        chapter: The number of the chapter.

    Returns:
        Where the chapter works.

    Raises:
        ValueError: There is no such chapter.
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
    """Return the directory with handlers such as process_image.py: beside the package, or above the working
    directory."""
    for place in (Path(dtq.__file__).parent.parent, Path.cwd(), *Path.cwd().parents):
        if (place / "handlers" / "process_image.py").exists():
            return place / "handlers"
    raise FileNotFoundError(
        "handlers/process_image.py is not found: open the notebook in a checkout of the repository, "
        'installed there with pip install -e ".[lab]"'
    )
