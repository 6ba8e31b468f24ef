"""Idempotency-Key: a repeated request adds nothing, and the same key with another body is refused before it adds."""

from __future__ import annotations

import httpx
import pytest

pytest.importorskip("starlette")
import servers

from dtq import APIServer, QueueManager

ONE, TWO = {"type": "some", "payload": 1}, {"type": "some", "payload": 2}
NAMED = {"type": "some", "id": "named"}
TOKENS = ["a" * 20, "b" * 20]


@pytest.fixture(params=["memory", "sqlite", "file", "valkey"])
def manager(request, tmp_path):
    urls = {"memory": "memory:", "sqlite": f"{tmp_path}/queue.db", "file": f"file:{tmp_path}/queue"}
    with QueueManager(urls.get(request.param) or servers.url_of(request.param)) as manager:
        yield manager


@pytest.fixture
def client(manager):
    with APIServer(manager, port=0) as api, httpx.Client(base_url=api.url, timeout=60) as client:
        yield client


def send(client, body, key="order-7", **headers):
    return client.post("/tasks", json=body, headers={"Idempotency-Key": key, **headers})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ONE, TWO),
        (ONE, [ONE]),
        (ONE, {**ONE, "id": "other"}),
        (ONE, {**ONE, "delay": 60}),
        (ONE, {**ONE, "priority": 5}),
        (NAMED, {**NAMED, "id": "other"}),
        (NAMED, {**NAMED, "payload": 1}),
        ([ONE, TWO], [ONE]),
        ([ONE, TWO], ONE),
        ([ONE], [ONE, TWO]),
        (ONE, [ONE, TWO]),
        ([ONE, TWO], [ONE, TWO, TWO]),
        ([NAMED, ONE], [NAMED, ONE, TWO]),
        ([NAMED], [NAMED, {**NAMED, "id": "further"}]),
    ],
)
def test_another_body_is_refused_and_adds_nothing(client, manager, first, second):
    added = send(client, first)
    assert (added.status_code, send(client, first).status_code) == (201, 200)
    before = manager.find()
    other = send(client, second)
    assert (other.status_code, other.json()["errors"][0]["field"]) == (409, "Idempotency-Key"), other.text
    assert manager.find() == before
    assert send(client, first).status_code == 200


@pytest.mark.parametrize("body", [ONE, [ONE, ONE], NAMED, [NAMED, ONE, {**ONE, "delay": 5}]])
def test_the_same_body_returns_the_tasks_that_exist(client, manager, body):
    first, again, other = send(client, body), send(client, body), send(client, body, key="order-8")
    ids = lambda answer: [one["id"] for one in (answer.json() if isinstance(body, list) else [answer.json()])]  # noqa: E731
    assert (first.status_code, again.status_code) == (201, 200)
    assert ids(again) == ids(first)
    assert not set(ids(other)) & set(ids(first)) - {"named"}
    assert len({id[:16] for id in ids(first)}) == len(ids(first))


def test_the_order_of_the_tokens_on_the_server_does_not_matter(manager):
    found = []
    for tokens in (TOKENS, TOKENS[::-1], TOKENS):
        with APIServer(manager, port=0, token=dict.fromkeys(tokens, "submit")) as api, httpx.Client() as client:
            client.base_url = api.url
            found.append([send(client, ONE, Authorization=f"Bearer {token}").json()["id"] for token in TOKENS])
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 2  # clients never see each other's tasks
