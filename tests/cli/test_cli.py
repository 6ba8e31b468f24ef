"""The `dtq` command: its exit codes, what it prints and where, and that it leaves nothing behind.

`dtq run` is in test_cli_run.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections import Counter

import psutil
import pytest
from commands import MAIN, TYPES, WAIT, Store, run, start
from typer.testing import CliRunner

import dtq
from dtq import QueueManager, TaskQueue, cli
from dtq.cli import app, common, demo, look


def rows(out):
    """Return the numbers of the table by type: completed, failed, attempts."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    return {name: tuple(map(int, numbers)) for name, *numbers in cells}


@pytest.fixture(scope="module")
def printed():
    """Return what a demo of twenty pictures prints when stdout is not a terminal."""
    code, out, err = run("demo", "--tasks", "20", "--workers", "2")
    assert (code, err) == (0, "")
    return out


def test_the_demo_loses_nothing_and_reports_it(printed):
    table = rows(printed)
    assert table["demo-picture"][:2] == (20, 0)
    assert table["demo-corrupt"] == (0, demo.CORRUPTS, 2 * demo.CORRUPTS)
    assert table["demo-flaky"][:2] == (demo.FLAKIES, 0)
    assert table["demo-flaky"][2] >= 2 * demo.FLAKIES - 1  # the kill may replace a failure
    assert "Nothing was lost: 33 tasks" in printed.splitlines()[-1]


@pytest.fixture
def free_port_taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.long
def test_the_demo_over_http_has_the_same_outcome():
    code, out, err = run("demo", "--tasks", "5", "--workers", "2", "--api", "--port", "0")
    assert (code, err) == (0, "")
    assert re.search(r"http://127\.0\.0\.1:\d+/ shows the queue", out)
    assert "Nothing was lost: 18 tasks were added" in out


def test_the_demo_names_a_port_that_is_taken(free_port_taken):
    code, _, err = run("demo", "--tasks", "1", "--workers", "1", "--api", "--port", str(free_port_taken))
    assert code == 2
    assert f"cannot listen on 127.0.0.1:{free_port_taken}" in err


def test_the_demo_reports_the_worker_that_it_kills(printed):
    kill, death, replacement = [line for line in printed.splitlines() if line.startswith(("kill", "worker"))]
    assert kill.startswith("kill -9")
    assert death.endswith("died of signal 9")
    assert "is replaced by process" in replacement


@pytest.mark.long
@pytest.mark.parametrize("workers", ["1", "20"])
def test_a_demo_of_one_picture_is_complete(workers):
    code, out, _ = run("demo", "--tasks", "1", "--workers", workers)
    assert code == 0, out


def test_in_a_terminal_bars_move_and_each_worker_has_a_line():
    code, out, err = run("demo", "--tasks", "10", "--workers", "2", FORCE_COLOR="1", TERM="xterm")
    assert (code, err) == (0, "")
    assert "23 of 23 ended" in out
    assert "w1" in out
    assert "w2" in out


def test_without_a_terminal_the_demo_prints_plain_lines(printed):
    assert "\x1b" not in printed
    assert "30 done, 3 failed, 0 retrying" in printed


def test_the_demo_leaves_the_tasks_of_a_store_in_use_alone(tmp_path):
    store = str(tmp_path / "queue.db")
    with QueueManager(store) as manager:
        mine = manager.add(demo.PICTURE, {"n": 1})
    code, out, _ = run("demo", "--tasks", "3", "--workers", "2", "--store", store)
    assert code == 0, out
    with QueueManager(store) as manager:
        assert (manager.get(mine.id).status, manager.get(mine.id).version) == ("pending", 1)
        assert manager.stats().unfinished == 1


def test_an_unexpected_outcome_of_the_demo_is_exit_code_1(monkeypatch):
    monkeypatch.setattr(demo, "_expected", lambda n: Counter({(demo.PICTURE, "completed"): n + 1}))
    result = CliRunner().invoke(app, ["demo", "--tasks", "2", "--workers", "2"])
    assert result.exit_code == 1
    assert "demo-picture: 2 completed, expected 3" in result.stdout
    assert "Nothing was lost" not in result.stdout


def test_the_version_is_printed():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"dtq {dtq.__version__}\n")


@pytest.mark.parametrize(
    "options",
    [["--tasks", "0"], ["--tasks", "100001"], ["--tasks", "many"], ["--workers", "0"], ["--workers", "101"], ["--no"]],
)
def test_an_option_out_of_its_range_is_refused(options):
    result = CliRunner().invoke(app, ["demo", *options])
    assert result.exit_code == 2
    assert options[0] in result.stderr


