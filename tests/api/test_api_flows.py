"""Over HTTP what is beyond the single task: flows, dead letters, schedules, limits, webhooks."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")
import httpx

from dtq import APIServer, QueueManager, TaskQueue
from dtq.task.model import Webhook

TOKENS = {f"{scope}-of-a-good-length": scope for scope in ("read", "submit", "admin")}
GRAPH = {"load": {"type": "load", "payload": 3}, "sum": {"type": "sum", "after": ["load"]}}


@pytest.fixture
def manager(tmp_path):
    with QueueManager(tmp_path / "queue.db") as manager:
        yield manager


@pytest.fixture
def client(manager):
    with APIServer(manager, port=0) as api, httpx.Client(base_url=api.url, timeout=30) as client:
        yield client


def good(answer, status=200):
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


def refused(answer, status, *words):
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert all(word in answer.text for word in words), answer.text


def fail(manager, *types):
    """Adds a task of each type, and has all of them fail."""

    def broken(payload, context):
        raise ValueError("never")

    with TaskQueue(manager.store, dict.fromkeys(types, broken), executor="inline") as queue:
        ids = [queue.add(type, max_attempts=1).id for type in types]
        queue.join(timeout=30)
    return ids


# --- flows


def test_a_flow_is_added_and_runs_in_its_order(tmp_path):
    handlers = {"load": lambda payload, context: payload, "sum": lambda payload, context: 2 * context.parents["load"]}
    with (
        TaskQueue(tmp_path / "queue.db", handlers, executor="inline") as queue,
        APIServer(queue, port=0) as api,
        httpx.Client(base_url=api.url, timeout=30) as client,
    ):
        answer = client.post("/flows", json={"id": "night", "steps": GRAPH})
        assert good(answer, 201)["tasks"].keys() == {"load", "sum"}
        assert good(client.get("/tasks/night.sum/wait"))["result"] == 6
        state = good(client.get(answer.headers["location"]))
    assert (state["status"], state["progress"], state["counts"]["completed"]) == ("completed", 100, 2)
    assert state["tasks"] == {"load": "completed", "sum": "completed"}


def test_a_flow_that_is_there_is_given_cancelled_and_retried(client, manager):
    first = good(client.post("/flows", json={"id": "night", "steps": GRAPH}), 201)
    assert good(client.post("/flows", json={"id": "night", "steps": GRAPH}), 201) == first
    assert manager.stats().total == 2
    assert good(client.post("/flows/night/cancel"))["status"] == "cancelled"
    assert good(client.post("/flows/night/retry"))["tasks"] == {"load": "pending", "sum": "blocked"}
    refused(client.get("/flows/day"), 404, "day")


@pytest.mark.parametrize(
    ("flow", "status", "words"),
    [
        ({"steps": {"a": {"type": "x", "after": ["b"]}, "b": {"type": "x", "after": ["a"]}}}, 409, ["cycle"]),
        ({"steps": {"a": {"type": "x", "after": ["missing"]}}}, 409, ["missing"]),
        ({"steps": {}}, 422, ["steps"]),
        ({"steps": {"a": {"type": "x", "id": "mine"}}}, 422, ["id"]),
        ({"steps": {"a": {"type": "x", "payload": eval("[" * 70 + "]" * 70)}}}, 422, ["nested arrays and objects"]),
        ({"id": "a.b", "steps": GRAPH}, 422, ["id"]),
    ],
)
def test_a_flow_that_cannot_be_is_refused_and_nothing_is_stored(client, manager, flow, status, words):
    refused(client.post("/flows", json=flow), status, *words)
    assert manager.stats().total == 0


# --- dead letters


def test_dead_letters_are_looked_at_redriven_and_purged(client, manager):
    first, second, third = fail(manager, "a", "a", "b")
    page = good(client.get("/dead", params={"limit": 2}))
    assert [task["id"] for task in page["tasks"]] == [first, second]
    assert [task["id"] for task in good(client.get(page["next"]))["tasks"]] == [third]
    assert good(client.get("/dead/errors", params={"type": "a"})) == {"ValueError": 2}
    assert good(client.get(f"/dead/{first}"))["error"]["message"] == "never"
    assert good(client.post("/dead/redrive", json={"type": "a", "limit": 1})) == {"ids": [first]}
    refused(client.get(f"/dead/{first}"), 404, "pending")
    assert good(client.post("/dead/redrive", json={"ids": [second, first]})) == {"ids": [second]}
    assert good(client.post("/dead/purge", json={"age": 3600})) == {"removed": 0}
    assert good(client.post("/dead/purge", json={"all": True})) == {"removed": 1}
    assert [task.id for task in manager.find()] == [first, second]


@pytest.mark.parametrize("path", ["/dead/redrive", "/dead/purge"])
def test_all_dead_letters_are_meant_only_by_whoever_says_so(client, manager, path):
    fail(manager, "a")
    refused(client.post(path, json={}), 422, "all")
    refused(client.post(path, json={"ids": ["x"], "type": "a"}), 422, "not both")
    assert len(manager.dead) == 1


# --- schedules


def test_a_schedule_is_put_looked_at_paused_and_removed(client, manager):
    new = {"task": {"type": "report", "payload": {"of": "yesterday"}}, "cron": "0 6 * * *", "tz": "Europe/Berlin"}
    made = good(client.put("/schedules/morning", json=new))
    assert (made["name"], made["tz"], made["task"]["payload"]) == ("morning", "Europe/Berlin", {"of": "yesterday"})
    shown = good(client.get("/schedules/morning"))
    assert shown["upcoming"] == [at.timestamp() for at in manager.schedules.upcoming("morning")]
    assert shown["upcoming"][0] == made["next_at"]
    assert good(client.post("/schedules/morning/pause"))["paused"]
    assert good(client.get("/schedules/morning"))["upcoming"] == []
    assert good(client.put("/schedules/morning", json={**new, "cron": "0 7 * * *"}))["paused"]
    assert good(client.post("/schedules/morning/resume"))["cron"] == "0 7 * * *"
    assert [one["name"] for one in good(client.get("/schedules"))] == ["morning"]
    good(client.delete("/schedules/morning"), 204)
    refused(client.get("/schedules/morning"), 404, "morning")
    assert good(client.get("/schedules")) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cron": "* * *"}, "cron"), ({"every": 30}, "cron"), ({"tz": "Mars"}, "tz"), ({"misfire": "never"}, "misfire"),
        ({"task": {"type": "a", "key": "k"}}, "key"), ({"task": {"type": "a", "id": "i"}}, "id"),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_be_is_refused(client, manager, changes, field):
    refused(client.put("/schedules/some", json={"task": {"type": "a"}, "cron": "* * * * *", **changes}), 422, field)
    assert list(manager.schedules) == []


# --- limits


def test_a_limit_is_put_shown_and_removed(client, manager):
    limit = good(client.put("/limits", json={"type": "email", "key": "*", "rate": 5, "max_running": 2}))
    assert (limit["rate"], limit["burst"], limit["max_running"]) == (5, 1, 2)
    assert (
        good(client.put("/limits", json={"type": "email", "key": "*", "rate": 10.0, "burst": 4.0}))["max_running"] == 2
    )
    manager.pause("email")
    assert len(good(client.get("/limits"))) == 2
    good(client.delete("/limits", params={"type": "email", "key": "*"}), 204)
    assert [limit.paused for limit in manager.limits()] == [True]


@pytest.mark.parametrize("limit", [{"type": "email"}, {"rate": -1}, {"type": "a b", "rate": 1}, {"max_running": 1.5}])
def test_a_limit_that_cannot_be_is_refused(client, manager, limit):
    refused(client.put("/limits", json=limit), 422)
    assert manager.limits() == []


# --- webhooks


def test_a_task_tells_a_webhook(client, manager):
    webhook = {"url": "https://shop.example.org/hook?of=7", "events": ["failed"], "secret": "shop"}
    added = good(client.post("/tasks", json={"type": "some", "webhook": webhook}), 201)
    assert manager.get(added["id"]).webhook == Webhook(webhook["url"], ("failed",), "shop")
    headers = {"Idempotency-Key": "once"}
    first = good(client.post("/tasks", json={"type": "some", "webhook": webhook}, headers=headers), 201)
    assert good(client.post("/tasks", json={"type": "some", "webhook": webhook}, headers=headers))["id"] == first["id"]
    refused(client.post("/tasks", json={"type": "some"}, headers=headers), 409, "another body")


@pytest.mark.parametrize("url", ["ftp://a/b", "https://user:password@a/b", "https://", "javascript:alert(1)", 7])
def test_an_address_that_cannot_be_told_is_refused(client, url):
    refused(client.post("/tasks", json={"type": "some", "webhook": {"url": url}}), 422, "webhook.url")


SIGNED = b'{"type": "some", "webhook": {"url": "https://a.example/b", "\\u0073ecret": "shop"}}'


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tasks", SIGNED), ("/tasks", b"[%s]" % SIGNED), ("/flows", b'{"steps": {"a": %s}}' % SIGNED),
    ],
)  # fmt: skip
def test_a_secret_signs_for_admins_only(manager, path, body):
    """Who may have anything signed, and sent anywhere, could pass for this queue."""
    headers = {"Content-Type": "application/json"}
    with APIServer(manager, port=0, token=TOKENS) as api:
        refused(httpx.post(api.url + path[1:], content=body, headers=headers | bearer("submit")), 403, "admin")
        assert manager.stats().total == 0
        good(httpx.post(api.url + path[1:], content=body, headers=headers | bearer("admin")), 201)
        unsigned = {"type": "some", "webhook": {"url": "https://a.example/b"}}
        good(httpx.post(f"{api.url}tasks", json=unsigned, headers=bearer("submit")), 201)


def bearer(scope):
    return {"Authorization": f"Bearer {scope}-of-a-good-length"}


def test_who_may_only_read_changes_nothing(manager):
    asks = [
        ("POST", "flows", {"steps": GRAPH}), ("POST", "flows/x/cancel", {}), ("POST", "dead/redrive", {"all": True}),
        ("POST", "dead/purge", {"all": True}), ("PUT", "limits", {"rate": 1}), ("DELETE", "limits", None),
        ("PUT", "schedules/x", {"task": {"type": "a"}, "every": 5}), ("DELETE", "schedules/x", None),
    ]  # fmt: skip
    with APIServer(manager, port=0, token=TOKENS) as api:
        for method, path, body in asks:
            refused(httpx.request(method, api.url + path, json=body, headers=bearer("read")), 403, "scope")
        for path in ("dead", "dead/errors", "schedules", "limits"):
            good(httpx.get(api.url + path, headers=bearer("read")))
