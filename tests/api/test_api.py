"""The REST API, over HTTP: what it takes, what it answers, whom it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing

import httpx
import pytest
import servers
from sizes import long_and_hourly

from dtq import DTQError, QueueManager, TaskQueue

pytest.importorskip("starlette")
import uvicorn

from dtq import APIServer
from dtq.api.app import create_app
from dtq.api.config import ServerConfig
from dtq.api.connection import CoalescingTransport, Connection
from dtq.api.http_server import Server, ServerThread, listen
from dtq.api.rates import Rates
from dtq.api.state import AppState

WAIT = 60.0
TOKENS = {"r" * 20: "read", "s" * 20: "submit", "a" * 20: "admin"}


def double(payload, context):
    return 2 * payload["n"]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    store = tmp_path_factory.mktemp("api") / "queue.db"
    with QueueManager(store) as manager, APIServer(manager, port=0) as server:
        yield server


@pytest.fixture
def client(api):
    with httpx.Client(base_url=api.url, timeout=WAIT) as client:
        yield client


def add(client, **task):
    answer = client.post("/tasks", json={"type": "some", **task})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def problem(answer, status):
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert answer.json()["status"] == status
    return answer.json()


# --- tasks


def test_a_task_is_added_run_and_awaited(tmp_path):
    with (
        TaskQueue(tmp_path / "queue.db", {"double": double}, pool_size=1) as queue,
        APIServer(queue, port=0) as api,
        httpx.Client(base_url=api.url, timeout=WAIT) as client,
    ):
        added = client.post("/tasks", json={"type": "double", "payload": {"n": 21}})
        task = client.get(f"/{added.headers['location']}/wait?timeout=60")
        assert (task.status_code, task.json()["result"]) == (200, 42)
        assert client.get("/health").status_code == 200
        assert problem(client.post("/tasks", json={"type": "unknown"}), 409)["errors"][0]["field"] == "type"


def test_a_webhook_may_name_any_port(client):
    for port in (1, 8080, 65535):
        add(client, webhook={"url": f"http://127.0.0.1:{port}/hook"})


def test_what_was_answered_with_201_is_in_the_store(api, client):
    id = add(client, payload=[1])
    with QueueManager(api._queue.url) as other:
        assert other.get(id).payload == [1]


def test_a_batch_is_added_as_a_whole_or_not_at_all(client):
    before = client.get("/stats").json()["counts"]["pending"]
    bad = client.post("/tasks", json=[{"type": "some"}, {"type": "some", "priority": 5000}])
    assert problem(bad, 422)["errors"] == [{"field": "[1].priority", "reason": "Expected `int` <= 1000"}]
    assert client.get("/stats").json()["counts"]["pending"] == before
    assert len(client.post("/tasks", json=[{"type": "some"}] * 1000).json()) == 1000
    assert client.get("/stats").json()["counts"]["pending"] == before + 1000


def test_a_request_that_is_refused_does_not_harm_those_that_share_its_commit(client):
    answers = []

    def one(n):
        body = {"type": "some", "after": ["missing"]} if n % 3 == 0 else {"type": "some"}
        answers.append((n, client.post("/tasks", json=body).status_code))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [(n, 409 if n % 3 == 0 else 201) for n in range(30)]


def test_an_idempotency_key_adds_once_and_refuses_another_body(client):
    send = lambda n: client.post("/tasks", json={"type": "some", "payload": n}, headers={"Idempotency-Key": "order-7"})  # noqa: E731
    first, again, other = send(1), send(1), send(2)
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert first.json()["id"] == again.json()["id"]


def test_pages_lead_to_every_task_once(client):
    ids = {add(client, queue="paged") for _ in range(5)}
    seen, address = [], "tasks?queue=paged&limit=2"
    while address:
        page = client.get(f"/{address}").json()
        seen += [task["id"] for task in page["tasks"]]
        address = page["next"]
    assert sorted(seen) == sorted(ids)


def test_tasks_are_cancelled_retried_and_deleted(client):
    id = add(client)
    assert client.post(f"/tasks/{id}/cancel").json()["status"] == "cancelled"
    problem(client.post(f"/tasks/{id}/cancel"), 409)
    assert client.post(f"/tasks/{id}/retry").json()["status"] == "pending"
    assert client.get(f"/tasks/{id}/wait?timeout=0").status_code == 202
    assert client.delete(f"/tasks/{id}").status_code == 204
    problem(client.get(f"/tasks/{id}"), 404)
    problem(client.delete(f"/tasks/{id}"), 404)


def test_queues_are_paused_and_resumed(client):
    assert client.post("/queues/news/pause").json()["paused"]
    assert {"queue": "news", "paused": True, "counts": {}} in client.get("/queues").json()
    assert not client.post("/queues/news/resume").json()["paused"]


def test_health_tells_live_ready_and_at_work_apart(client):
    assert [client.get(f"/health{which}").status_code for which in ("/live", "/ready", "")] == [200, 200, 503]


def test_metrics_are_what_prometheus_reads(client):
    from prometheus_client.parser import text_string_to_metric_families

    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert list(text_string_to_metric_families(answer.text))


def test_events_tell_of_stats_and_of_what_has_ended(client):
    with client.stream("GET", "/events") as answer:
        id, names = add(client), set()
        client.post(f"/tasks/{id}/cancel")
        for line in answer.iter_lines():
            names.add(line.removeprefix("event: ") if line.startswith("event: ") else "")
            if line.startswith("data: ") and id in line:
                break
    assert names >= {"history", "stats", "nodes", "finished"}


def test_a_full_backlog_is_429_with_a_time_to_come_again(tmp_path):
    with (
        QueueManager(tmp_path / "queue.db", backlog_limit=1) as manager,
        APIServer(manager, port=0) as api,
        httpx.Client(base_url=api.url) as client,
    ):
        add(client)
        assert problem(client.post("/tasks", json={"type": "some"}), 429)
        assert int(client.post("/tasks", json={"type": "some"}).headers["retry-after"]) >= 1


def test_a_store_that_is_away_is_503_and_nothing_is_acknowledged(tmp_path):
    with (
        QueueManager(tmp_path / "queue.db") as manager,
        APIServer(manager, port=0) as api,
        httpx.Client(base_url=api.url) as client,
    ):
        manager.store.database.writer.close()
        manager.store.database.reader.close()
        problem(client.post("/tasks", json={"type": "some"}), 503)
        problem(client.get("/health/ready"), 503)
        assert client.get("/health/live").status_code == 200


# --- what is refused


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {"Content-Type": "application/json"}, 400),
        (b'{"type": "some"}', {"Content-Type": "text/plain"}, 415),
        (b'{"type": "some"}', {}, 415),
        (b'{"type": "../etc"}', {"Content-Type": "application/json"}, 422),
        (b'{"type": "some", "surprise": 1}', {"Content-Type": "application/json"}, 422),
        (b'{"type": "some", "payload": ' + b"[" * 100 + b"]" * 100 + b"}", {"Content-Type": "application/json"}, 422),
        (b'{"type": "some", "payload": ' + b"[" * 400_000, {"Content-Type": "application/json"}, 422),
        (b" " * ((1 << 20) + 1), {"Content-Type": "application/json"}, 413),
    ],
)
def test_a_body_that_cannot_be_taken_is_refused_with_the_reason(client, content, headers, status):
    assert problem(client.post("/tasks", content=content, headers=headers), status)["detail"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/tasks/..%2F..%2Fetc%2Fpasswd", 404),
        ("/tasks/a%00b", 404),
        ("/tasks/%252e%252e", 404),
        ("/tasks/x%0d%0aSet-Cookie:a=b", 404),
        ("/nothing", 404),
        ("/tasks?limit=0", 422),
        ("/tasks?limit=1&limit=2", 422),
        ("/tasks?stauts=failed", 422),
        ("/tasks?status=none", 422),
        ("/tasks?finished_after=null", 422),
    ],
)
def test_tricks_in_addresses_lead_nowhere(client, path, status):
    answer = client.get(path)
    problem(answer, status)
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/tasks", "/dead/errors", "/health/live", "/events"])
def test_head_is_answered_as_get_without_the_body(client, path):
    head = client.head(path)
    with client.stream("GET", path) as get:
        assert (head.status_code, head.headers["content-type"]) == (200, get.headers["content-type"])
        assert head.headers.get("content-length") == get.headers.get("content-length")
    assert head.content == b""


def test_a_method_that_a_path_does_not_have_is_405_with_those_that_it_has(client):
    answer = client.put("/tasks", json={})
    problem(answer, 405)
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}
    options = client.options("/tasks/x")
    assert (options.status_code, options.headers["allow"]) == (204, "DELETE, GET, HEAD, OPTIONS")
    assert client.options("/dead/purge").headers["allow"] == "OPTIONS, POST"


@pytest.mark.parametrize("path", ["//tasks", "/tasks/", "//health//live/"])
def test_empty_segments_in_a_path_do_not_count(client, path):
    assert client.get(client.base_url.copy_with(path=path)).status_code == 200


def test_an_id_with_a_slash_is_found_and_its_location_leads_to_it(client):
    added = client.post("/tasks", json={"type": "some", "id": "report/retry"})
    assert added.headers["location"] == "tasks/report%2Fretry"
    assert client.get("/tasks/report%2Fretry").json()["id"] == "report/retry"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example.org"}, 403),
        ({"Host": "localhost:80"}, 200),
        ({"Origin": "https://evil.example.org"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_other_hosts_and_pages_of_others_are_refused(client, headers, status):
    assert client.get("/stats", headers=headers).status_code == status


def test_our_own_pages_may_ask_and_no_other_page_is_told_that_it_may(api, client):
    answer = client.get("/stats", headers={"Origin": api.url.rstrip("/")})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    assert "default-src 'none'" in client.get("/").headers["content-security-policy"]


def test_a_page_that_was_allowed_adds_tasks_and_reads_the_answer(tmp_path):
    page = {"Origin": "https://shop.example.org"}
    ask = [{"json": {"type": "double"}}, {"json": {"type": "a b"}}, {"content": b"{"}]
    with (
        QueueManager(tmp_path / "queue.db") as manager,
        APIServer(manager, port=0, cors_origins=[page["Origin"]]) as api,
        httpx.Client(base_url=api.url, headers={"Content-Type": "application/json"}) as client,
    ):
        alone = [client.post("/tasks", **body) for body in ask]
        shared = [client.post("/tasks", headers=page, **body) for body in ask]
        asked = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}
        preflight = client.options("/limits", headers=page | asked)
    assert [a.status_code for a in alone] == [a.status_code for a in shared] == [201, 422, 400]
    assert [a.json() for a in alone][1:] == [a.json() for a in shared][1:]
    assert [a.headers["access-control-allow-origin"] for a in shared] == [page["Origin"]] * 3
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, page["Origin"])


def test_behind_the_hub_its_proxy_is_let_in_and_nobody_else(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ada/")
    with QueueManager(tmp_path / "queue.db") as manager, APIServer(manager, port=0) as api:
        ask = lambda **headers: httpx.get(f"{api.url}stats", headers={"Host": "hub.example.org", **headers}).status_code  # noqa: E731
        assert ask(**{"X-ProxyContextPath": "/user/ada/proxy/3000"}) == 200
        assert (ask(), ask(**{"X-ProxyContextPath": "/user/eve/proxy/3000"})) == (403, 403)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    store = tmp_path_factory.mktemp("guarded") / "queue.db"
    with QueueManager(store) as manager, APIServer(manager, port=0, token=TOKENS) as server:
        yield server


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("x" * 20, (401, 401, 401)),
        ("r" * 19, (401, 401, 401)),
        ("r" * 20, (200, 403, 403)),
        ("s" * 20, (200, 201, 403)),
        ("a" * 20, (200, 201, 200)),
    ],
)
def test_a_token_may_do_what_its_scope_says(guarded, token, expected):
    with httpx.Client(base_url=guarded.url, headers={"Authorization": f"Bearer {token}"}) as client:
        reads, submits = client.get("/stats"), client.post("/tasks", json={"type": "some"})
        assert (reads.status_code, submits.status_code, client.post("/queues/q/pause").status_code) == expected


def test_no_token_is_shown_in_what_is_printed(guarded):
    shown = f"{guarded!r} {guarded._config!r} {vars(guarded)}"
    assert not any(token in shown for token in TOKENS)


def test_elsewhere_than_on_loopback_a_token_is_needed():
    with pytest.raises(DTQError, match="no token is set"):
        APIServer("queue.db", host="0.0.0.0")
    with pytest.raises(DTQError, match="at least 16"):
        APIServer("queue.db", token="short")


def test_a_token_has_its_rate(tmp_path):
    with (
        QueueManager(tmp_path / "queue.db") as manager,
        APIServer(manager, port=0, token=TOKENS, rate_limit=0.01) as api,
    ):
        asked = [
            httpx.get(f"{api.url}stats", headers={"Authorization": f"Bearer {token}"})
            for token in ("r" * 20,) * 3 + ("s" * 20,)
        ]
    assert asked[0].status_code == asked[-1].status_code == 200
    limited = [answer for answer in asked if answer.status_code == 429]
    assert limited
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in limited)


def connect(api):
    return socket.create_connection(("127.0.0.1", api.port), timeout=WAIT)


def test_a_thousand_slow_and_half_open_connections_keep_nobody_out(api, client):
    beginnings = (b"", b"POST /tasks HT", b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
    slow = []
    try:
        for n in range(1000):
            slow.append(connect(api))
            slow[-1].sendall(beginnings[n % 3])
            if n % 100 == 99:
                assert httpx.post(f"{api.url}tasks", json={"type": "some"}).status_code == 201
    finally:
        for one in slow:
            one.close()
    add(client)


def test_a_request_that_does_not_arrive_in_time_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(Connection, "receive_seconds", 0.2)
    with (
        QueueManager(tmp_path / "queue.db") as manager,
        APIServer(manager, port=0) as api,
        connect(api) as silent,
        connect(api) as slow,
    ):
        slow.sendall(b"GET /stats HTTP/1.1\r\nHost: localhost\r\n")
        assert b" 408 " in slow.recv(1000)
        assert read_to_end(silent) == b""


def read_to_end(connection):
    try:
        return connection.recv(1000)
    except ConnectionResetError:
        return b""


class Wire:
    """Stands for a transport: keeps what each call wrote."""

    def __init__(self):
        self.written = []
        self.write = self.written.append

    def close(self):
        self.written.append("closed")


def test_an_answer_goes_out_at_once_and_the_head_of_a_stream_does_not_wait_for_its_body():
    async def answer(*parts, pause):
        wire = Wire()
        joining = CoalescingTransport(wire, asyncio.get_running_loop())
        for part in parts:
            joining.write(part)
            if pause:
                await asyncio.sleep(0)
        joining.close()
        return wire.written

    assert asyncio.run(answer(b"head ", b"body", b"more", pause=False)) == [b"head body", b"more", "closed"]
    assert asyncio.run(answer(b"head ", b"body", pause=True)) == [b"head ", b"body", "closed"]
    assert asyncio.run(answer(b"head ", pause=False)) == [b"head ", "closed"]


def test_endless_headers_are_refused(api):
    with connect(api) as one:
        one.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000)
        assert b" 431 " in one.recv(1000)


# --- one and many processes, and the end


def test_a_port_that_is_taken_is_named(api):
    with pytest.raises(DTQError, match=f"cannot listen on 127.0.0.1:{api.port}"):
        APIServer("queue.db", port=api.port).start()


@pytest.mark.parametrize("store", ["memory:", "manager"])
def test_clustered_needs_a_store_that_others_can_open(store):
    with QueueManager("memory:") as manager, pytest.raises(DTQError, match="memory: is a store within one process"):
        APIServer(manager if store == "manager" else store, clustered=True)


class Load:
    """Clients that add tasks until they are told to stop. `lost`: requests that were sent and not answered."""

    def __init__(self, port, n):
        self.port, self.acknowledged, self.lost, self.refused = port, [], [], 0
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(n)]
        for thread in self._threads:
            thread.start()

    def _run(self):
        while not self._stopped.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT) as connection:
                    self._talk(connection)
            except ConnectionRefusedError:
                self.refused += 1
                time.sleep(0.01)

    def _talk(self, connection):
        body = b'{"type": "some"}'
        head = (
            b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        while not self._stopped.is_set():
            answer = b""
            try:
                connection.sendall(head % len(body) + body)
                while not answer.endswith(b"}"):
                    if not (more := connection.recv(4096)):
                        raise ConnectionResetError
                    answer += more
            except OSError as error:
                self.lost.append(error)
                return
            assert b" 201 " in answer[:20], answer
            self.acknowledged.append(json.loads(answer.rpartition(b"\r\n")[2])["id"])
            if b"connection: close" in answer:
                return

    def stop(self):
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def test_a_stop_drops_no_request_and_frees_the_port_at_once(tmp_path):
    with QueueManager(tmp_path / "queue.db") as manager:
        api = APIServer(manager, port=0).start()
        load = Load(api.port, 8)
        for _ in range(3):
            while len(load.acknowledged) < 50:
                time.sleep(0.01)
            api.stop()
            api = APIServer(manager, port=api.port).start()
            load.acknowledged.clear()
        load.stop()
        api.stop()
        assert load.lost == []


def test_a_process_that_starts_leaves_the_shared_socket_as_it_is(tmp_path, monkeypatch):
    """If it blocked for a moment, another process could hang in `accept` and serve no more requests."""
    listener, seen, startup = listen("127.0.0.1", 0), [], uvicorn.Server.startup
    os.set_blocking(listener.fileno(), False)  # as a process that serves already has it

    async def watched(self, sockets=None):
        seen.extend(os.get_blocking(one.fileno()) for one in [*sockets, listener])
        await startup(self, sockets)

    monkeypatch.setattr(uvicorn.Server, "startup", watched)
    with QueueManager(tmp_path / "queue.db") as manager, closing(Rates(None, 0)) as rates:
        app = create_app(manager, ServerConfig(), rates)
        runner = ServerThread(Server(lambda on_state: app, listener))
        runner.start()
        runner.stop()
    assert seen == [False, False]


@long_and_hourly("seconds", 3, 30)
@pytest.mark.parametrize("url", ["sqlite:///{}/queue.db", "file:{}/queue", "valkey"])
def test_processes_that_are_killed_lose_no_task_that_was_acknowledged(tmp_path, url, seconds):
    """Each second, one of four processes is killed."""
    if url == "valkey":
        url = servers.url_of("valkey")
    url = url.format(tmp_path if url.startswith("file") else f"/{tmp_path}".replace("//", "/"))
    with APIServer(url, port=0, clustered=True) as api:
        load, kills, until = Load(api.port, 8), 0, time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(1)
            os.kill(api.pids()[kills % len(api.pids())], signal.SIGKILL)
            kills += 1
        load.stop()
        assert api._cluster.restarts > 0
    with QueueManager(url) as manager:
        there = {task.id for start in range(0, len(load.acknowledged), 500) for task in
                 manager.store.get(load.acknowledged[start : start + 500])}  # fmt: skip
    assert set(load.acknowledged) - there == set()
    assert load.acknowledged
    assert load.refused == 0
    assert len(load.lost) <= 8 * kills  # those of the killed ones
    print(f"{len(load.acknowledged)} acknowledged, {kills} kills, {len(load.lost)} connections lost")


def test_dtq_serve_says_where_it_is_and_ends_cleanly(tmp_path):
    (tmp_path / "tokens").write_text(f"# who may what\nread {'r' * 20}\n{'a' * 20}\n")
    command = [sys.executable, "-c", "from dtq.cli import app; app()", "serve", "queue.db", "--port=0", "--workers=2"]
    process = subprocess.Popen(
        [*command, "--token-file=tokens"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            line = process.stdout.readline()
            url = line.split()[1].rstrip(",")
            ask = lambda token: httpx.get(f"{url}stats", headers={"Authorization": f"Bearer {token}"}).status_code  # noqa: E731
            assert (ask("r" * 20), ask("a" * 20), ask("b" * 20)) == (200, 200, 401)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=WAIT)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, ""), err
    assert "stopping" in err


def delete_when_waited_for(manager, id):
    give_up_at = time.monotonic() + WAIT
    while not manager._waiters and time.monotonic() < give_up_at:
        time.sleep(0.01)
    time.sleep(0.1)  # the store may not have been read yet
    manager.delete(id)


def test_waiting_for_a_task_that_is_deleted_is_answered_404_and_a_client_that_leaves_is_forgotten(tmp_path):
    with QueueManager(tmp_path / "q.db") as manager, APIServer(manager, port=0) as api:
        id, url = manager.add("a", delay=60).id, f"{api.url}/tasks"
        threading.Thread(target=delete_when_waited_for, args=(manager, id)).start()
        assert problem(httpx.get(f"{url}/{id}/wait?timeout=30", timeout=10), 404)["detail"].startswith(f"task {id} was")
        id = manager.add("a", delay=60).id
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{url}/{id}/wait?timeout=30", timeout=0.3)
        give_up_at = time.monotonic() + 10
        while manager._waiters:
            assert time.monotonic() < give_up_at, "its place is kept"
            time.sleep(0.01)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_wait_that_is_cancelled_while_it_is_registered_waits_no_more(is_known):
    """The thread that registers it goes on for a while: it hangs in the store."""
    entered, go_on = threading.Event(), threading.Event()

    class SlowManager(QueueManager):
        def get(self, task_id):
            entered.set()
            assert go_on.wait(WAIT)
            return super().get(task_id)

    async def cancel_early(manager, id):
        state, gone = AppState(manager), asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(state.wait_for_end(id, WAIT, gone))
        await asyncio.to_thread(entered.wait, WAIT)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()
        await state.close()
        await asyncio.to_thread(state._threads.shutdown)

    with SlowManager("memory:") as manager:
        asyncio.run(cancel_early(manager, manager.add("a", delay=60).id if is_known else "unknown"))
        assert not manager._waiters, "the future is kept until the task ends"
