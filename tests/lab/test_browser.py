"""Every notebook, run by a reader in a browser: JupyterLab, Run All, and a look at what came out.

A notebook joins by being there. DTQ_SHOTS=folder keeps a picture of each, from its first cell to its last.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import nbformat
import psutil
import pytest

pytest.importorskip("playwright.sync_api", reason='needs playwright: pip install -e ".[test]"')
from browser import CHROMIUM, JupyterLab, Notebook, chromium
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect

from dtq.lab.fault import BUTTONS

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium, chromium-browser or google-chrome on the PATH"
)
ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LIMIT = 60.0  # seconds for all cells of a notebook
MOVED = 3  # different widths that a bar has shown, at the least, if it moves
BARS = ("lab.progress(",)  # a notebook with one of these in it has bars, and they move


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A JupyterLab, the folder that it serves, and a browser; in the end, nothing of them is left."""
    before = set(psutil.Process().children(recursive=True))
    home = tmp_path_factory.mktemp("jupyter")
    root = home / "checkout"
    for name in ("notebooks", "handlers"):
        shutil.copytree(ROOT / name, root / name)
    with JupyterLab(root, home) as lab, chromium() as browser:
        yield lab, root, browser
        ours = set(psutil.Process().children(recursive=True)) - before
    _, left = psutil.wait_procs(ours, timeout=5)
    assert not left


@pytest.fixture
def open_notebook(places):
    """Opens a notebook with no outputs, so that all that is seen later comes from this run."""
    lab, root, browser = places
    opened = []

    def open_one(notebook, name):
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, root / "notebooks" / name)
        opened.append(Notebook(browser, lab.address(f"notebooks/{name}")))
        return opened[-1]

    yield open_one
    for notebook in opened:
        notebook.page.close()
    lab.end_kernels()


def mark_of(path):
    """The tour is run for each change, and all chapters every night."""
    return pytest.mark.long if path.stem == "00-tour" else pytest.mark.hourly


def most_widths(notebook):
    return max(map(len, notebook.widths()), default=0)


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem, marks=mark_of(path)) for path in NOTEBOOKS])
def test_a_reader_who_runs_all_cells_sees_them_succeed_and_the_bars_move(path, open_notebook):
    source = nbformat.read(path, 4)
    notebook = open_notebook(source, path.name)
    notebook.run_all(LIMIT)
    if shots := os.environ.get("DTQ_SHOTS"):
        notebook.save_picture(Path(shots) / f"{path.stem}.png")
    flaws = notebook.flaws()
    assert not flaws, "\n".join(flaws)
    if any(word in cell.source for cell in source.cells for word in BARS):
        assert most_widths(notebook) >= MOVED


# What of a chapter its fault lab needs, with the chapter's own store or pool in it; and how many workers that has.
FAULT_LABS = {  # the cells that its fault lab needs, and its workers
    "02-storage": (r"^here = lab|^import json|^from exercises import|^class MyStore|^CLAIMABLE|^faulty = ", 2),
    "03-worker-pool": (r"^import itertools|^def (framed|perform|nap)\(|^BOOT|^class (Worker|MyPool)|fault\.buttons", 3),
}
NAP = """\
import time
def nap(payload, context):
    time.sleep(0.02)
"""
END_OF_LOAD = """\
playing.wait()
load.stop()
fault.heal()
queue.join(timeout=60)
"""
TASKS = 900
WORK = f"""\
bars = lab.progress(queue, total={TASKS})
nap = {{"type": "nap", "payload": {{"seconds": 0.02}}, "retry_delay": 0.1}}
handles = queue.add_many([nap] * {TASKS})
"""
DEATHS = """\
died = [1 for handle in handles for end in handle.task.history if end.error.type == "WorkerDied"]
print(sum(died), "deaths")
"""


