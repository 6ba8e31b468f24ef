"""The exposition: read back with prometheus-client's own parser, held against its naming rules, and summed up."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dtq.meter import Meter
from dtq.prometheus import BOUNDS, exposition
from dtq.reports import Finished, Started, WorkerInfo
from dtq.stores import Node
from dtq.stores.memory import MemoryStore
from dtq.task import ErrorInfo, Task, fail, succeed

NOW = 1000.0
STRANGE = 'a:b/c.d@e-f"\\\n'  # a host may be called anything


@pytest.fixture
def store():
    """Two nodes: the first completed two tasks and gave up one, which was overdue; the second completed one."""
    store = MemoryStore()
    store.add([Task(type="mail", id=f"t{n}", created_at=NOW, run_at=NOW, max_attempts=1) for n in range(6)])
    store.set_lane(queue="slow", paused=True)
    for name, host, ends in (("n1", "h1", ("ok", "ok", "overdue")), ("n2", STRANGE, ("ok",))):
        meter = Meter(lambda: 0.0)
        for task, end in zip(store.claim(name, len(ends), 30, NOW, {"mail"}), ends, strict=True):
            meter.hear([Started(task, "w-1", NOW), Finished(task, "w-1", NOW + 1, 0.25, None, None, "", False)])
            ended = succeed(task, 1, NOW) if end == "ok" else fail(task, ErrorInfo("Timeout"), NOW, lambda: 0.0)
            store.update([(ended, ())])
            meter.count([ended])
        workers = [WorkerInfo("w-1", 0, "idle", 0, 0, 0.0, None)]
        store.heartbeat(Node(name, host, 1, NOW, NOW, 1, 0, ("mail",), meter.reading(workers)), (), 30, NOW)
    yield store
    store.close()


def families(store):
    return {family.name: family for family in text_string_to_metric_families(exposition(store.stats()))}


def total(family, name=None, **labels):
    return sum(
        sample.value
        for sample in family.samples
        if sample.name == (name or sample.name) and labels.items() <= sample.labels.items()
    )


def test_the_exposition_parses_and_sums_right_over_nodes(store):
    found = families(store)
    assert total(found["dtq_queue_tasks"], queue="default", status="completed") == 3
    assert total(found["dtq_type_tasks"], type="mail", status="pending") == 2
    assert total(found["dtq_attempts"], outcome="completed") == 3
    assert total(found["dtq_attempts"], outcome="failed") == total(found["dtq_attempts"], node="n1", outcome="failed")
    assert total(found["dtq_attempts"]) == 4
    assert total(found["dtq_attempt_timeouts"]) == 1
    assert total(found["dtq_node_busy_seconds"]) == 4 * 0.25
    assert total(found["dtq_oldest_waiting_task_due_timestamp_seconds"]) == NOW
    assert total(found["dtq_queue_paused"], queue="slow") == 1
    assert {sample.labels["host"] for sample in found["dtq_node_workers"].samples} == {"h1", STRANGE}


def test_histograms_are_cumulative_and_exact_at_their_bounds(store):
    family = families(store)["dtq_task_execution_seconds"]
    buckets = [s for s in family.samples if s.name.endswith("_bucket") and s.labels["node"] == "n1"]
    assert [(s.labels["le"], s.value) for s in buckets] == [
        *((str(2.0**bound), 3.0 if bound >= -2 else 0.0) for bound in BOUNDS),
        ("+Inf", 3.0),
    ]
    assert total(family, "dtq_task_execution_seconds_count") == 4
    assert total(family, "dtq_task_execution_seconds_sum") == 1.0


def test_names_follow_the_conventions(store):
    """The rules of promtool's lint: help for each, `_total` for counters and nothing else, base units, no type in a
    name, nothing reserved."""
    for name, family in families(store).items():
        assert re.fullmatch(r"dtq(_[a-z]+)+", name), name
        assert family.documentation, name
        assert not name.endswith(("_total", "_count", "_sum", "_bucket", "_info")), name
        assert not re.search(r"_(gauge|counter|histogram|summary|metric|ms|minutes|hours|kb|mb|percent)(_|$)", name), (
            name
        )
        if family.type == "counter":
            assert all(sample.name == f"{name}_total" for sample in family.samples)
        elif family.type == "histogram":
            assert name.endswith("_seconds")
        for sample in family.samples:
            assert sample.labels.keys() <= {"node", "host", "queue", "type", "status", "outcome", "le"}


def test_an_empty_store_has_an_exposition_too():
    store = MemoryStore()
    found = families(store)
    store.close()
    assert found["dtq_queue_tasks"].samples == []


def test_a_node_that_publishes_nothing_is_shown_by_what_is_known(store):
    store.heartbeat(Node("bare", workers=3), (), 30, NOW)
    assert total(families(store)["dtq_node_workers"], node="bare") == 3
