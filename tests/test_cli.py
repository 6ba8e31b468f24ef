"""The `dtq` command, as it is typed: exit codes, what it prints, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter

import psutil
import pytest
from typer.testing import CliRunner

import dtq
from dtq import QueueManager, demo
from dtq.cli import app

WAIT = 60.0
MAIN = "from dtq.cli import app; app(prog_name='dtq')"


def start(*arguments, code=MAIN, **environment):
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "COLUMNS": "120", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(*arguments, **options):
    """(exit code, stdout, stderr) of the command in a process of its own."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=WAIT)
    return process.returncode, out, err


def rows(out):
    """The table's numbers by type: completed, failed, attempts."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    return {name: tuple(map(int, numbers)) for name, *numbers in cells}


@pytest.fixture(scope="module")
def told():
    """What a demo of twenty pictures says where no bar can move."""
    code, out, err = run("demo", "--tasks", "20", "--workers", "2")
    assert (code, err) == (0, "")
    return out


def test_the_demo_loses_nothing_and_says_so(told):
    table = rows(told)
    assert table["demo-picture"][:2] == (20, 0)
    assert table["demo-corrupt"] == (0, demo.CORRUPTS, 2 * demo.CORRUPTS)
    assert table["demo-flaky"][:2] == (demo.FLAKIES, 0)
    assert table["demo-flaky"][2] >= 2 * demo.FLAKIES - 1  # the kill may have taken the place of a failure
    assert "Nothing was lost: 33 tasks" in told.splitlines()[-1]


def test_the_demo_tells_of_the_worker_that_it_kills(told):
    kill, death, replacement = [line for line in told.splitlines() if line.startswith(("kill", "worker"))]
    assert kill.startswith("kill -9")
    assert death.endswith("died of signal 9")
    assert "is back, as process" in replacement


@pytest.mark.parametrize("workers", ["1", "20"])
def test_one_picture_is_enough_for_the_whole_story(workers):
    code, out, _ = run("demo", "--tasks", "1", "--workers", workers)
    assert code == 0, out


def test_in_a_terminal_bars_move_and_each_worker_has_a_line():
    code, out, err = run("demo", "--tasks", "10", "--workers", "2", FORCE_COLOR="1", TERM="xterm")
    assert (code, err) == (0, "")
    assert "23 of 23 ended" in out
    assert "w1" in out
    assert "w2" in out


def test_elsewhere_plain_lines_are_printed(told):
    assert "\x1b" not in told
    assert "30 done, 3 failed, 0 retrying" in told


def test_a_store_in_use_keeps_its_tasks_and_gets_no_visitors(tmp_path):
    store = str(tmp_path / "queue.db")
    with QueueManager(store) as manager:
        mine = manager.add(demo.PICTURE, {"n": 1})
    code, out, _ = run("demo", "--tasks", "3", "--workers", "2", "--store", store)
    assert code == 0, out
    with QueueManager(store) as manager:
        assert (manager.get(mine.id).status, manager.get(mine.id).version) == ("pending", 1)
        assert manager.stats().unfinished == 1


def test_what_is_not_as_it_should_be_is_told_with_exit_code_1(monkeypatch):
    monkeypatch.setattr(demo, "_expected", lambda n: Counter({(demo.PICTURE, "completed"): n + 1}))
    result = CliRunner().invoke(app, ["demo", "--tasks", "2", "--workers", "2"])
    assert result.exit_code == 1
    assert "demo-picture: 2 completed, expected 3" in result.stdout
    assert "Nothing was lost" not in result.stdout


def test_the_version_is_said():
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


def test_without_pillow_it_says_what_to_install():
    code, _, err = run("demo", code=f"import sys; sys.modules['PIL'] = None; {MAIN}")
    assert code == 2
    assert 'pip install "dtq[lab]"' in err
    assert err.count("\n") == 1


def test_without_the_handler_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "HANDLER", tmp_path / "process_image.py")
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 2
    assert f"there is no {tmp_path}" in result.stderr
    assert 'pip install -e ".[lab]"' in result.stderr


def test_ctrl_c_ends_the_demo_and_its_workers_and_takes_its_tasks_along(tmp_path):
    store = str(tmp_path / "queue.db")
    process = start("demo", "--tasks", "2000", "--workers", "2", "--store", store)
    line = ""
    while "tasks/s" not in line:  # the first line about the work: it has begun
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


def test_help_does_not_load_what_only_the_demo_needs():
    code = "import sys; from dtq import cli; sys.exit(not {'dtq.demo', 'rich.live', 'PIL'}.isdisjoint(sys.modules))"
    assert run(code=code) == (0, "", "")
