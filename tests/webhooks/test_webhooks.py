"""Webhooks: deliveries to a real receiver on loopback, which verifies them; and what the address guard refuses."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import ssl
import threading
import time
from email.utils import format_datetime
from ipaddress import ip_address

import httpcore
import pytest
import servers
from msgspec.structs import replace
from standardwebhooks.webhooks import Webhook as Standard
from stepped_loop import ScriptedPool, make
from webhook_receiver import LOOPBACK, SECRET, WAIT, Receiver, wait_until

from dtq import DTQError, InvalidTask, QueueManager, Retry, TaskQueue, Webhook
from dtq.task.model import ErrorInfo, Task
from dtq.task.transitions import cancel, end_doomed, fail, interrupt, succeed
from dtq.webhooks import deliveries, delivery
from dtq.webhooks.address_guard import AddressGuard, Refused, Secrets, is_public
from dtq.webhooks.delivery import DeliveryError, Gone, GuardedBackend, SignedRequest, post
from dtq.webhooks.handler import WebhookHandler

NOW = 1_700_000_000.0


def message(url, secret="shop", id="t:webhook-2"):
    return SignedRequest.of(
        {"url": url, "secret": secret, "body": {"type": "task.completed"}}, id, Secrets({"shop": SECRET})
    )


def send(url, *, networks=("127.0.0.0/8",), http=True, resolve=delivery.resolve, inner=None, **options):
    guard = AddressGuard(networks, http)
    return asyncio.run(post(message(url, **options), guard, GuardedBackend(guard, resolve, inner)))


# --- what is planted


def processing(**fields):
    hook = Webhook("https://example.org/hook", secret="shop")
    return Task(type="a", id="x", webhook=hook, status="processing", version=2, attempts=1, **fields)


def test_every_kind_of_ending_plants_one_delivery():
    error = ErrorInfo("ValueError", "no", "a traceback")
    endings = [
        (succeed(processing(), {"n": 1}, NOW), "completed"),
        (fail(processing(max_attempts=1), error, NOW, lambda: 0), "failed"),
        (cancel(processing(), NOW), "cancelled"),
        (end_doomed(replace(processing(), doom="expired"), NOW), "cancelled"),
        (end_doomed(replace(processing(), doom="its parent y is failed"), NOW), "failed"),
        (interrupt(replace(processing(), interruptions=2), NOW), "failed"),
    ]
    for task, status in endings:
        (planted,) = deliveries.deliveries(task, NOW)
        assert planted.payload["body"]["type"] == f"task.{status}"
        assert (planted.type, planted.id, planted.payload["secret"]) == ("dtq.webhook", "x:webhook-2", "shop")
        assert planted.webhook is None
    assert deliveries.deliveries(fail(processing(), error, NOW, lambda: 0), NOW) == ()
    assert deliveries.deliveries(interrupt(processing(), NOW), NOW) == ()


def test_only_the_chosen_events_plant_a_delivery():
    task = replace(processing(), webhook=Webhook("https://example.org/", events=("failed",)))
    assert deliveries.deliveries(succeed(task, 1, NOW), NOW) == ()


def test_the_body_describes_the_end_without_payload_and_traceback():
    task = fail(processing(payload={"password": "p"}, max_attempts=1), ErrorInfo("E", "no", "trace"), NOW, lambda: 0)
    body = deliveries.body(task, NOW)
    assert body["data"]["error"] == {"type": "E", "message": "no"}
    assert body["timestamp"] == "2023-11-14T22:13:20.000000Z"
    assert "password" not in str(body)
    assert "trace" not in str(body)


def test_a_manager_plants_the_delivery_of_a_task_that_it_cancels():
    with QueueManager("memory:") as manager:
        handle = manager.add("a", webhook="https://example.org/hook")
        handle.cancel()
        (planted,) = manager.find(type=deliveries.TYPE)
        assert planted.payload["body"]["data"]["status"] == "cancelled"
        replaced = manager.add("a", key="k", webhook="https://example.org/hook")
        manager.add("a", key="k", on_conflict="replace", window=0)
        assert [task.payload["body"]["data"]["id"] for task in manager.find(type=deliveries.TYPE)] == [
            handle.id, replaced.id,
        ]  # fmt: skip


def ended_hook(**fields):
    return succeed(processing(**fields), 5, NOW)


@pytest.mark.parametrize("url", ["memory:", "sqlite", "file", "valkey"])
def test_a_planted_delivery_is_genuine_also_when_it_is_read_from_a_store(url, tmp_path):
    if url == "valkey":
        url = servers.url_of(url)
    store = {"sqlite": str(tmp_path / "queue.db"), "file": f"file:{tmp_path / 'queue'}"}.get(url, url)
    with QueueManager(store) as manager:
        for n in range(50):
            manager.add("a", id=f"a{n}.b@c:d", webhook="https://example.org/hook").cancel()
        found = manager.find(type=deliveries.TYPE)
        assert len(found) == 50
        assert all(deliveries.is_genuine(delivery) for delivery in found)
        (claimed,) = manager.store.claim("n", 1, 30, time.time() + 5, {deliveries.TYPE})
        failed = fail(claimed, ErrorInfo("E"), NOW, lambda: 0, final=True)
        assert deliveries.is_genuine(failed)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "y:webhook-2"}, {"id": "x:webhook-"}, {"id": "x"}, {"created_at": NOW + 1e-4}, {"payload": None},
        {"payload": {}}, {"payload": {"url": "https://e.org", "secret": "shop", "body": {"any": "message"}}},
        {"payload": {"url": "https://e.org", "secret": "shop", "body": 5}}, {"payload": "x"}, {"payload": [1]},
    ],
)  # fmt: skip
def test_a_task_that_differs_from_a_planted_delivery_is_not_genuine(fields):
    (planted,) = deliveries.deliveries(ended_hook(), NOW)
    assert deliveries.is_genuine(planted)
    assert not deliveries.is_genuine(replace(planted, **fields))


@pytest.mark.parametrize("kind", ["expired", "parent", "dead node"])
def test_the_loop_plants_deliveries_for_tasks_that_could_not_run(kind):
    with QueueManager("memory:", clock=lambda: NOW) as manager:
        hook = {"webhook": "https://example.org/hook", "id": "x"}
        if kind == "expired":
            manager.add("a", expires=NOW + 1, **hook)
        elif kind == "parent":
            parent = manager.add("b")
            manager.add("a", after=[parent], **hook)
            parent.cancel()
        else:
            manager.add("a", **hook)
            for at in (10, 110, 210):
                manager.store.claim("dead", 1, 5, NOW + at, {"a"})
                loop = make(manager.store, ScriptedPool(room=0), lease=5)
                [loop.turn(NOW + at + 50 + n / 100) for n in range(3)]
        loop = make(manager.store, ScriptedPool())
        [loop.turn(NOW + 300 + n / 100) for n in range(5)]
        (planted,) = manager.find(type=deliveries.TYPE)
        assert planted.payload["body"]["data"]["id"] == "x"


@pytest.mark.parametrize(
    ("webhook", "message"),
    [
        ("ftp://example.org/", "https://host/path"),
        ("https://", "https://host/path"),
        ("https://ada:secret@example.org/", "without a user or password"),
        ("https://example.org/a b", "https://host/path"),
        ({"url": "https://example.org/", "events": ["started"]}, "some of completed"),
        ({"url": "https://example.org/", "events": []}, "some of completed"),
        ({"url": "https://example.org/", "secret": SECRET + "=/+"}, "secret of the webhook"),
    ],
)
def test_an_invalid_webhook_is_refused_when_the_task_is_added(webhook, message):
    with QueueManager("memory:") as manager, pytest.raises(InvalidTask, match=message):
        manager.add("a", webhook=webhook)


# --- what the receiver sees, and answers


def test_a_receiver_verifies_what_it_gets():
    with Receiver() as receiver:
        assert send(receiver.url) == {"status": 204}
    assert receiver.got == [("t:webhook-2", f"127.0.0.1:{receiver.port}", {"type": "task.completed"})]
    assert receiver.bad == []


def test_during_a_rotation_both_secrets_sign():
    other = "whsec_" + base64.b64encode(b"b" * 32).decode()
    both = Secrets({"shop": f"{other} {SECRET}"})
    given = SignedRequest.of({"url": "", "secret": "shop", "body": 1}, "x", both)
    for secret in (SECRET, other):
        assert Standard(secret).verify(given.content, given.headers) == 1


def test_410_is_final_and_other_answers_are_retried():
    for status, kind in [(410, Gone), (400, DeliveryError), (404, DeliveryError), (500, DeliveryError)]:
        with Receiver((status, {})) as receiver, pytest.raises(kind, match=f"answered {status}"):
            send(receiver.url)


def test_a_redirect_is_not_followed():
    with Receiver() as inside, Receiver((307, {"location": inside.url})) as receiver:
        with pytest.raises(DeliveryError, match="not followed"):
            send(receiver.url)
        assert inside.got == []


@pytest.mark.parametrize(
    ("header", "delay"), [("120", 120), ("0", 1), ("999999999", 86400), ("date", 300), ("soon", None)]
)
def test_retry_after_is_honoured_in_seconds_and_as_a_date(header, delay):
    if header == "date":
        from datetime import UTC, datetime, timedelta

        header = format_datetime(datetime.now(UTC) + timedelta(seconds=300), usegmt=True)
    with Receiver((429, {"Retry-After": header})) as receiver:
        with pytest.raises(Retry if delay else DeliveryError) as caught:
            send(receiver.url)
        if delay:
            assert caught.value.delay == pytest.approx(delay, abs=5)


def test_only_the_beginning_of_a_response_is_read():
    sent = []

    def flood(request):
        request.send_response(500)
        request.end_headers()
        for _ in range(100_000):
            request.wfile.write(b"x" * 1000)
            sent.append(1000)

    with Receiver(flood) as receiver:
        with pytest.raises(DeliveryError) as caught:
            send(receiver.url)
        assert len(str(caught.value)) < 300
    assert sum(sent) < 20e6


def test_a_receiver_that_is_down_is_an_ordinary_failure():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(httpcore.ConnectError):
            send(f"http://127.0.0.1:{nobody.getsockname()[1]}/")


def test_a_slow_receiver_ends_in_a_timeout(monkeypatch):
    monkeypatch.setattr(delivery, "TIMEOUT", 0.3)
    release = threading.Event()

    def drip(request):
        request.send_response(200)
        while not release.wait(0.05):
            request.wfile.write(b"x: y\r\n")

    class Context:
        task_id = "x"

    with Receiver(drip) as receiver:
        payload = {"url": receiver.url, "secret": None, "body": 1}
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            asyncio.run(WebhookHandler({}, ["127.0.0.0/8"], True)(payload, Context))
        assert time.monotonic() - began < 10
        release.set()


def test_tls_verifies_the_name_although_the_connection_uses_the_address(tmp_path, monkeypatch):
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example").configure_cert(context)
    names = []
    context.sni_callback = lambda _, name, __: names.append(name)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    async def resolve(host, port):
        return ["127.0.0.1"]

    with Receiver(context=context) as receiver:
        assert send(f"https://hooks.example:{receiver.port}/x", resolve=resolve, http=False) == {"status": 204}
        with pytest.raises(httpcore.ConnectError, match=r"other\.example"):
            send(f"https://other.example:{receiver.port}/x", resolve=resolve, http=False)
    assert names == ["hooks.example", "other.example"]
    assert receiver.got[0][1] == f"hooks.example:{receiver.port}"


# --- what is refused


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "240.0.0.1", "192.0.2.1", "::1", "::", "fe80::1", "fc00::1", "fec0::1", "ff02::1",
     "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::8.8.8.8", "2002:7f00:1::", "::10.0.0.1",
     "2002:0a00:0001::1", "2001:0:7f00:1::1", "2001:db8::1"],
)  # fmt: skip
def test_a_wrapped_private_address_is_not_public(address):
    assert not is_public(ip_address(address))
    with pytest.raises(Refused, match="no public address"):
        AddressGuard().check("a.name", ["93.184.215.14", address])


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_a_public_address_is_public(address):
    assert is_public(ip_address(address))
    AddressGuard().check("a.name", [address])


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:{}/", "http://localhost:{}/", "http://[::1]:{}/", "http://[::ffff:127.0.0.1]:{}/",
     "http://2130706433:{}/", "http://0x7f.1:{}/", "http://127.1:{}/", "http://0:{}/"],
)  # fmt: skip
def test_loopback_under_any_name_is_refused_unless_it_is_allowed(url):
    with Receiver() as receiver:
        with pytest.raises((Refused, OSError)) as caught:
            send(url.format(receiver.port), networks=())
        assert isinstance(caught.value, (Refused, socket.gaierror))
        assert receiver.times == []


def test_an_allowed_network_is_reached():
    with Receiver() as receiver:
        assert send(f"http://127.0.0.1:{receiver.port}/", networks=["127.0.0.1/32"]) == {"status": 204}
        assert send(f"http://[::ffff:127.0.0.1]:{receiver.port}/", networks=["127.0.0.1/32"]) == {"status": 204}
        with pytest.raises(Refused):
            send(f"http://127.0.0.1:{receiver.port}/", networks=["10.0.0.0/8"])


def test_http_is_refused_unless_it_is_allowed():
    with Receiver() as receiver, pytest.raises(Refused, match="allowed: https"):
        send(receiver.url, http=False)


def test_a_name_that_rebinds_is_connected_at_its_checked_address():
    """The name is public when it is checked and would be loopback if it were resolved again."""
    answers, reached = [["93.184.215.14"]], []

    class Wire(httpcore.AsyncNetworkBackend):
        async def connect_tcp(self, host, *rest, **options):
            reached.append(host)
            raise httpcore.ConnectError("no way out of here")

    async def resolve(host, port):
        return answers.pop(0) if answers else ["127.0.0.1"]

    with Receiver() as receiver:
        with pytest.raises(httpcore.ConnectError):
            send(f"http://rebinds.example:{receiver.port}/", networks=(), resolve=resolve, inner=Wire())
        assert (reached, answers, receiver.times) == (["93.184.215.14"], [], [])
        with pytest.raises(Refused, match=r"rebinds\.example is 127\.0\.0\.1"):
            send(f"http://rebinds.example:{receiver.port}/", networks=(), resolve=resolve, inner=Wire())


def test_a_proxy_of_the_environment_is_not_used(monkeypatch):
    with Receiver() as receiver, Receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert send(receiver.url) == {"status": 204}
        assert proxy.times == []


def test_an_invalid_network_or_secret_is_refused_and_the_secret_not_shown(tmp_path):
    with pytest.raises(DTQError, match=r"'10\.0\.0\.1/8'"):
        TaskQueue(tmp_path / "q.db", webhook_networks=["10.0.0.1/8"])
    for wrong in ("hunter2", "whsec_", "whsec_c2hvcnQ=", 5, None, ""):
        with pytest.raises(DTQError, match="the secret 'shop'") as caught:
            TaskQueue(tmp_path / "q.db", secrets={"shop": wrong})
        assert "hunter2" not in str(caught.value)
    assert not (tmp_path / "q.db").exists()


# --- the whole way


def double(payload, context):
    if payload is None:
        raise ValueError("no number")
    return 2 * payload


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(deliveries, "RETRY_DELAY", 0.05)


def test_a_forged_delivery_is_neither_signed_nor_sent(tmp_path, quick):
    """A user can no longer add one, but a store may have one from earlier."""
    path = tmp_path / "queue.db"
    with Receiver() as receiver, QueueManager(path) as manager:
        forged = {"type": "task.completed", "timestamp": "2026-12-01T10:05:00.000000Z", "data": {"id": "x"}}
        for n, body in enumerate([{"pay": "ada"}, forged, 5]):
            payload = {"url": receiver.url, "secret": "shop", "body": body}
            manager.store.add([Task(type=deliveries.TYPE, id=f"x:webhook-{n}", payload=payload, created_at=NOW)])
        with TaskQueue(path, {"double": double}, pool_size=1, **LOOPBACK) as queue:
            genuine = queue.add("double", 21, webhook={"url": receiver.url, "secret": "shop"})
            queue.join(WAIT)
            failed = queue.find(type=deliveries.TYPE, status="failed")
        assert [task.error.type for task in failed] == ["Forged"] * 3
        assert [body["data"]["id"] for _, _, body in receiver.got] == [genuine.id]
        assert len(receiver.times) == 1


def test_each_ending_is_delivered_once_with_a_valid_signature(tmp_path, caplog, quick):
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "queue.db"
    with Receiver() as receiver, TaskQueue(path, {"double": double}, pool_size=1, **LOOPBACK) as queue:
        hook = {"url": receiver.url, "secret": "shop"}
        tasks = [
            queue.add("double", 21, webhook=hook),
            queue.add("double", None, max_attempts=1, webhook=hook),
            queue.add("double", 1, delay=3600, webhook=hook),
        ]
        tasks[2].cancel()
        queue.add("double", 1)
        queue.join(WAIT)
        bodies = {body["data"]["id"]: body for _, _, body in receiver.got}
        assert [bodies[task.id]["type"] for task in tasks] == ["task.completed", "task.failed", "task.cancelled"]
        assert bodies[tasks[0].id]["data"]["result"] == 42
        assert (len(receiver.got), receiver.bad) == (3, [])
        assert queue.stats().types[deliveries.TYPE]["completed"] == 3
        shown = repr(queue.find(limit=100)) + repr(queue._webhook_handler) + repr(vars(queue.registry)) + caplog.text
    raw = SECRET.removeprefix("whsec_")
    assert raw not in shown
    assert not any(raw.encode() in file.read_bytes() for file in tmp_path.iterdir() if file.is_file())


def test_every_attempt_has_the_same_id_and_waits_as_retry_after_says(tmp_path, quick):
    answers = (500, {}), (429, {"Retry-After": "1"}), (204, {})
    with Receiver(*answers) as receiver, TaskQueue(tmp_path / "q.db", {"d": double}, pool_size=1, **LOOPBACK) as queue:
        queue.add("d", 1, webhook={"url": receiver.url, "secret": "shop"})
        queue.join(WAIT)
        assert len({id for id, _, _ in receiver.got}) == 1
        assert len(receiver.got) == 3
        assert receiver.times[2] - receiver.times[1] >= 1
        (task,) = queue.find(type=deliveries.TYPE)
        assert (task.status, task.attempts, task.result) == ("completed", 3, {"status": 204})


def test_a_failed_delivery_is_a_dead_letter_without_a_webhook(tmp_path, quick):
    with Receiver((410, {})) as receiver, TaskQueue(tmp_path / "q.db", {"d": double}, pool_size=1, **LOOPBACK) as queue:
        queue.add("d", 1, webhook={"url": receiver.url, "secret": "shop"})
        queue.add("d", 1, webhook={"url": receiver.url, "secret": "unknown"})
        queue.add("d", 1, webhook="http://10.0.0.1/")
        wait_until(lambda: queue.stats().counts["failed"] == 2)
        errors = sorted(str(task.error) for task in queue.find(status="failed"))
        assert "answered 410" in errors[0]
        assert "10.0.0.1, no public address" in errors[1]
        (waiting,) = [task for task in queue.find(type=deliveries.TYPE) if not task.is_terminal and task.error]
        assert "no secret 'unknown'" in waiting.error.message
        assert len(receiver.times) == 1
        assert queue.stats().total == 6
        receiver.answers = [(204, {})]
        assert len(queue.dead.redrive(type=deliveries.TYPE, error="Gone")) == 1
        wait_until(lambda: len(receiver.times) == 2)
        assert len({id for id, _, _ in receiver.got}) == 1


def test_slow_receivers_do_not_occupy_the_workers(tmp_path):
    release = threading.Event()

    def hold(request):
        release.wait(WAIT)
        request.send_response(204)
        request.end_headers()

    with Receiver(hold) as receiver, TaskQueue(tmp_path / "q.db", {"d": double}, pool_size=1, **LOOPBACK) as queue:
        queue.add_many({"type": "d", "payload": 1, "webhook": receiver.url} for _ in range(8))
        wait_until(lambda: len(receiver.times) == 8)
        assert queue.add("d", 4).result(WAIT) == 8
        release.set()
        queue.join(WAIT)


def test_deliveries_that_wait_when_a_node_starts_are_sent(tmp_path):
    with Receiver() as receiver:
        with QueueManager(tmp_path / "q.db") as manager:
            manager.add("d", webhook={"url": receiver.url, "secret": "shop"}).cancel()
        with TaskQueue(tmp_path / "q.db", {"d": double}, pool_size=1, **LOOPBACK) as queue:
            queue.join(WAIT)
            (delivered,) = queue.find(type=deliveries.TYPE)
            assert (delivered.attempts, delivered.interruptions) == (1, 0)
        assert len(receiver.got) == 1


def test_a_node_looks_for_deliveries_without_a_search_and_without_the_statistics(monkeypatch):
    """The cost of either grows with what is stored."""
    with TaskQueue("memory:", {"d": double}, 1, executor="thread") as queue:
        monkeypatch.setattr(queue.store, "stats", None)
        monkeypatch.setattr(queue.store, "find", None)
        queue._ask(queue._at_heartbeat)


def test_an_inline_queue_does_not_send_deliveries():
    with TaskQueue("memory:", {"d": double}, executor="inline") as queue:
        queue.add("d", 1, webhook="https://example.org/")
        assert [str(task.status) for task in queue.find(type=deliveries.TYPE)] == ["pending"]


@pytest.mark.parametrize("kind", ["memory", "sqlite", "file", "valkey"])
def test_a_task_that_was_deleted_and_added_again_is_announced_under_an_id_of_its_own(kind, tmp_path):
    """Even if the delivery of the first task is still in the store."""
    urls = {"memory": "memory:", "sqlite": str(tmp_path / "queue.db"), "file": f"file:{tmp_path / 'queue'}"}
    url = urls.get(kind) or servers.url_of(kind)
    with Receiver() as receiver, TaskQueue(url, {"d": double}, pool_size=1, **LOOPBACK) as queue:
        for life in range(3):
            queue.add("d", life, id="report", webhook=Webhook(receiver.url, secret="shop")).result(WAIT)
            wait_until(lambda life=life: len(receiver.got) == life + 1)
            assert queue.delete("report") == 1
        assert [body["data"]["result"] for _, _, body in receiver.got] == [0, 2, 4]
        assert len({webhook_id for webhook_id, _, _ in receiver.got}) == 3
    assert receiver.bad == []
