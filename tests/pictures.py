"""Take the pictures of the README again, from a running JupyterLab and a running queue:

    python tests/pictures.py notebook page

docs/notebook.png   the tour after Run All, scrolled to its live bars
docs/page.png       the live page of a queue at work
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from browser import JupyterLab, Notebook, chromium

from dtq import APIServer, TaskQueue

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TOUR = "notebooks/00-tour.ipynb"
SHOWN = "lab.progress("  # the cell at the top of the picture


def notebook() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, home = Path(folder) / "checkout", Path(folder) / "home"
        for name in ("notebooks", "handlers"):
            shutil.copytree(ROOT / name, root / name)
        home.mkdir()
        with JupyterLab(root, home) as lab, chromium() as browser:
            tour = Notebook(browser, lab.address(TOUR))
            tour.page.set_viewport_size({"width": 1200, "height": 800})
            tour.run_all(300)
            assert tour.flaws() == []
            cell = tour.page.locator(".jp-CodeCell", has=tour.page.locator(".cm-content", has_text=SHOWN)).first
            cell.evaluate("cell => cell.scrollIntoView({block: 'start'})")
            tour.page.wait_for_timeout(1000)
            tour.page.screenshot(path=DOCS / "notebook.png")
            lab.end_kernels()


def work(payload, context):
    time.sleep(payload)
    if payload < 0.013:
        raise ValueError("the file is empty")


def page() -> None:
    chance = random.Random(3)
    with tempfile.TemporaryDirectory() as folder:
        types = dict.fromkeys(("image", "email", "analyze"), work)
        with (
            TaskQueue(f"{folder}/queue.db", types, pool_size=4) as queue,
            APIServer(queue, port=0) as api,
            chromium() as browser,
        ):
            shown = browser.new_page(viewport={"width": 1200, "height": 800}, color_scheme="light")
            shown.goto(api.url)
            shown.locator("#state", has_text="live").wait_for()
            for second in range(240):  # the charts show five minutes
                load = 16 if second % 80 < 40 else 28
                queue.add_many(
                    {"type": chance.choice(list(types)), "payload": chance.uniform(0.01, 0.3), "max_attempts": 1}
                    for _ in range(load)
                )
                shown.wait_for_timeout(1000)
            shown.screenshot(path=DOCS / "page.png")


if __name__ == "__main__":
    for name in sys.argv[1:] or ("notebook", "page"):
        {"notebook": notebook, "page": page}[name]()
