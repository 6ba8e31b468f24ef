"""A flow is drawn as it is, for all eyes, and follows what happens."""

from __future__ import annotations

import xml.etree.ElementTree as xml

import pytest

from dtq import StoreError, TaskQueue, chain, chord, group, step
from dtq.lab import flow as draw
from dtq.lab.flow import DOTS, layers

WAIT = 30.0
HANDLERS = {name: f"flow_handlers:{name}" for name in ("value", "total", "sleep", "fail")}


@pytest.fixture
def queue():
    with TaskQueue("memory:", HANDLERS, 2, executor="thread") as queue:
        yield queue


def picture(drawing):
    start, end = drawing.svg.index("<svg"), drawing.svg.index("</svg>") + 6
    return xml.fromstring(drawing.svg[start:end])


def shapes(drawing, name):
    return picture(drawing).findall(f".//{{http://www.w3.org/2000/svg}}{name}")


def test_layers_are_counted_along_the_longest_way():
    parents = {"a": (), "b": ("a",), "c": ("a", "b"), "d": (), "e": ("d", "elsewhere")}
    assert layers(parents) == [["a", "d"], ["b", "e"], ["c"]]


def test_each_task_is_a_dot_and_each_wait_a_line(queue):
    flow = queue.flow(chord([step("value", n) for n in range(4)], step("total", delay=600)))
    drawing = draw(flow)
    assert (len(shapes(drawing, "circle")), len(shapes(drawing, "path"))) == (5, 4)
    flow.cancel()
    drawing.wait(WAIT)


def test_it_follows_the_tasks_to_their_end_and_says_so_in_words(queue):
    flow = queue.flow(chain(step("value", 1), step("fail", max_attempts=1), step("total")))
    drawing = draw(flow)
    drawing.wait(WAIT)
    alt = picture(drawing).get("aria-label")
    assert alt == "A flow of 3 tasks in 3 layers: 1 completed, 2 failed."
    assert "<td>1</td><td>1</td><td>1 completed</td>" in drawing.svg
    assert [text.text for text in shapes(drawing, "text")] == ["✓", "✕", "✕"]
    assert drawing.widget.value == drawing.svg


def test_a_large_flow_is_drawn_as_bars_whose_parts_are_the_counts(queue):
    flow = queue.flow(chain(group(*[step("value", n) for n in range(2 * DOTS)]), step("total")))
    drawing = draw(flow)
    drawing.wait(WAIT)
    assert shapes(drawing, "circle") == []
    first, last = (float(rect.get("width")) for rect in shapes(drawing, "rect"))
    assert first == pytest.approx(last * 2 * DOTS, rel=1e-4)


def test_who_waits_is_told_when_it_takes_too_long_or_the_queue_is_closed(tmp_path):
    queue = TaskQueue(tmp_path / "q.db", HANDLERS, 1, executor="thread").start()
    drawing = draw(queue.flow(group(step("sleep", 0, delay=600))))
    with pytest.raises(TimeoutError, match="1 pending"):
        drawing.wait(0.1)
    queue.close()
    with pytest.raises(StoreError):
        drawing.wait(WAIT)
