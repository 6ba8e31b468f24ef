"""Adding: which tasks a store accepts, and what `add` returns for them."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from dtq.errors import InvalidTask
from dtq.stores.protocol import Store
from dtq.task.model import Webhook
from dtq.testing.conformance.kit import NOW, done, end, everything, expect, ids, job, jobs, promise, refused, take, the


@promise("add")
def check_ids_come_back_in_order(store: Store) -> None:
    """add returns the ids of the tasks, in the order of its argument."""
    expect(store.add(jobs("c a b")), ["c", "a", "b"], "ids")
    expect(store.add([]), [], "ids of no tasks")


@promise("add")
def check_a_new_task_is_pending_at_version_1(store: Store) -> None:
    """A task that waits for nothing is stored as pending, at version 1."""
    store.add([job("a")])
    expect((str(the(store, "a").status), the(store, "a").version), ("pending", 1), "status and version")


@promise("add")
def check_a_taken_id_gives_the_task_that_has_it(store: Store) -> None:
    """Adding an id again changes nothing and returns the same id."""
    store.add([job("a", payload="first")])
    expect(store.add([job("a", payload="second"), job("b")]), ["a", "b"], "ids")
    expect(the(store, "a").payload, "first", "payload of the task that was there")
    expect(store.stats().counts["pending"], 2, "pending tasks")


@promise("add")
def check_a_taken_key_gives_the_task_that_has_it(store: Store) -> None:
    """Adding a key again stores nothing and returns the id of the task that has the key."""
    store.add([job("a", key="order-1")])
    expect(store.add([job("b", key="order-1"), job("c", key="order-2")]), ["a", "c"], "ids")
    expect(store.get(["b"]), [], "the task that was not stored")


@promise("add")
def check_a_key_is_held_beyond_the_end_of_its_task(store: Store) -> None:
    """A finished task still holds its key: what was done once is not done again."""
    store.add([job("a", key="order-1")])
    end(store, *map(done, take(store)))
    expect(store.add([job("b", key="order-1")]), ["a"], "ids")
    expect(ids(take(store)), [], "claimed")


@promise("add")
def check_ids_and_keys_are_taken_within_one_call_too(store: Store) -> None:
    """Of several tasks with the same id or key in one call, the first is stored and stands for all."""
    expect(store.add([job("a", key="k"), job("b", key="k"), job("a"), job("c")]), ["a", "a", "a", "c"], "ids")
    expect(ids(take(store)), ["a", "c"], "claimed")


@promise("add")
def check_an_unknown_parent_is_refused_and_nothing_stored(store: Store) -> None:
    """A task that names an unknown parent is InvalidTask, and the call stores none of its tasks."""
    refused(
        InvalidTask, "add with an unknown parent", lambda: store.add([job("a", key="k"), job("b", after=("missing",))])
    )
    expect(everything(store), [], "tasks in the store")
    expect(store.add([job("c", key="k")]), ["c"], "ids of a later call with the same key")


@promise("add")
def check_a_payload_comes_back_as_it_was(store: Store) -> None:
    """Text in all scripts, nesting, large and small numbers, true, false and null survive the store."""
    payload = {
        "text": "naïve 漢字 🎉 \"quoted\" 'single' \\ \x00 \u2028 \n", "": [],
        "no": None, "yes": True, "list": [[1, [2, {}]], "x"],
        "whole": [2**53 + 1, 2**63 - 1, -(2**63), 0, -1], "real": [0.1, 1e308, 5e-324, -0.5],
    }  # fmt: skip
    store.add([job("a", payload=payload)])
    expect(the(store, "a").payload, payload, "payload from get")
    expect(take(store)[0].payload, payload, "payload from claim")


@promise("add")
def check_an_empty_payload_is_not_a_missing_one(store: Store) -> None:
    """None, False, 0, empty text, list and object come back as themselves."""
    payloads: dict[str, Any] = {"a": None, "b": False, "c": 0, "d": "", "e": [], "f": {}}
    store.add([job(id, payload=payload) for id, payload in payloads.items()])
    expect(repr({task.id: task.payload for task in store.get(payloads)}), repr(payloads), "payloads")


@promise("add")
def check_all_options_come_back(store: Store) -> None:
    """Every option of a task is kept."""
    webhook = Webhook("https://example.org/hook", ("failed",), "main")
    task = job(
        "a", type="mail.send", queue="q:1", priority=-7, max_attempts=9, timeout=1.5, retry_delay=0.25,
        retry_backoff="linear", retry_jitter=0.5, retry_cap=77.0, key="k €", limit_key="tenant ü", after=("p",),
        on_parent_failure="run", expires=NOW + 9, webhook=webhook, run_at=NOW + 0.125, created_at=NOW - 0.5,
    )  # fmt: skip
    store.add([job("p"), task])
    expect(the(store, "a"), replace(task, status="blocked", version=1), "task from get")
