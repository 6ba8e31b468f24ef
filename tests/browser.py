"""A notebook as its reader sees it: a real JupyterLab, and a real browser that looks at it.

pytest --clicks, looks--> Chromium, headless <--http, websocket--> JupyterLab --starts--> kernels
                          everything but 127.0.0.1               a temporary copy of the
                          is unknown to it                       checkout, no settings of yours
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Locator, sync_playwright
from playwright.sync_api import TimeoutError as PageTimeout

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HERE = "127.0.0.1"
WITHIN = 30.0  # seconds for what JupyterLab does by itself: it starts, shows a notebook, ends
WIDTH, HEIGHT = 1100, 900  # pixels of the window, as on a small laptop
HIGHEST = 60_000  # pixels of a picture
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # it asks, and asks the net
    "notebook-extension/tracker": {
        "windowingMode": "none",  # every cell is in the page, not only what is in sight
        "scrollPastEnd": False,  # and a picture of the page ends where the notebook does
    },
}
OPTIONS = (
    "--LabApp.extension_manager=readonly",  # no list of what could be installed, so no request for it
    "--LabApp.expose_app_in_browser=True",  # the page can be asked for the notebook as it would be saved
)
# Each bar's widths since the page was opened. An observer misses none, however short they last.
WATCH_BARS = """
    window.widths = new Map();
    new MutationObserver(changes => changes.map(change => change.target).forEach(bar => {
        if (!bar.matches(".progress-bar")) return;
        if (!widths.has(bar)) widths.set(bar, new Set());
        widths.get(bar).add(bar.style.width);
    })).observe(document, {subtree: true, attributes: true, attributeFilter: ["style"]});
"""
# Run All marks every cell with a star at once. Each star becomes a number, or is taken off where a cell before failed.
IS_OVER = """() => {
    const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map(prompt => prompt.textContent);
    return prompts.some(text => /\\d/.test(text)) && !prompts.some(text => text.includes("*"))
        && document.querySelector("#jp-main-statusbar").textContent.includes("| Idle")
        && [...document.images].every(image => image.complete);
}"""
CELLS = "jupyterapp.shell.currentWidget.content.model.toJSON().cells.filter(cell => cell.cell_type == 'code')"
HIDDEN = """async () => {
    const panel = document.querySelector(".jp-WindowedPanel-outer");
    panel.scrollTop = 0;
    for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);  // until it is drawn
    return panel.scrollHeight - panel.clientHeight;
}"""
PICTURES = "pictures => pictures.map(picture => [picture.naturalWidth, picture.alt.trim(), picture.src.slice(0, 80)])"


class JupyterLab:
    """A server of the notebooks below `root`, on a port that was free. What it writes for itself goes to `home`."""

    def __init__(self, root: Path, home: Path) -> None:
        _write_settings(home / "config" / "lab" / "user-settings" / "@jupyterlab")
        self._home = home
        self._log = home / "log"
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ip={HERE}", "--port=0"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, f"--ServerApp.root_dir={root}", *OPTIONS],
                env=_environment(home), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def __enter__(self) -> JupyterLab:
        try:
            self._wait_until_it_listens()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(WITHIN)
        finally:
            self._process.kill()

    def address(self, notebook: str) -> str:
        """Where a browser finds it, without being asked for a password, and without what was open before."""
        return f"{self.url}lab/tree/{quote(notebook)}?token={self._token}&reset"

    def end_kernels(self) -> None:
        for kernel in json.loads(self._ask("GET", "api/kernels")):
            self._ask("DELETE", f"api/kernels/{kernel['id']}")

    def get(self, path: str) -> bytes:
        """Return a page of this server, as a logged-in user sees it."""
        return self._ask("GET", path)

    def _ask(self, method: str, path: str) -> bytes:
        headers = {"Authorization": f"token {self._token}"}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=WITHIN) as answer:
            return answer.read()

    def _wait_until_it_listens(self) -> None:
        """It writes down where, and listens a moment later."""
        path = self._home / "runtime" / f"jpserver-{self._process.pid}.json"
        give_up_at = time.monotonic() + WITHIN
        while time.monotonic() < give_up_at and self._process.poll() is None:
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, urllib.error.URLError):
                info = json.loads(path.read_text())
                self.url, self._token = info["url"], info["token"]
                self.get("api")
                return
            time.sleep(0.02)
        raise AssertionError(f"JupyterLab does not listen:\n{self._log.read_text()[-4000:]}")


def _write_settings(folder: Path) -> None:
    for name, settings in SETTINGS.items():
        path = folder / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(settings))


def _environment(home: Path) -> dict[str, str]:
    """A reader's, not ours: under pytest a kernel lets the output of its children pass."""
    ours = ("JUPYTER", "IPYTHON", "PYTEST")
    jupyter = {f"JUPYTER_{name.upper()}_DIR": str(home / name) for name in ("config", "data", "runtime")}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**inherited, **jupyter, "IPYTHONDIR": str(home / "ipython"), "DTQ_FAST": "1"}


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    only_here = f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {HERE}"
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu", only_here]) as browser,
    ):
        yield browser


