"""`dtq dead` and `dtq flow` on the command line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from dtq import QueueManager
from dtq.cli import app
from dtq.stores.protocol import Node
from dtq.task.model import ErrorInfo
from dtq.task.transitions import fail, succeed


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "q.db")


def run(store, *words, stdin=""):
    """Run the command. Return (exit code, stdout, stderr)."""
    done = CliRunner().invoke(app, [*words, "--store", store], input=stdin)
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def dead(store):
    """The ids of three failed tasks, of types a, b, b."""
    with QueueManager(store) as manager:
        ids = [manager.add(type).id for type in "abb"]
        manager.store.heartbeat(Node("n"), (), 30, 1.0)
        tasks = manager.store.claim("n", 9, 30, manager.clock(), {"a", "b"})
        errors = {"a": ErrorInfo("OSError", "no"), "b": ErrorInfo("WorkerDied", "gone", signal=11)}
        manager.store.update([(fail(task, errors[task.type], 5.0, lambda: 0, final=True), ()) for task in tasks])
    return ids


def test_dead_letters_are_listed_by_filter(store, dead):
    listed = run(store, "dead", "list", "--error", "WorkerDied", "--json")
    assert (listed[0], [json.loads(line)["id"] for line in listed[1].splitlines()]) == (0, dead[1:])
    assert dead[0] in run(store, "dead", "list", "--type", "a")[1]
    assert run(store, "dead", "list", "--within", "60", "--json")[1] == ""


def test_a_dead_letter_is_shown_with_its_attempts_and_signal(store, dead):
    code, out, _ = run(store, "dead", "show", dead[1], "--json")
    assert (code, json.loads(out)["history"][0]["error"]["signal"]) == (0, 11)
    assert "WorkerDied" in run(store, "dead", "show", dead[1])[1]
    code, _, err = run(store, "dead", "show", "unknown")
    assert (code, "unknown" in err) == (1, True)


def test_dead_letters_are_redriven_by_id_or_by_filter(store, dead):
    code, out, err = run(store, "dead", "redrive", dead[0], "unknown")
    assert (code, out.split(), "unknown is not a dead letter" in err) == (1, [dead[0]], True)
    assert run(store, "dead", "redrive", "--type", "b", "--rate", "1")[1].split() == dead[1:]
    with QueueManager(store) as manager:
        assert manager.stats().counts["pending"] == 3
        assert manager.get(dead[2]).run_at - manager.get(dead[1]).run_at == pytest.approx(1)


@pytest.mark.parametrize("words", [["redrive"], ["purge"], ["redrive", "x", "--all"], ["purge", "x", "--type", "a"]])
def test_dead_letters_must_be_selected_in_one_way(store, dead, words):
    assert run(store, "dead", *words)[0] == 2


def test_purge_asks_and_removes(store, dead):
    assert run(store, "dead", "purge", "--all", stdin="n\n")[0] == 1
    assert "removed: 1" in run(store, "dead", "purge", "--type", "a", "--yes")[2]
    assert "removed: 2" in run(store, "dead", "purge", "--all", stdin="y\n")[2]


GRAPH = json.dumps({"load": {"type": "a"}, "sum": {"type": "b", "payload": 1, "after": ["load"]}})


def test_a_flow_is_added_shown_cancelled_and_retried(store, tmp_path):
    (tmp_path / "graph.json").write_text(GRAPH)
    code, out, _ = run(store, "flow", "add", str(tmp_path / "graph.json"), "--id", "night")
    assert (code, out) == (0, "night\n")
    assert run(store, "flow", "add", "-", "--id", "night", stdin=GRAPH)[1] == "night\n"
    shown = json.loads(run(store, "flow", "show", "night", "--json")[1])
    assert (shown["status"], shown["tasks"]) == (
        "running",
        {"load": "pending", "sum": "blocked"},
    )
    assert "running, 0 %, 1 blocked, 1 pending" in run(store, "flow", "show", "night")[1]
    assert "cancelled: 2" in run(store, "flow", "cancel", "night")[2]
    assert "retried: 2" in run(store, "flow", "retry", "night")[2]
    with QueueManager(store) as manager:
        assert [task.status for task in manager.find()] == ["pending", "blocked"]
        (task,) = manager.store.claim("n", 9, 30, manager.clock(), {"a"})
        manager.store.update([(succeed(task, 1, 2.0), ())])
    assert "50 %, 1 pending, 1 completed" in run(store, "flow", "show", "night")[1]


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 1}', '{"a": {}}', '{"a": {"type": "t", "after": ["b"]}}'])
def test_a_file_that_is_not_a_graph_is_refused(store, text):
    code, out, err = run(store, "flow", "add", "-", stdin=text)
    assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_an_unknown_flow_is_an_error(store, dead):
    assert run(store, "flow", "show", "nothing")[0] == 1


def test_a_key_may_be_replaced_or_refused(store):
    first = run(store, "add", "a", "1", "--key", "k")[1]
    assert run(store, "add", "a", "2", "--key", "k", "--window", "60")[1] == first
    second = run(store, "add", "a", "2", "--key", "k", "--on-conflict", "replace")[1]
    assert second != first
    code, out, err = run(store, "add", "a", "3", "--key", "k", "--on-conflict", "reject")
    assert (code, out, second.strip() in err) == (2, "", True)
    assert run(store, "add", "a", "--window", "60")[0] == 2