@pytest.mark.long
@pytest.mark.parametrize("chapter", FAULT_LABS)
def test_the_buttons_of_a_fault_lab_do_what_they_say_while_the_reader_looks(chapter, open_notebook):
    needed, workers = FAULT_LABS[chapter]
    code = [
        cell.source for cell in nbformat.read(ROOT / f"notebooks/{chapter}.ipynb", 4).cells if cell.cell_type == "code"
    ]
    cells = [source for source in code if re.search(needed, source, re.M)]
    if chapter == "02-storage":
        cells = [NAP, *cells, END_OF_LOAD]
    notebook = open_notebook(notebook_of("\n---\n".join([*cells, WORK, DEATHS])), f"faults-{chapter}.ipynb")
    notebook.run_all(LIMIT)
    bars = Bars(notebook)

    for _ in range(workers):
        press(notebook, "Freeze a worker")
    bars.stand_still()
    press(notebook, "Thaw")
    bars.go_on()

    press(notebook, "Kill a worker")
    if chapter == "02-storage":
        for label in ("Lose an answer", "Deliver twice", "Slow disk", "Fast disk", "Full disk"):
            press(notebook, label)
        bars.stand_still()
        press(notebook, "Free disk")
        bars.go_on()

    expect(bars.shown).to_contain_text(f"{TASKS} ended, 0 to go", timeout=LIMIT * 1000)
    notebook.run_cell("print(sum(died)")
    expect(notebook.output_of("print(sum(died)")).to_contain_text("1 deaths")
    if shots := os.environ.get("DTQ_SHOTS"):
        notebook.save_picture(Path(shots) / f"faults-{chapter}.png")
    assert notebook.flaws() == []


def press(notebook, label):
    """Press the button, and wait until the page confirms it."""
    shown = notebook.output_of("fault.buttons")
    (kind,) = (kind for text, kind, *_ in BUTTONS if text == label)
    shown.get_by_role("button", name=label, exact=True).click()
    expect(shown).to_contain_text(re.compile(rf"\d\.\d s: {kind}"), timeout=LIMIT * 1000)


class Bars:
    """What the progress bars of WORK say."""

    def __init__(self, notebook):
        self.shown, self._wait = notebook.output_of("bars = lab.progress"), notebook.page.wait_for_timeout

    def ended(self):
        return int(re.search(r"(\d+) ended", self.shown.inner_text())[1])

    def stand_still(self):
        """Waits until nothing ends any more, before all has ended."""
        before = -1
        while (now := self.ended()) != before:
            before = now
            self._wait(1500)
        assert now < TASKS

    def go_on(self):
        before = self.ended()
        give_up_at = time.monotonic() + LIMIT
        while self.ended() == before:
            assert time.monotonic() < give_up_at, f"{before} ended, and no more"
            self._wait(50)


FLAWED = """\
from IPython.display import HTML, Javascript
HTML('<img alt="from elsewhere" src="http://elsewhere.invalid/a.png">')
---
HTML('<img src="data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7">')
---
Javascript("console.error('what JavaScript says')")
---
1 / 0
---
"never reached"
"""
LIVE = """\
import ipywidgets as widgets
bar, said, button = widgets.IntProgress(max=10), widgets.Label("not yet"), widgets.Button(description="Go")
---
def go(_):
    for bar.value in range(11):
        said.value = f"{bar.value} of 10"
button.on_click(go)
---
widgets.VBox([bar, said, button])
"""


def notebook_of(text):
    return new_notebook(
        cells=[new_code_cell(source) for source in text.split("---\n")],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)"}},
    )


@pytest.mark.long
def test_what_is_wrong_with_a_notebook_is_found(open_notebook):
    notebook = open_notebook(notebook_of(FLAWED), "flawed.ipynb")
    notebook.run_all(LIMIT)
    flaws = notebook.flaws()
    for found in (
        "code cell 4 failed: ZeroDivisionError",
        "code cells not run: [5]",
        "picture not loaded: from elsewhere",
        "picture without words: data:image/gif",
        "asked another host: http://elsewhere.invalid/a.png",
        "console: what JavaScript says",
    ):
        assert any(flaw.startswith(found) for flaw in flaws), (found, flaws)


@pytest.mark.long
def test_a_bar_counts_as_moved_only_when_it_has_moved(open_notebook):
    notebook = open_notebook(notebook_of(LIVE), "live.ipynb")
    notebook.run_all(LIMIT)
    assert notebook.flaws() == []
    assert most_widths(notebook) < MOVED
    shown = notebook.output_of("widgets.VBox")
    shown.get_by_role("button", name="Go").click()
    expect(shown).to_contain_text("10 of 10")
    assert most_widths(notebook) >= MOVED