def _without_colors(traceback: list[str]) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(traceback)).lstrip("-\n")


class Notebook:
    """A notebook, open in the browser."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        self._noise: list[str] = []
        self.page.add_init_script(WATCH_BARS)
        self.page.on("request", lambda request: self._heard_of(request.url))
        self.page.on("websocket", lambda socket: self._heard_of(socket.url))
        self.page.on("pageerror", lambda error: self._noise.append(f"uncaught in the page: {error}"))
        self.page.on("console", self._note)
        self.page.goto(address)
        self.page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(timeout=WITHIN * 1000)

    def run_all(self, within: float) -> None:
        """Returns when all cells have run or one has failed, the kernel is idle, and the pictures are there."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
        try:
            self.page.wait_for_function(IS_OVER, timeout=within * 1000)
        except PageTimeout:
            prompts = self.page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
            raise AssertionError(f"not all cells have run after {within:g} s: {prompts}") from None

    def run_cell(self, code: str) -> None:
        """Runs the cell with this in its code, once more; what it says then, `expect` waits for."""
        self.page.locator(".jp-CodeCell .cm-content", has_text=code).click()
        self.page.keyboard.press("Control+Enter")

    def flaws(self) -> list[str]:
        """Return what must not be in a page: failed cells, broken pictures, console errors, requests to other hosts."""
        return [*self._cell_flaws(), *self._picture_flaws(), *dict.fromkeys(self._noise)]

    def widths(self) -> list[list[str]]:
        """Of each progress bar that moved, the widths that it had."""
        return self.page.evaluate("[...widths.values()].map(seen => [...seen])")

    def output_of(self, code: str) -> Locator:
        """What the cell with this in its code shows. A button there is pressed with `.get_by_role("button",
        name="Kill a worker").click()`, and `expect(...).to_contain_text("killed")` waits for what it says."""
        cell = self.page.locator(".jp-CodeCell", has=self.page.locator(".cm-content", has_text=code))
        return cell.locator(".jp-OutputArea")

    def save_picture(self, path: Path) -> None:
        """All of the notebook, from its first cell to its last: the window grows until nothing is out of sight."""
        height = HEIGHT
        while (hidden := self.page.evaluate(HIDDEN)) and height < HIGHEST:
            height += hidden
            self.page.set_viewport_size({"width": WIDTH, "height": height})
        self.page.screenshot(path=path)

    def _heard_of(self, url: str) -> None:
        host = urlsplit(url).hostname
        if host not in (HERE, None):  # None: data and blobs, which are in the page
            self._noise.append(f"asked another host: {url}")

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._noise.append(f"console: {message.text} ({message.location['url']})")

    def _cell_flaws(self) -> Iterator[str]:
        cells = list(enumerate(self.page.evaluate(CELLS), 1))
        if left := [number for number, cell in cells if cell["execution_count"] is None]:
            yield f"code cells not run: {left}"
        for number, cell in cells:
            for output in cell["outputs"]:
                if output["output_type"] == "error":
                    yield f"code cell {number} failed: {_without_colors(output['traceback'])}"

    def _picture_flaws(self) -> Iterator[str]:
        for width, alt, source in self.page.locator(".jp-Notebook img").evaluate_all(PICTURES):
            if width == 0:
                yield f"picture not loaded: {alt or source}"
            if alt in ("", "Image"):  # JupyterLab says "Image" where a notebook says nothing
                yield f"picture without words: {source}"
