"""Events reach all listeners and never block the code that emits them."""

from __future__ import annotations

import logging
import threading

import pytest

from dtq.errors import DTQError
from dtq.queue.events import Emitter


@pytest.fixture
def emitter():
    emitter = Emitter()
    yield emitter
    emitter.close()


def test_listeners_get_their_events_in_order(emitter):
    received = []
    emitter.on("queue:paused", lambda e: received.append((e.name, e.data["n"])))
    emitter.on("queue:resumed", lambda e: received.append((e.name, e.data["n"])))
    for n in range(100):
        emitter.emit(("queue:paused", "queue:resumed")[n % 2], 1.0, n=n)
    emitter.close()
    assert [n for _, n in received] == list(range(100))


def test_once_delivers_one_event_and_off_ends_the_delivery(emitter):
    received, never = [], []
    emitter.once("queue:idle", received.append)
    emitter.on("queue:idle", never.append)
    emitter.off("queue:idle", never.append)
    emitter.emit("queue:idle", 1.0)
    emitter.emit("queue:idle", 2.0)
    emitter.close()
    assert [e.at for e in received] == [1.0]
    assert never == []
    assert not emitter.has_listeners("queue:idle")


def test_a_star_listener_gets_all_events(emitter):
    received = []
    emitter.on("*", lambda e: received.append(e.name))
    emitter.emit("queue:idle", 1.0)
    emitter.emit("task:added", 1.0)
    emitter.close()
    assert received == ["queue:idle", "task:added"]


def test_an_unknown_event_name_is_refused_with_the_known_ones(emitter):
    with pytest.raises(DTQError, match=r"'task:complete'; there are: .*task:completed"):
        emitter.on("task:complete", print)
    with pytest.raises(DTQError, match="expected a function"):
        emitter.on("task:completed", None)


def test_a_failing_listener_is_logged_and_the_others_still_get_the_event(emitter, caplog):
    received = []
    emitter.on("queue:idle", lambda e: 1 / 0)
    emitter.on("queue:idle", received.append)
    with caplog.at_level(logging.ERROR, "dtq"):
        emitter.emit("queue:idle", 1.0)
        emitter.close()
    assert len(received) == 1
    assert "ZeroDivisionError" in caplog.text


def test_a_slow_listener_loses_events_which_are_counted_but_never_blocks_the_emitter():
    emitter, gate = Emitter(capacity=10), threading.Event()
    received = []
    emitter.on("queue:idle", lambda e: (gate.wait(10), received.append(e.at)))
    for n in range(1000):
        emitter.emit("queue:idle", n)
    assert 989 <= emitter.dropped <= 990
    gate.set()
    emitter.close()
    assert len(received) + emitter.dropped == 1000


def test_without_listeners_no_event_is_built_and_no_thread_runs():
    emitter = Emitter()
    before = threading.active_count()
    emitter.emit("queue:idle", 1.0)
    assert not emitter.has_listeners("queue:idle")
    assert threading.active_count() == before


def test_after_catch_up_all_earlier_events_are_delivered(emitter):
    received, go_on = [], threading.Event()
    emitter.on("task:added", lambda event: go_on.wait(30) and received.append(event.at))
    for number in range(3):
        emitter.emit("task:added", number)
    threading.Timer(0.05, go_on.set).start()
    emitter.catch_up(30)
    assert received == [0, 1, 2]
    emitter.close()
    emitter.catch_up(30)  # no thread runs any more