@pytest.mark.parametrize("store", ["nosuch://store", "{}/is/not/there/queue.db", "sqlite:///"])
def test_a_store_that_cannot_be_opened_is_one_line(store, tmp_path):
    result = CliRunner().invoke(app, ["demo", "--store", store.format(tmp_path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("dtq demo: ")
    assert result.stderr.count("\n") == 1


def test_without_pillow_the_demo_names_the_package_to_install():
    code, _, err = run("demo", code=f"import sys; sys.modules['PIL'] = None; {MAIN}")
    assert code == 2
    assert 'pip install "dtq[lab]"' in err
    assert err.count("\n") == 1


def test_without_the_handler_the_demo_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "HANDLER", tmp_path / "process_image.py")
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 2
    assert f"there is no {tmp_path}" in result.stderr
    assert 'pip install -e ".[lab]"' in result.stderr


def test_ctrl_c_ends_the_demo_and_its_workers_and_removes_its_tasks(tmp_path):
    store = str(tmp_path / "queue.db")
    process = start("demo", "--tasks", "2000", "--workers", "2", "--store", store)
    line = ""
    while "tasks/s" not in line:  # the first line about the tasks: the work has begun
        line = process.stdout.readline()
        assert line, process.stderr.read()
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=WAIT)
    assert (process.returncode, err) == (130, "interrupted: the workers have ended\n")
    assert len(below) >= 2
    assert psutil.wait_procs(below, timeout=WAIT)[1] == []
    with QueueManager(store) as manager:
        assert manager.stats().unfinished == 0


def test_help_loads_no_module_that_only_some_commands_need():
    heavy = "{'dtq.cli.demo', 'dtq.cli.views', 'rich.live', 'rich.progress', 'PIL', 'jupyterlab'}"
    code = f"""
import sys
from typer.testing import CliRunner
from dtq.cli import app
assert "rich" not in sys.modules
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
print(*sorted({heavy} & sys.modules.keys()))
"""
    assert run(code=code) == (0, "\n", "")


# --- tasks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["queue.db", "sqlite:///{}/queue.db", "file:{}/queue"])
def any_store(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Store(request.param.format(tmp_path))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "queue.db")


@pytest.fixture
def ended(store):
    """A store with two completed and three failed tasks."""
    store.ok("add", "--file", "-", input='{"type": "double", "payload": 4}\n' * 2)
    store.ok("add", "--file", "-", "--max-attempts", "1", input='{"type": "fail"}\n' * 3)
    store.work()
    return store


# --- add


def test_add_stores_every_option(any_store):
    parent = any_store.ok("add", "first").strip()
    options = {
        "--queue": "mail", "--priority": "7", "--max-attempts": "5", "--timeout": "1.5", "--retry-delay": "0.5",
        "--retry-backoff": "linear", "--delay": "60", "--expires-in": "120", "--key": "k", "--limit-key": "tenant",
        "--after": parent,
    }  # fmt: skip
    id = any_store.ok("add", "email", '{"to": ["ada"]}', *(word for pair in options.items() for word in pair)).strip()
    task = any_store.task(id)
    expected = {
        "type": "email", "payload": {"to": ["ada"]}, "queue": "mail", "priority": 7, "max_attempts": 5, "timeout": 1.5,
        "retry_delay": 0.5, "retry_backoff": "linear", "key": "k", "limit_key": "tenant", "after": [parent],
        "status": "blocked",
    }  # fmt: skip
    assert {name: task[name] for name in expected} == expected
    assert task["run_at"] == pytest.approx(task["created_at"] + 60)
    assert task["expires"] == pytest.approx(task["created_at"] + 120)


def test_adding_a_taken_key_prints_the_id_of_its_task(store):
    assert store.ok("add", "a", "--key", "k") == store.ok("add", "b", "--key", "k")
    assert len(store.tasks()) == 1


def test_a_dash_reads_the_payload_from_stdin(store):
    assert store.task(store.ok("add", "a", "-", input='["x", null]').strip())["payload"] == ["x", None]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "TYPE"),
        (["a", "{no json"], "PAYLOAD is '{no json'"),
        (["a", "[" * 5000], "PAYLOAD"),
        (["a b"], "type is 'a b'"),
        (["a", "--priority", "1001"], "priority is 1001"),
        (["a", "--retry-backoff", "never"], "never"),
        (["a", "--after", "unknown"], "unknown"),
        (["a", "--delay", "-1"], "delay"),
        (["--file", "-", "--key", "k"], "--key"),
        (["--file", "-", "--wait"], "--wait"),
        (["a", "1", "--file", "-"], "PAYLOAD"),
        (["--file", "is/not/there.jsonl"], "is/not/there.jsonl"),
    ],
)
def test_a_task_that_cannot_be_added_is_exit_code_2_and_named(store, arguments, named):
    result = store.dtq("add", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert named in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_is_added_in_order_with_the_options_as_defaults(store, tmp_path):
    path = tmp_path / "tasks.jsonl"
    lines = [{"payload": n, **({"type": "other", "queue": "own"} if n == 1 else {})} for n in range(2500)]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    result = store.dtq("add", "mine", "--file", str(path), "--queue", "bulk")
    assert (result.exit_code, result.stderr) == (0, "added: 2,500\n")
    tasks = store.tasks()
    assert [task["id"] for task in tasks] == result.stdout.split()
    assert [task["payload"] for task in tasks] == list(range(2500))
    assert {(task["type"], task["queue"]) for task in tasks} == {("mine", "bulk"), ("other", "own")}


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("no json", "one JSON object"),
        ("[]", "one JSON object"),
        ("\xff", "one JSON object"),
        ('{"typ": 1}', "'typ'"),
        ('{"type": "a", "priority": 1.5}', "priority is 1.5"),
    ],
)
@pytest.mark.parametrize(("before", "code"), [(0, 2), (999, 2), (1000, 1)])
def test_an_error_in_a_file_names_the_line_and_keeps_the_batches_before_it(store, before, line, named, code):
    text = '{"type": "a"}\n' * before + line + "\n" + '{"type": "a"}\n' * 3
    result = store.dtq("add", "--file", "-", input=text.encode("latin-1"))
    assert result.exit_code == code
    assert f", line {before + 1}: " in result.stderr
    assert named in result.stderr
    assert len(result.stdout.split()) == (1000 if code == 1 else 0)
    assert f"added: {'1,000' if code == 1 else '0'}\n" in result.stderr
    assert len(store.tasks()) == len(result.stdout.split())


