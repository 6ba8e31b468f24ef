"""Alerts by webhook, posted to a real receiver on loopback, which verifies them with the standard's library."""

from __future__ import annotations

import logging
import threading
import time

import pytest
from webhook_receiver import SECRET, WAIT, Receiver, wait_until

from dtq import DTQError, Monitor, QueueManager
from dtq.monitor import webhook
from dtq.monitor.monitor import AlertWebhook, Threshold

LOOPBACK = {"webhook_networks": ["127.0.0.0/8"], "webhook_http": True}
LIMITS = {"nodes": Threshold(1, below=True), "queue_size": Threshold(0, cooldown=0)}


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(webhook, "RETRY_DELAYS", (0.01, 0.02))


@pytest.fixture
def manager():
    with QueueManager("memory:") as manager:
        yield manager


def told(receiver):
    return [(body["type"], body["data"]["metric"]) for _, _, body in receiver.got]


def test_each_alert_is_posted_in_order_and_signed_though_no_node_runs(manager):
    with (
        Receiver() as receiver,
        Monitor(manager, None, 3600, LIMITS, webhook=AlertWebhook(receiver.url, SECRET, **LOOPBACK)) as monitor,
    ):
        monitor.sample()
        handle = manager.add("a")
        monitor.sample()
        handle.cancel()
        monitor.sample()
        wait_until(lambda: len(receiver.got) == 3)
    expected = [("alert.raised", "nodes"), ("alert.raised", "queue_size"), ("alert.cleared", "queue_size")]
    assert (told(receiver), receiver.bad) == (expected, [])
    _, _, body = receiver.got[1]
    assert body["timestamp"].endswith("Z")
    message = "queue_size is 1, above its threshold of 0"
    assert body["data"] == {"metric": "queue_size", "value": 1, "threshold": 0, "message": message}
    assert len({id for id, _, _ in receiver.got}) == 3


def test_an_alert_that_was_refused_is_sent_again_with_the_same_id(manager):
    with Receiver((503, {}), (500, {}), (204, {})) as receiver:
        target = AlertWebhook(receiver.url, SECRET, **LOOPBACK)
        with Monitor(manager, None, 3600, {"nodes": LIMITS["nodes"]}, webhook=target) as monitor:
            monitor.sample()
            wait_until(lambda: len(receiver.got) == 3)
        assert len({id for id, _, _ in receiver.got}) == 1
        found = monitor.get_metrics()["monitor"]
        assert (found["webhook_trouble"], found["lost_alerts"]) == (None, 0)


def test_a_receiver_that_never_answers_delays_neither_samples_nor_the_end(manager):
    heard, end = [], threading.Event()
    with Receiver(lambda request: end.wait(WAIT)) as receiver:
        target = AlertWebhook(receiver.url, SECRET, **LOOPBACK)
        monitor = Monitor(manager, None, 3600, LIMITS, webhook=target)
        monitor.on("alert:raised", heard.append)
        with monitor:
            manager.add("a")
            for _ in range(3):
                began = time.monotonic()
                monitor.sample()
                assert time.monotonic() - began < 5
            wait_until(lambda: len(heard) == 2)
            began = time.monotonic()
        assert time.monotonic() - began < 12  # the end of the monitor
        end.set()


@pytest.mark.parametrize(
    ("answer", "words"),
    [((500, {}), "answered 500"), ((410, {}), "accepts no more of these"), ((302, {"location": "/"}), "not followed")],
)
def test_an_alert_that_could_not_be_delivered_is_counted_and_logged(manager, caplog, answer, words):
    with (
        Receiver(answer) as receiver,
        Monitor(manager, None, 3600, LIMITS, webhook=AlertWebhook(receiver.url, SECRET, **LOOPBACK)) as monitor,
        caplog.at_level(logging.ERROR, "dtq"),
    ):
        monitor.sample()
        wait_until(lambda: monitor.get_metrics()["monitor"]["lost_alerts"] == 1)
        assert words in monitor.get_metrics()["monitor"]["webhook_trouble"]
        assert len(receiver.got) == (1 if answer[0] == 410 else 3)
    assert "the webhook could not be told that nodes is 0, below its threshold of 1" in caplog.text
    assert SECRET not in caplog.text


def test_no_alert_is_posted_to_an_address_that_is_not_public(manager):
    with (
        Receiver() as receiver,
        Monitor(manager, None, 3600, LIMITS, webhook=f"https://127.0.0.1:{receiver.port}/") as monitor,
    ):
        monitor.sample()
        wait_until(lambda: monitor.get_metrics()["monitor"]["lost_alerts"] == 1)
        assert "no public address" in monitor.get_metrics()["monitor"]["webhook_trouble"]
        assert not receiver.times


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http://example.org/"], "the webhook's URL is 'http://example.org/'; allowed: https://"),
        ([None], "the webhook's URL is None"),
        (["https://example.org/", "short"], r"the secret 'alerts' is none \(not shown here\)"),
    ],
)
def test_a_webhook_with_a_wrong_option_is_refused(arguments, words):
    with pytest.raises(DTQError, match=words):
        AlertWebhook(*arguments)
