"""The exposition: read back with prometheus-client's own parser, held against its naming rules, and summed up."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from dtq.monitor.prometheus import BOUNDS, _Families, exposition
from dtq.stores.memory.store import MemoryStore
from dtq.stores.protocol import Node
from dtq.task.model import ErrorInfo, Task
from dtq.task.transitions import fail, succeed
from dtq.workers.backend import Finished, Started, WorkerInfo
from dtq.workers.metrics.node import NodeMetrics

NOW = 1000.0
STRANGE = 'a:b/c.d@e-f"\\\n'  # a host may be called anything


@pytest.fixture
def store():
    """Two nodes: the first completed two tasks and gave up one, which was overdue; the second completed one."""
    store = MemoryStore()
    store.add([Task(type="mail", id=f"t{n}", created_at=NOW, run_at=NOW, max_attempts=1) for n in range(6)])
    store.set_lane(queue="slow", paused=True)
    for name, host, ends in (("n1", "h1", ("ok", "ok", "overdue")), ("n2", STRANGE, ("ok",))):
        meter = NodeMetrics(lambda: 0.0)
        for task, end in zip(store.claim(name, len(ends), 30, NOW, {"mail"}), ends, strict=True):
            meter.record([Started(task, "w-1", NOW), Finished(task, "w-1", NOW + 1, 0.25, None, None, "", False)])
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


# --- names

TYPES = {"counter", "gauge", "histogram", "summary"}
SHORT = {"s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d"}
NOT_BASE = {f"{prefix}{unit}" for prefix in ("milli", "micro", "nano", "kilo", "kibi", "mega", "mebi", "giga", "gibi")
            for unit in ("seconds", "bytes")} | {"minutes", "hours", "days", "weeks", "bits", "percent"}  # fmt: skip
BAD = {  # a metric for each rule that it breaks: help, type, and what its sample has behind the name
    "no_help": ("", "gauge", ""),
    "jobs": ("x", "counter", ""),
    "jobs_left_total": ("x", "gauge", ""),
    "ran_total": ("x", "histogram", "_count"),
    "left_count": ("x", "gauge", ""),
    "wait_milliseconds": ("x", "gauge", ""),
    "wait_minutes": ("x", "gauge", ""),
    "size_kb": ("x", "gauge", ""),
    "some_gauge": ("x", "gauge", ""),
    "someThing": ("x", "gauge", ""),
    "a:b": ("x", "gauge", ""),
    "labelled": ("x", "gauge", '{someLabel="x"}'),
    "within": ("x", "gauge", '{le="1"}'),
}
BAD_EXPOSITION = "".join(
    f"# HELP {name} {help}\n# TYPE {name} {type}\n{name}{end} 1\n" for name, (help, type, end) in BAD.items()
)


def lint(text):
    """The metrics that break a rule of promtool's lint: help for each, `_total` for counters and nothing else, base
    units, no type in a name, nothing reserved."""
    helped = set(re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE))
    types = re.findall(r"^# TYPE (\S+) (\S+)", text, re.MULTILINE)
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    badly_named = {name for name, type in types if name not in helped or breaks_a_rule(name, type)}
    return badly_named | {
        sample.name for sample in samples if any(is_bad_label(name, sample) for name in sample.labels)
    }


def breaks_a_rule(name, type):
    words, ending = set(name.split("_")), name.rpartition("_")[2]
    return (
        not re.fullmatch("[a-z0-9_]+", name)
        or words & (TYPES | SHORT | NOT_BASE)
        or (type == "counter") != (ending == "total")
        or ending in ("bucket", "count", "sum", "info")
    )


def is_bad_label(label, sample):
    return not re.fullmatch("[a-z_]+", label) or (label == "le" and not sample.name.endswith("_bucket"))


def promtool(text):
    """The metrics that it complains of."""
    if not shutil.which("promtool"):
        pytest.skip("needs promtool (Debian: apt-get install prometheus)")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    found = {line.partition(" ")[0] for line in done.stderr.splitlines()}
    assert bool(done.returncode) == bool(found), done.stderr
    return found


def test_names_follow_the_conventions(store):
    assert lint(exposition(store.stats())) == set()
    for name, family in families(store).items():
        assert name.startswith("dtq_")
        for sample in family.samples:
            assert sample.labels.keys() <= {"node", "host", "queue", "type", "status", "outcome", "le"}


def test_this_lint_finds_what_breaks_a_rule():
    assert lint(BAD_EXPOSITION) == set(BAD)


def test_promtool_says_nothing(store):
    assert promtool(exposition(store.stats())) == set()


def test_promtool_finds_no_more_than_this_lint():
    assert promtool(BAD_EXPOSITION) == set(BAD)


def test_the_strict_parser_of_openmetrics_takes_the_same_families(store):
    """It refuses what the other lets pass, as histograms that are not cumulative and names that clash."""
    registry = CollectorRegistry()
    registry.register(_Families(store.stats()))
    found = openmetrics.text_string_to_metric_families(generate_openmetrics(registry).decode())
    assert {family.name for family in found} == families(store).keys()


def test_an_empty_store_has_an_exposition_too():
    store = MemoryStore()
    found = families(store)
    store.close()
    assert found["dtq_queue_tasks"].samples == []


def test_a_node_that_publishes_nothing_is_shown_by_what_is_known(store):
    store.heartbeat(Node("bare", workers=3), (), 30, NOW)
    assert total(families(store)["dtq_node_workers"], node="bare") == 3