def test_an_error_of_a_whole_batch_names_the_batch(store):
    result = store.dtq("add", "a", "--file", "-", input='{"after": ["unknown"]}\n{}\n')
    assert result.exit_code == 2
    assert "the batch that ends with line 2: " in result.stderr
    assert "unknown" in result.stderr


def test_add_wait_prints_only_the_result_as_json_on_stdout(store):
    with TaskQueue(store, TYPES, executor="thread"):
        result = store.dtq("add", "double", '"ab"', "--wait")
    assert (result.exit_code, result.stdout) == (0, '"abab"\n')
    assert result.stderr.strip() == store.tasks()[0]["id"]


def test_add_wait_is_exit_code_3_for_a_failed_task(store):
    with TaskQueue(store, TYPES, executor="thread"):
        result = store.dtq("add", "fail", "--max-attempts", "1", "--wait")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "(fail) failed: ZeroDivisionError" in result.stderr


def test_add_wait_is_exit_code_3_for_a_cancelled_task(store):
    with TaskQueue(store, TYPES, executor="thread"):
        result = store.dtq("add", "double", "1", "--delay", "0.1", "--expires-in", "0", "--wait")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "was cancelled" in result.stderr


def test_add_wait_times_out_with_exit_code_4_and_the_task_stays(store):
    result = store.dtq("add", "double", "--wait-timeout", "0.01")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "still pending after 0.01 s" in result.stderr
    assert [task["status"] for task in store.tasks()] == ["pending"]


def test_ctrl_c_while_waiting_is_exit_code_130_and_the_task_stays(store):
    process = start("add", "double", "--wait", "--store", store)
    id = process.stderr.readline().strip()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=WAIT)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert store.task(id)["status"] == "pending"


# --- look


EXISTING = [["get", "x"], ["list"], ["stats"], ["cancel", "x"], ["retry", "x"], ["purge", "--yes"]]
EXISTING += [["pause", "q"], ["resume", "q"]]


