"""Every cell may run twice: each chapter passes with every cell doubled."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
LATER = {"00-tour"}  # still to be mended
CHAPTERS = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if path.stem not in LATER]


@pytest.mark.long
@pytest.mark.usefixtures("notebook_loop")
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_cell_of_a_chapter_may_run_twice(path, monkeypatch):
    monkeypatch.setenv("DTQ_FAST", "1")
    sources = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    twice = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources for _ in range(2)])
    NotebookClient(
        twice, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}
    ).execute()
