"""`dtq run`: a real node in its own process, with real signals; and its configuration file."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from commands import MAIN, WAIT
from typer.testing import CliRunner

from dtq import DTQError, Pool, QueueManager
from dtq.cli import app
from dtq.cli.config import Config, HandlerEntry, read
from dtq.cli.node import serve
from dtq.cli.run import _make

HANDLERS = """
import time
from pathlib import Path

def execute(payload, context):
    return {"got": payload}

def slow(payload, context):
    Path(payload["started"]).touch()
    deadline = time.monotonic() + payload["seconds"]
    while time.monotonic() < deadline and not Path(payload.get("until", "?")).exists():
        time.sleep(0.005)
    return "done"

def die(payload, context):
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)

def boom(payload, context):
    raise ValueError("no\\nway")

async def gather(payload, context):
    import asyncio
    mark = Path(payload) / context.task_id
    mark.touch()
    while len(list(Path(payload).iterdir())) < 8:
        await asyncio.sleep(0.005)
"""
TYPES = [f"--handler={name}=work:{name}" for name in ("slow", "die", "boom")] + ["--handler=echo=work.py"]


@pytest.fixture
def home(tmp_path):
    (tmp_path / "work.py").write_text(HANDLERS)
    return tmp_path


class Command:
    """A `dtq` command in its own process, in the directory `home`. It is killed at the end if it still runs."""

    def __init__(self, home, *arguments):
        environment = {**os.environ, "COLUMNS": "120"}
        environment.pop("PYTHONPATH", None)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", MAIN, *arguments], cwd=home, env=environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def end(self):
        """Return (exit code, the rest of stdout, the rest of stderr)."""
        out, err = self.process.communicate(timeout=WAIT)
        return self.process.returncode, out, err


@contextlib.contextmanager
def node(home, *arguments):
    """Start a node, and wait until it is ready."""
    with Command(home, "run", "--pool-size", "2", *(arguments or TYPES)) as command:
        command.line = command.process.stdout.readline()
        assert command.line.startswith("ready: "), command.process.stderr.read()
        yield command


def dtq(home, *arguments):
    with Command(home, *arguments) as command:
        return command.end()


def wait_until(condition):
    give_up_at = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < give_up_at, f"not true within {WAIT:g} s"
        time.sleep(0.005)


def start_slow(home, seconds=WAIT, **options):
    """Add a task, wait until it runs, and return its id."""
    started = home / "started"
    payload = {"started": str(started), "seconds": seconds, "until": str(home / "until")}
    with QueueManager(home / "queue.db") as manager:
        id = manager.add("slow", payload, timeout=2 * WAIT, **options).id
    wait_until(started.exists)
    return id


def look(home, id):
    with QueueManager(home / "queue.db") as manager:
        return manager.get(id)


# --- work


def test_a_task_added_by_another_process_runs(home):
    with node(home) as running:
        code, out, _ = dtq(home, "add", "echo", '{"n": 1}', "--wait")
        assert (code, json.loads(out)) == (0, {"got": {"n": 1}})
        running.process.send_signal(signal.SIGTERM)
        code, out, err = running.end()
    assert (code, out) == (0, "")
    assert "drained" in err


def test_the_ready_line_names_node_workers_types_and_store(home):
    with node(home) as running, QueueManager(home / "queue.db") as manager:
        (there,) = manager.stats().nodes
        expected = f"ready: node {there.id}, 2 workers, types boom, die, echo, slow, store queue.db\n"
        assert running.line == expected
        assert there.pid == running.process.pid


def test_failures_and_dead_workers_are_logged_on_stderr(home):
    with node(home) as running:
        for type in ("boom", "die"):
            assert dtq(home, "add", type, "--max-attempts", "2", "--retry-delay", "0.01", "--wait")[0] == 3
        running.process.send_signal(signal.SIGTERM)
        code, _, err = running.end()
    assert code == 0
    assert re.search(r"WARNING task \w{32} \(boom\) failed, attempt 1 of 2, .*: ValueError: no way\n", err)
    assert re.search(r"ERROR task \w{32} \(boom\) failed after 2 attempts: ValueError: no way\n", err)
    assert re.search(r"ERROR task \w{32} \(die\) failed after 2 attempts: WorkerDied", err)
    assert len(re.findall(r"WARNING worker \S+, process \d+: died \(signal 9\)\n", err)) == 2


def test_a_node_of_threads_works_too(home):
    with node(home, *TYPES, "--executor", "thread") as running:
        assert dtq(home, "add", "echo", "1", "--wait")[1] == '{"got":1}\n'
        running.process.send_signal(signal.SIGINT)
        assert running.end()[0] == 0


def test_a_node_without_workers_is_ready_too(home):
    with Command(home, "run", "--pool-size", "0", *TYPES) as command:
        assert ", 0 workers, " in command.process.stdout.readline()
        command.process.send_signal(signal.SIGTERM)
        assert command.end()[0] == 0


# --- end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_running_tasks_finish_and_starts_no_other(home, number):
    with node(home) as running:
        id = start_slow(home)
        running.process.send_signal(number)
        assert "draining" in running.process.stderr.readline()
        with QueueManager(home / "queue.db") as manager:
            later = manager.add("echo").id
        (home / "until").touch()
        assert running.end()[0] == 0
    assert (look(home, id).status, look(home, id).result) == ("completed", "done")
    assert (look(home, later).status, look(home, later).attempts) == ("pending", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_returns_running_tasks_to_the_queue_uncounted(home, number):
    with node(home) as running:
        id = start_slow(home)
        below = psutil.Process(running.process.pid).children(recursive=True)
        running.process.send_signal(number)
        assert "draining" in running.process.stderr.readline()
        began = time.monotonic()
        running.process.send_signal(number)
        code, _, err = running.end()
    assert code == 1
    assert "returned to the queue: 1" in err
    assert time.monotonic() - began < 10
    assert psutil.wait_procs(below, timeout=WAIT)[1] == []
    task = look(home, id)
    assert (task.status, task.attempts, task.interruptions) == ("pending", 0, 0)


def test_two_signals_at_once_force_the_end(home):
    with node(home) as running:
        start_slow(home)
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGINT)
        assert running.end()[0] == 1


def test_after_the_grace_running_tasks_return_to_the_queue(home):
    with node(home, *TYPES, "--grace", "0.1") as running:
        id = start_slow(home)
        running.process.send_signal(signal.SIGTERM)
        code, _, err = running.end()
    assert code == 1
    assert "0.1 s" in err
    assert (look(home, id).status, look(home, id).attempts) == ("pending", 0)


def test_a_node_without_work_ends_at_once(home):
    with node(home) as running:
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 0
    assert time.monotonic() - began < 5


def test_another_node_takes_over_from_one_that_was_killed(home):
    with node(home) as first:
        id = start_slow(home)
        first.process.kill()
        first.end()
    (home / "until").touch()
    with node(home), QueueManager(home / "queue.db") as manager:
        assert manager.wait_for(id, WAIT).result == "done"
        assert manager.get(id).interruptions == 1


def test_a_loop_that_fails_ends_the_node_with_2(home, monkeypatch, caplog):
    path = home / "work.py"
    node = _make(Config(store=str(home / "queue.db"), handlers={"echo": str(path)}, pool_size=1, executor="thread"))
    monkeypatch.setattr(node._loop, "turn", lambda now: 1 / 0)
    with caplog.at_level(logging.CRITICAL, "dtq"):
        assert serve(node, 1) == 2


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "tgkill"), reason="a signal to a thread of another process")
def test_a_signal_to_another_thread_wakes_the_node_too(home):
    """The kernel may choose any thread for a signal. Here it must choose one that is not the main thread."""
    with node(home) as running:
        (other, *_) = [thread.id for thread in psutil.Process(running.process.pid).threads()][1:]
        ctypes.CDLL(None).tgkill(running.process.pid, other, signal.SIGTERM)
        assert running.end()[0] == 0


# --- the file


def test_every_setting_of_a_file_reaches_the_node(home):
    path = home / "dtq.toml"
    path.write_text("""
        store = "sqlite:///queue.db"
        executor = "thread"
        lease = 20
        max_tasks_per_worker = 100
        auto_cleanup = false
        cleanup_age = 60.0
        max_result = 1000
        [handlers]
        echo = "work.py"
        gather = { handler = "work:gather", concurrency = 100 }
        [pools.urgent]
        size = 1
        min_priority = 5
        queues = ["mail"]
        [pools.rest]
    """)
    assert read(path) == Config(
        store=f"sqlite:///{home}/queue.db", executor="thread", lease=20.0, max_tasks_per_worker=100,
        auto_cleanup=False, cleanup_age=60.0, max_result=1000,
        handlers={"echo": HandlerEntry(f"{home}/work.py"), "gather": HandlerEntry("work:gather", 100)},
        pools={"urgent": Pool(1, ("mail",), 5), "rest": Pool(4)},
    )  # fmt: skip


def test_a_node_from_a_file_works_from_any_directory(home, tmp_path_factory):
    """Its paths and modules are beside the file, and one worker runs eight calls at once."""
    (home / "dtq.toml").write_text("""
        store = "queue.db"
        [handlers]
        echo = "work.py"
        gather = { handler = "work:gather", concurrency = 8 }
        [pools.only]
        size = 1
    """)
    marks = tmp_path_factory.mktemp("marks")
    with Command(marks, "run", "--config", str(home / "dtq.toml")) as running:
        assert f", 1 worker, types echo, gather, store {home}/queue.db\n" in running.process.stdout.readline()
        with QueueManager(home / "queue.db") as manager:
            handles = manager.add_many([{"type": "gather", "payload": str(marks)}] * 8)
            assert [handle.result(WAIT) for handle in handles] == [None] * 8
            assert manager.add("echo", 1).result(WAIT) == {"got": 1}
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 0


def test_options_override_the_file(home):
    config = Config(lease=20, pool_size=1, handlers={"a": "x:y", "b": "x:y"}, secrets={"shop": "OLD"})
    given = config.with_options(
        {"b": HandlerEntry("z:z")}, {"shop": "NEW"}, lease=5.0, pool_size=None, auto_cleanup=False
    )
    handlers = {"a": "x:y", "b": HandlerEntry("z:z")}
    assert given == Config(lease=5.0, pool_size=1, auto_cleanup=False, handlers=handlers, secrets={"shop": "NEW"})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("pool = 4", "unknown key pool; allowed: store, handlers, pool_size, pools, executor, lease"),
        ("[pools.a]\nsise = 1", "unknown key pools.a.sise; allowed: size, queues, min_priority"),
        ('[handlers]\na = { path = "x" }', "unknown key handlers.a.path; allowed: handler, concurrency"),
        ("lease = true", "$.lease"),
        ("cleanup_age = -1", "$.cleanup_age"),
        ('executor = "inline"', "executor is 'inline'; allowed: 'process', 'thread'"),
        ("pools = 4", "$.pools"),
        ("[handlers]\na = 4", "$.handlers"),
        ('[pools.a]\nqueues = "mail"', "$.pools"),
        ("lease = = 1", "line 1"),
        ("\udcff", "utf-8"),
    ],
)
def test_an_error_in_a_file_is_named(home, text, named):
    path = home / "dtq.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DTQError, match=re.escape(named)) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--handler TYPE=WHERE"),
        (["--config", "not_there.toml"], "not_there.toml cannot be read: No such file"),
        (["--handler", "echo"], "--handler is 'echo'; allowed: TYPE=path/to/handler.py"),
        (["--handler", "a b=work.py"], "type is 'a b'"),
        (["--handler", "echo=not_there.py"], "there is no file"),
        (["--handler", "echo=not_there:echo"], "there is no module 'not_there'"),
        (["--handler", "echo=not a name"], "allowed: a function"),
        (["--handler", "echo=work.py", "--store", "not/there/queue.db"], "cannot be opened"),
        (["--handler", "echo=work.py", "--store", "nosuch://"], "names no store"),
        (["--config", "pools.toml", "--pool-size", "1"], "pool_size is for a node without [pools]"),
        (["--config", "bad.toml"], "lease is 100000.0"),
        (["--handler", "echo=work.py", "--lease", "0"], "--lease"),
        (["--executor", "inline"], "inline"),
    ],
)
def test_a_node_that_could_not_work_does_not_start(home, monkeypatch, arguments, named):
    (home / "pools.toml").write_text('[handlers]\necho = "work.py"\n[pools.a]\nsize = 1\n')
    (home / "bad.toml").write_text('lease = 100000\n[handlers]\necho = "work.py"\n')
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", [*sys.path])
    result = CliRunner().invoke(app, ["run", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert named in result.stderr
    assert "Traceback" not in result.stderr