@pytest.mark.parametrize("command", EXISTING, ids=lambda command: command[0])
def test_a_command_about_an_existing_queue_creates_none(any_store, tmp_path, command):
    (tmp_path / "queue").mkdir()
    result = any_store.dtq(*command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"there is no queue at {str(any_store)!r}" in result.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["queue"]


@pytest.mark.parametrize("command", [*EXISTING, ["add", "a"], ["run", "--handler", "a=json:dumps"]], ids=lambda c: c[0])
def test_a_memory_store_is_refused(command):
    result = Store("memory:").dtq(*command)
    assert result.exit_code == 2
    assert "memory:" in result.stderr


@pytest.mark.parametrize("url", ["nosuch://store", "sqlite:///", "file:", "{}/is/not/there/queue.db"])
@pytest.mark.parametrize("command", [["list"], ["add", "a"]], ids=lambda command: command[0])
def test_a_url_that_names_no_store_is_one_line_of_error(tmp_path, url, command):
    result = Store(url.format(tmp_path)).dtq(*command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"dtq {command[0]}: ")
    assert result.stderr.count("\n") == 1


def test_the_environment_names_the_store_and_the_option_overrides_it(store, tmp_path, monkeypatch):
    monkeypatch.setenv("DTQ_STORE", store)
    id = CliRunner().invoke(app, ["add", "a"]).stdout.strip()
    assert store.task(id)["type"] == "a"
    assert CliRunner().invoke(app, ["list", "--store", str(tmp_path / "other.db")]).exit_code == 2


def test_get_shows_everything_about_a_task(ended):
    id = ended.tasks("--status", "failed")[0]["id"]
    shown = ended.ok("get", id)
    for part in (id, "failed", "default", "payload", "ZeroDivisionError: division by zero", "failed attempts", "UTC"):
        assert part in shown
    done = ended.tasks("--status", "completed")[0]["id"]
    assert "result\n8\n" in ended.ok("get", done)


def test_get_json_is_the_whole_task(ended):
    id = ended.tasks("--status", "failed")[0]["id"]
    with QueueManager(ended) as manager:
        task = manager.get(id)
    given = ended.task(id)
    assert given.keys() == set(task.__struct_fields__)
    assert (given["status"], given["attempts"], given["error"]["type"]) == ("failed", 1, "ZeroDivisionError")
    assert len(given["history"]) == 1


def test_control_characters_of_a_task_do_not_reach_the_terminal(store):
    id = store.ok("add", "a", json.dumps({"\x1b[2J": "\x9b2J [red]no markup[/red]"})).strip()
    shown = store.ok("get", id)
    assert not {"\x1b", "\x9b"} & set(shown)
    assert "[red]no markup[/red]" in shown


def test_an_unknown_id_is_exit_code_1(ended):
    result = ended.dtq("get", "unknown")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no task has the id 'unknown'" in result.stderr


def test_list_filters_and_pages(ended, monkeypatch):
    monkeypatch.setattr(look, "BRIEF_PER_PAGE", 2)
    ids = [task["id"] for task in ended.tasks()]
    assert len(ids) == 5
    assert [task["id"] for task in ended.tasks("--after", ids[1])] == ids[2:]
    assert {task["status"] for task in ended.tasks("--type", "double")} == {"completed"}
    assert {task["type"] for task in ended.tasks("--status", "failed")} == {"fail"}
    assert ended.tasks("--queue", "other") == []
    first = [json.loads(line)["id"] for line in ended.ok("list", "--json", "--limit", "3").splitlines()]
    assert first == ids[:3]


def test_the_table_of_list_has_whole_ids_and_names_the_option_for_more(ended):
    ids = [task["id"] for task in ended.tasks()]
    result = ended.dtq("list", "--limit", "4")
    assert [id in result.stdout for id in ids] == [True] * 4 + [False]
    assert "ZeroDivisionError" in result.stdout
    assert f"--after {ids[3]}" in result.stderr
    assert ended.dtq("list", "--limit", "6").stderr == ""


def test_an_unknown_status_is_refused(ended):
    result = ended.dtq("list", "--status", "lost")
    assert result.exit_code == 2
    assert "lost" in result.stderr


def test_stats_counts_by_queue_and_shows_workers_and_the_oldest_task(ended):
    ended.ok("add", "double", "--queue", "mail")
    ended.ok("pause", "mail")
    with TaskQueue(ended, TYPES, pool_size=3, executor="thread") as queue:
        queue.add("double", 1).result(WAIT)
        given = json.loads(ended.ok("stats", "--json"))
        shown = ended.ok("stats")
    assert given["queues"]["default"]["failed"] == 3
    assert given["counts"]["pending"] == 1
    assert given["workers"]["total"] == 3
    assert [node["id"] for node in given["nodes"]] == [queue.node]
    assert given["at"] > given["oldest"] > 0
    for part in (
        "default",
        "mail (paused)",
        queue.node,
        "double, fail",
        "workers: 3",
        "the oldest task has waited for",
    ):
        assert part in shown


@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["stats", "--json"]])
def test_a_closed_output_is_no_error_message(ended, command):
    process = start(*command, "--store", ended)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(WAIT), err) == (1, "")


# --- change


