"""The `dtq` command as a shell sees it: what it prints, and its exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil

DTQ = [sys.executable, "-c", "from dtq.cli import app; app()"]
WAIT = 60


def dtq(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DTQ, *arguments], capture_output=True, text=True, timeout=WAIT, check=False)


def test_the_demo_ends_with_a_table_and_nothing_lost():
    told = dtq("demo", "--tasks", "30")
    assert (told.returncode, told.stderr) == (0, "")
    assert "kill -9" in told.stdout
    assert "Nothing was lost: 43 tasks" in told.stdout
    rows = [line.replace("│", " ").split() for line in told.stdout.splitlines() if "│" in line]
    assert rows[0][:3] == ["image", "30", "3"]
    assert rows[1] == ["moody", "10", "0", "20"]


def test_the_version_is_told():
    assert dtq("--version").stdout.startswith("dtq ")


def test_help_needs_nothing_but_the_command_itself():
    code = "import sys, dtq.cli; print({'PIL', 'pandas', 'dtq.demo', 'rich.progress'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_what_cannot_be_is_said_in_one_line(tmp_path):
    for store, words in (("foo://x", "'foo://x' names no store"), (str(tmp_path / "no" / "q.db"), "cannot be opened")):
        told = dtq("demo", "--tasks", "1", "--store", store)
        assert told.returncode == 2
        assert told.stderr.startswith("dtq demo: ")
        assert words in told.stderr
        assert "Traceback" not in told.stderr
    assert dtq("demo", "--tasks", "0").returncode == 2


def test_an_interrupt_ends_the_workers_too():
    process = subprocess.Popen(
        [*DTQ, "demo", "--tasks", "2000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    give_up_at = time.monotonic() + WAIT
    while len(family := psutil.Process(process.pid).children(recursive=True)) < 3:
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT)
    assert process.returncode == 130
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in family)
