"""What readers on GitHub see of the notebooks is what a run gave: every cell run, in order, without errors."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, 4)


def texts(notebook):
    """The prose, without what stands in it as code."""
    prose = (cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return [re.sub(r"```.*?```", "", text, flags=re.DOTALL) for text in prose]


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_every_cell_was_run_in_order(notebook):
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_no_output_is_an_error_or_a_dead_widget(notebook):
    kinds = {output.output_type for output in outputs(notebook)}
    assert kinds <= {"stream", "execute_result", "display_data"}
    assert not any("widget-view" in kind for output in outputs(notebook) for kind in output.get("data", {}))
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}


def test_headings_go_down_one_level_at_a_time(notebook):
    levels = [len(mark) for text in texts(notebook) for mark in re.findall(r"^(#+) ", text, re.M)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_picture_says_what_it_shows(notebook):
    pictures = [
        picture
        for output in outputs(notebook)
        for picture in re.findall("<img [^>]*", output.get("data", {}).get("text/html", ""))
    ]
    assert all(re.search('alt="[^"]{10,}"', picture) for picture in pictures)
    assert not any("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_links_lead_somewhere(path, notebook):
    links = [link for text in texts(notebook) for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert all((path.parent / link).exists() for link in links if "://" not in link)


def test_no_output_names_a_place_that_is_gone(notebook):
    assert not re.search(r"dtq-chapter-\d\d-", nbformat.writes(notebook))


LONG_CELLS = {"03-worker-pool", "00-tour"}  # still to be split


def test_no_code_cell_is_longer_than_fifteen_lines(path, notebook):
    if path.stem in LONG_CELLS:
        return
    long = [cell.source for cell in notebook.cells if cell.cell_type == "code" and cell.source.count("\n") >= 15]
    assert long == []


def test_no_cell_silences_the_linter(path, notebook):
    assert not any("noqa" in cell.source for cell in notebook.cells) or path.stem in LONG_CELLS