def test_cancel_ends_waiting_tasks_and_is_exit_code_1_if_one_cannot_be(ended):
    waits = ended.ok("add", "double").strip()
    done = ended.tasks("--status", "completed")[0]["id"]
    result = ended.dtq("cancel", done, "unknown", waits)
    assert (result.exit_code, result.stdout) == (1, waits + "\n")
    assert f"task {done} is completed" in result.stderr
    assert "'unknown'" in result.stderr
    assert ended.task(waits)["status"] == "cancelled"


def test_retry_revives_failed_tasks_and_is_exit_code_1_if_one_cannot_be(ended):
    failed, *_ = [task["id"] for task in ended.tasks("--status", "failed")]
    done = ended.tasks("--status", "completed")[0]["id"]
    assert ended.ok("retry", failed) == failed + "\n"
    assert (ended.task(failed)["status"], ended.task(failed)["attempts"]) == ("pending", 0)
    result = ended.dtq("retry", done)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"task {done} is completed" in result.stderr


def test_purge_removes_the_selected_tasks_and_prints_how_many(ended):
    assert ended.dtq("purge", "--yes").stderr == "removed: 0\n"  # no task is a day old
    assert ended.dtq("purge", "--age", "0", "--status", "completed", "--yes").stderr == "removed: 2\n"
    assert {task["status"] for task in ended.tasks()} == {"failed"}
    assert ended.dtq("purge", "--age", "0", "--yes").stderr == "removed: 3\n"


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 1, 5), ("", 1, 5)])
def test_purge_asks_first(ended, answer, code, left):
    result = ended.dtq("purge", "--age", "0", input=answer)
    assert (result.exit_code, result.stdout) == (code, "")
    assert "There are 0 cancelled, 2 completed, 3 failed." in result.stderr
    assert len(ended.tasks()) == left


def test_purge_of_unfinished_tasks_is_refused(ended):
    result = ended.dtq("purge", "--status", "pending", "--yes")
    assert result.exit_code == 2
    assert "pending" in result.stderr


def test_a_paused_queue_waits_until_it_is_resumed(store):
    ids = [store.ok("add", "double", "1", "--queue", queue).strip() for queue in ("mail", "other")]
    store.ok("pause", "mail")
    with TaskQueue(store, TYPES, executor="thread") as queue:
        queue.wait_for(ids[1], WAIT)
        assert store.task(ids[0])["status"] == "pending"
        store.ok("resume", "mail")
        queue.wait_for(ids[0], WAIT)


# --- the rest


def test_lab_opens_the_tour_in_jupyterlab(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execv", lambda *call: calls.append(call))
    assert CliRunner().invoke(app, ["lab", "--", "--no-browser"]).exit_code == 0
    assert calls == [(sys.executable, [sys.executable, "-m", "jupyterlab", str(cli.TOUR), "--no-browser"])]
    assert cli.TOUR.is_file()


def test_lab_names_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert 'pip install -e ".[lab]"' in CliRunner().invoke(app, ["lab"]).stderr
    monkeypatch.setattr(cli, "TOUR", tmp_path / "tour.ipynb")
    result = CliRunner().invoke(app, ["lab"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"there is no {tmp_path}/tour.ipynb" in result.stderr


def test_help_lists_every_exit_code_and_command():
    shown = CliRunner().invoke(app, ["--help"]).stdout
    for word in (
        "0  done",
        "1  ",
        "2  ",
        "3  ",
        "4  ",
        "130  interrupted",
        *(n for f in cli.FAMILIES.values() for n in f),
    ):
        assert word in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("dtq list --status ", {str(status) for status in dtq.Status}),
        ("dtq purge --status c", {"completed", "cancelled"}),
        ("dtq add --retry-backoff ", {"exponential", "linear", "constant"}),
        ("dtq re", {"retry", "resume"}),
    ],
)
def test_the_shell_completes_values(words, expected):
    environment = {"_DTQ_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": words}
    _, out, err = run(**environment)
    assert err == ""
    assert set(out.replace('"', " ").replace(":", " ").split()) >= expected


@pytest.mark.parametrize(
    ("url", "anchored"),
    [
        ("queue.db", "/srv/queue.db"),
        ("/tmp/queue.db", "/tmp/queue.db"),
        ("sqlite:///a/b.db?durability=relaxed", "sqlite:////srv/a/b.db?durability=relaxed"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("file:queue?persistence_interval=1", "file:/srv/queue?persistence_interval=1"),
        ("file:/a", "file:/a"),
        ("file:///a", "file:///a"),
        ("memory:", "memory:"),
        ("redis://host/0", "redis://host/0"),
        ("sqlite:///", "sqlite:///"),
    ],
)
def test_a_url_is_anchored_at_a_directory(url, anchored, tmp_path):
    assert common.anchor(url, common.Path("/srv")) == anchored
