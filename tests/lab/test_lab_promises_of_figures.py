"""What every figure of the lab has: a description, its data, a stamp, and colours that all readers can tell apart."""

from __future__ import annotations

import html
import inspect
import re
from contextlib import closing
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from msgspec.structs import replace

from dtq import Task, TaskQueue, lab
from dtq.lab import figures

WAIT = 20.0
WORKERS = [1, 2, 4, 8]
PAPER_AND_INK = {"#000000", "#ffffff"}
MARKS = [(0.1, "kill w1"), (0.2, "freeze w2"), (0.3, "thaw"), (0.4, "slow_disk 0.1")]


@pytest.fixture(scope="module")
def recorder():
    """Of a run with every outcome in it but a killed worker."""
    handlers = {"work": "queue_handlers:sleep_if_asked", "fail": "queue_handlers:fail"}
    with TaskQueue("memory:", handlers, 2) as queue:
        recorder = lab.Recorder(queue)
        queue.add_many({"type": "work", "payload": 0.01} for _ in range(20))
        queue.add("fail", max_attempts=2, retry_delay=0)
        queue.join(WAIT)
        running = queue.add("work", 60)
        queue.once("task:started", lambda event: running.cancel())
        queue.wait_for(running.id, WAIT)
        recorder.stop()
    return recorder


def runs():
    n = np.repeat(WORKERS, 3)
    return pd.DataFrame({"workers": n, "throughput": lab.Law(100, 0.1, 0.004)(n) * np.tile([0.98, 1, 1.02], 4)})


def latencies():
    return pd.DataFrame({"arm": [*"ab"] * 50, "repeat": [1] * 100, "latency": range(1, 101)})


def counterexample():
    def take(model, me):
        seen = model.n
        yield "reads"
        model.n = seen + 1
        yield "writes"

    make = SimpleNamespace
    return lab.explore(lambda: make(n=0), {"A": take, "B": take}, at_end=lambda model: model.n == 2, crashes=1)


def ran():
    """Tasks of two priorities, on two workers."""
    tasks = (Task(type="x", priority=n % 2, worker=f"node/w{n % 2}", created_at=1, run_at=1) for n in range(6))
    return [replace(task, started_at=1.0 + n, finished_at=2.0 + n) for n, task in enumerate(tasks)]


FIGURES = {  # how each is drawn, with everything in it that it can draw
    "gantt": lambda recorder: lab.gantt(recorder, MARKS),
    "depth": lab.depth,
    "ecdf": lambda _: lab.ecdf(latencies(), "latency", "arm"),
    "scaling": lambda _: lab.scaling(runs()),
    "predict": lambda _: lab.predict(lambda n: 90 * n, lambda n: 100 * n, runs(), "workers", "throughput"),
    "by_priority": lambda _: lab.by_priority({"a run": ran()}, 1, store="memory")[-1],
    "trace": lambda _: lab.trace(counterexample()),
}


@pytest.fixture(params=FIGURES)
def drawn(request, recorder, monkeypatch):
    """A figure's axes, and what was displayed."""
    displayed = []
    monkeypatch.setattr(figures, "display", lambda data, **options: displayed.append(data))
    axes = FIGURES[request.param](recorder)
    (output,) = displayed
    return axes, output


def test_every_function_that_draws_is_here():
    functions = {name: getattr(lab, name) for name in lab.__all__ if inspect.isfunction(getattr(lab, name))}
    draws = {name for name, function in functions.items() if "Axes" in str(function.__annotations__.get("return"))}
    assert draws == FIGURES.keys()


def test_a_figure_tells_what_it_shows_in_words_with_numbers(drawn):
    _, output = drawn
    (alt,) = re.findall(r'<img alt="([^"]*)"', output["text/html"])
    assert re.search(r"\d", alt)
    assert len(alt) > 60
    assert output["text/plain"] == html.unescape(alt)


def test_a_figure_has_its_data_in_a_table_with_a_head(drawn):
    _, output = drawn
    (table,) = re.findall(
        r"(?s)<details><summary>The data as a table</summary>(<table.*</table>)</details>", output["text/html"]
    )
    assert table.count("<th>") >= 3
    assert table.count("<tr") > 1


def test_a_figure_says_where_and_how_it_was_made(drawn):
    _, output = drawn
    assert re.search(r"<small>\d+ cores, Python [\d.]+, dtq [\d.]+, \w+", output["text/html"])


def test_a_figure_of_a_queue_names_its_store_and_how_workers_start(recorder):
    assert recorder.facts() == {"store": "MemoryStore", "start": "fork"}
    store = lab.FaultyStore("memory:")
    with closing(store), TaskQueue(store, {"work": "queue_handlers:nothing"}, 1, executor="thread") as queue:
        assert lab.Recorder(queue).facts() == {"store": "MemoryStore", "start": "thread"}


def test_everything_drawn_has_a_colour_of_the_palette(drawn):
    axes, _ = drawn
    found = set()
    for artist in axes.get_children():
        if isinstance(artist, Line2D):
            found |= {artist.get_color(), artist.get_markerfacecolor(), artist.get_markeredgecolor()}
        elif isinstance(artist, Patch) and artist is not axes.patch:
            found |= {artist.get_facecolor()}
        elif hasattr(artist, "get_edgecolors"):
            found |= {*map(tuple, artist.get_edgecolors())}
    found = {to_hex(color) for color in found if str(color).lower() != "none"}
    assert found <= {color.lower() for color in figures.OKABE_ITO.values()} | PAPER_AND_INK
    assert found


def test_what_has_several_colours_has_a_legend_or_names_beside_them(drawn):
    axes, _ = drawn
    legend = axes.get_legend() or [*axes.figure.legends, None][0]
    words = legend.get_texts() if legend else axes.texts
    assert all(text.get_text() for text in words)
    assert len(words) >= 2


def test_no_figure_stays_open(drawn):
    assert plt.get_fignums() == []


def test_sizes_come_from_one_place(recorder, monkeypatch):
    """Instructor mode makes all of them larger there."""
    monkeypatch.setattr(figures, "display", lambda data, **options: None)
    with plt.rc_context({"font.size": 23}):
        for name, draw in FIGURES.items():
            axes = draw(recorder)
            texts = [text.get_size() for text in (axes.xaxis.label, *axes.texts)]
            assert set(texts) == {23}, name
