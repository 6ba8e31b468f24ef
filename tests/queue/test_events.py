"""Events reach those who listen, and never hold up those who emit."""

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


def test_listeners_hear_their_events_in_order(emitter):
    heard = []
    emitter.on("queue:paused", lambda e: heard.append((e.name, e.data["n"])))
    emitter.on("queue:resumed", lambda e: heard.append((e.name, e.data["n"])))
    for n in range(100):
        emitter.emit(("queue:paused", "queue:resumed")[n % 2], 1.0, n=n)
    emitter.close()
    assert [n for _, n in heard] == list(range(100))


def test_once_hears_once_and_off_hears_no_more(emitter):
    heard, never = [], []
    emitter.once("queue:idle", heard.append)
    emitter.on("queue:idle", never.append)
    emitter.off("queue:idle", never.append)
    emitter.emit("queue:idle", 1.0)
    emitter.emit("queue:idle", 2.0)
    emitter.close()
    assert [e.at for e in heard] == [1.0]
    assert never == []
    assert not emitter.has_listeners("queue:idle")


def test_a_star_hears_everything(emitter):
    heard = []
    emitter.on("*", lambda e: heard.append(e.name))
    emitter.emit("queue:idle", 1.0)
    emitter.emit("task:added", 1.0)
    emitter.close()
    assert heard == ["queue:idle", "task:added"]


def test_a_name_that_is_none_is_refused_with_those_that_are(emitter):
    with pytest.raises(DTQError, match=r"'task:complete'; there are: .*task:completed"):
        emitter.on("task:complete", print)
    with pytest.raises(DTQError, match="expected a function"):
        emitter.on("task:completed", None)


def test_a_listener_that_fails_is_logged_and_the_others_still_hear(emitter, caplog):
    heard = []
    emitter.on("queue:idle", lambda e: 1 / 0)
    emitter.on("queue:idle", heard.append)
    with caplog.at_level(logging.ERROR, "dtq"):
        emitter.emit("queue:idle", 1.0)
        emitter.close()
    assert len(heard) == 1
    assert "ZeroDivisionError" in caplog.text


def test_a_slow_listener_costs_events_which_are_counted_but_never_the_emitter():
    emitter, gate = Emitter(capacity=10), threading.Event()
    heard = []
    emitter.on("queue:idle", lambda e: (gate.wait(10), heard.append(e.at)))
    for n in range(1000):
        emitter.emit("queue:idle", n)
    assert 989 <= emitter.dropped <= 990
    gate.set()
    emitter.close()
    assert len(heard) + emitter.dropped == 1000


def test_without_listeners_no_event_is_made_and_no_thread_runs():
    emitter = Emitter()
    before = threading.active_count()
    emitter.emit("queue:idle", 1.0)
    assert not emitter.has_listeners("queue:idle")
    assert threading.active_count() == before


def test_who_has_caught_up_has_heard_all_that_happened_before(emitter):
    heard, go_on = [], threading.Event()
    emitter.on("task:added", lambda event: go_on.wait(30) and heard.append(event.at))
    for number in range(3):
        emitter.emit("task:added", number)
    threading.Timer(0.05, go_on.set).start()
    emitter.catch_up(30)
    assert heard == [0, 1, 2]
    emitter.close()
    emitter.catch_up(30)  # nobody is there to wait for
