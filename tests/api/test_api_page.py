"""The live page in Chromium, under load: its numbers are those of /stats, and it sends no requests to other hosts."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("playwright")
from browser import CHROMIUM, chromium

from dtq import APIServer, TaskQueue

TOKEN = "a-token-for-the-page"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
COUNTS = "[...document.querySelectorAll('#counts div')].map(e => `${e.dataset.status},${e.lastChild.textContent}`)"


def work(payload, context):
    if payload % 7 == 0:
        raise ValueError("<b>seven</b>")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    store = tmp_path_factory.mktemp("page") / "queue.db"
    with TaskQueue(store, {"work": work}, pool_size=1) as queue, APIServer(queue, port=0, token=TOKEN) as api:
        queue.add_many({"type": "work", "payload": n, "max_attempts": 1} for n in range(30))
        queue.join(60)
        with chromium() as browser:
            yield queue, api, browser


@pytest.mark.parametrize(
    ("name", "wide", "scheme"), [("desktop", 1280, "light"), ("phone", 390, "light"), ("dark", 1280, "dark")]
)
def test_the_page_shows_what_the_store_knows_and_asks_nobody_else(served, name, wide, scheme):
    """`DTQ_SHOTS=folder` keeps a picture of each."""
    queue, api, browser = served
    page = browser.new_page(viewport={"width": wide, "height": 900}, color_scheme=scheme)
    noise = []
    page.on("console", lambda said: noise.append(said.text) if "401" not in said.text else None)
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("request", lambda asked: noise.append(asked.url) if not asked.url.startswith((api.url, "data:")) else None)
    page.goto(api.url)
    page.locator("#token").fill(TOKEN)
    page.get_by_role("button", name="Go on").click()
    page.locator("#state", has_text="live").wait_for()
    queue.add_many({"type": "work", "payload": n, "max_attempts": 1} for n in range(1, 50))
    queue.join(60)
    expected = sorted(f"{status},{n}" for status, n in queue.stats().counts.items())
    for _ in range(300):  # the page's policy forbids evaluating text in it, also to Playwright's waits
        if sorted(page.evaluate(COUNTS)) == expected:
            break
        page.wait_for_timeout(100)
    assert sorted(page.evaluate(COUNTS)) == expected
    failure = page.locator("#failures tbody tr").first
    failure.wait_for()
    assert "<b>seven</b>" in failure.inner_text()  # text, and no element
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert TOKEN not in page.url
    if folder := os.environ.get("DTQ_SHOTS"):
        page.screenshot(path=Path(folder) / f"dashboard-{name}.png", full_page=True)
    page.close()
    assert noise == []


def test_a_failed_task_is_retried_by_keyboard(served):
    queue, api, browser = served
    page = browser.new_page()
    page.goto(api.url)
    page.locator("#token").fill(TOKEN)
    page.keyboard.press("Enter")
    button = page.get_by_role("button", name=re.compile("^Retry task")).first
    button.wait_for()
    id = button.get_attribute("aria-label").split()[-1]
    button.focus()
    page.keyboard.press("Enter")
    page.locator("#said", has_text="starts again").wait_for()
    queue.join(60)
    assert len(queue.get(id).history) == 2
    page.close()
