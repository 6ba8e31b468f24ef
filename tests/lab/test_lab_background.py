"""serve and steady: cells that start something in the background may run twice."""

from __future__ import annotations

import threading
import time

import pytest

from dtq import StoreError, TaskQueue, lab
from dtq.lab import background, hygiene
from dtq.stores.sqlite.store import SQLiteStore

WAIT = 20.0
HANDLERS = {"work": "queue_handlers:nothing"}


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(background, "display", lambda data, **options: None)
    chapter = lab.start(0)
    yield chapter
    hygiene.end_all()
    hygiene._watches and hygiene._watches.pop().end()


def until(condition):
    give_up_at = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_the_next_queue_takes_the_place_of_the_one_before_and_the_end_shuts_down_the_last(here):
    first = lab.serve(TaskQueue(here.path / "q.db", HANDLERS, 1))
    second = lab.serve(TaskQueue(here.path / "q.db", HANDLERS, 1))
    assert (first.is_running, second.is_running) == (False, True)
    second.add("work").result(WAIT)
    lab.assert_clean()
    assert not second.is_running


def test_a_store_that_was_made_for_the_queue_is_closed_with_it(here):
    store = SQLiteStore(here.path / "q.db")
    lab.serve(TaskQueue(store, HANDLERS, 1))
    lab.assert_clean()
    with pytest.raises(StoreError):
        store.find()


def test_a_steady_load_goes_on_until_it_is_stopped_by_its_button_too(here):
    queue = lab.serve(TaskQueue("memory:", HANDLERS, 1))
    load = lab.steady(queue, "work", lambda number: number, rate=100)
    until(lambda: len(load.ids) > 5)
    load.button.click()
    load.stop()
    assert load.button.disabled
    assert load.label.value == f"{len(load.ids)} added, and no more"
    assert [queue.get(id).payload for id in load.ids] == [*range(len(load.ids))]


def test_a_steady_load_bears_a_store_that_fails_for_a_while_and_ends_with_its_queue(here):
    store = lab.FaultyStore("memory:")
    queue = lab.serve(TaskQueue(store, HANDLERS, 1))
    store.is_full = True
    load = lab.steady(queue, "work", rate=100)
    time.sleep(0.1)
    assert load.ids == []
    store.is_full = False
    until(lambda: load.ids)
    queue.shutdown()
    until(lambda: load.button.disabled)


def test_a_second_load_takes_the_place_of_the_first(here):
    queue = lab.serve(TaskQueue("memory:", HANDLERS, 1))
    lab.steady(queue, "work")
    lab.steady(queue, "work")
    assert [thread.name for thread in threading.enumerate()].count("dtq-steady") == 1
