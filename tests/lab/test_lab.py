"""The lab: bars that move, figures that agree with the store, and a clean-up that overlooks nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from matplotlib import pyplot as plt
from PIL import Image

from dtq import StoreError, TaskCancelled, TaskQueue, lab
from dtq.stores.memory.store import MemoryStore

WAIT = 20.0


@pytest.fixture
def here():
    chapter = lab.start(0)
    yield chapter
    lab.hygiene._watches and lab.hygiene._watches.pop().end()


@pytest.fixture
def queue(here):
    with TaskQueue(
        here.path / "q.db", {"work": "queue_handlers:sleep_if_asked", "fail": "queue_handlers:fail"}, 2
    ) as queue:
        yield queue


def test_bars_move_while_tasks_run_and_the_kernel_stays_free(queue, capsys):
    seen = []
    bars = lab.progress(queue, total=20)
    bars.bars["completed"].observe(lambda change: seen.append(change["new"]), "value")
    queue.add_many({"type": "work", "payload": 0.05} for _ in range(19))
    queue.add("fail", max_attempts=1)
    bars.wait(WAIT)
    assert len(set(seen)) > 2
    assert seen == sorted(seen)
    assert (bars.bars["completed"].value, bars.bars["failed"].value) == (19, 1)
    assert bars.label.value.startswith("20 ended, 0 to go")


def test_bars_show_only_what_ended_since_they_are_there(queue):
    queue.add_many({"type": "work", "payload": 0} for _ in range(5))
    queue.join(WAIT)
    bars = lab.progress(queue, total=2)
    assert {name: bar.value for name, bar in bars.bars.items()} == {"completed": 0, "failed": 0, "to go": 2}
    queue.add("work", 0).result(WAIT)
    with pytest.raises(TimeoutError, match="1 ended, 1 to go"):
        bars.wait(0.5)
    queue.add("work", 0).cancel()
    bars.wait(WAIT)
    assert bars.bars["to go"].value == 0


def test_bars_are_shown_once_with_words_in_their_place_where_no_kernel_runs(queue, monkeypatch):
    shown = []
    monkeypatch.setattr(lab.live, "display", lambda data, **options: shown.append(data))
    bars = lab.progress(queue, total=1)
    queue.add("work", 0)
    bars.wait(WAIT)
    assert len(shown) == 1
    assert shown[0]["text/plain"] == "1 tasks"
    assert "when you run the notebook" in shown[0]["text/html"]


def test_waiting_for_bars_that_stand_still_says_what_is_left(queue):
    bars = lab.progress(queue, total=1)
    with pytest.raises(TimeoutError, match="0 ended, 1 to go"):
        bars.wait(0.1)
    queue.add("work", 0)
    bars.wait(WAIT)


def test_bars_of_a_queue_that_is_closed_end_and_tell_whoever_waits(here):
    with TaskQueue(here.path / "q.db", {"work": "queue_handlers:nothing"}, 1) as queue:
        bars = lab.progress(queue, total=1)
    with pytest.raises(StoreError):
        bars.wait(WAIT)
    lab.assert_clean()


def test_bars_end_with_their_queue_also_where_its_store_stays_open(here):
    with closing(MemoryStore()) as store, TaskQueue(store, {"work": "queue_handlers:nothing"}, 1) as queue:
        bars = lab.progress(queue, total=1)
    with pytest.raises(StoreError, match="shut down with 1 tasks to go"):
        bars.wait(WAIT)
    lab.assert_clean()


def test_figures_and_tables_agree_with_what_happened(queue):
    recorder = lab.Recorder(queue)
    queue.add_many({"type": "work", "payload": 0.01} for _ in range(10))
    queue.add("fail", max_attempts=3, retry_delay=0)
    queue.join(WAIT)
    queue.events.close()
    frame, depth = recorder.frame(), recorder.depth()
    assert frame["outcome"].value_counts().to_dict() == {"completed": 10, "retried": 2, "failed": 1}
    assert (frame["seconds"] >= 0).all()
    assert set(frame["task"]) == {task.id for task in queue.find()}
    assert (depth[["waiting", "running", "ended"]] >= 0).all().all()
    assert depth.iloc[-1][["waiting", "running", "ended"]].tolist() == [0, 0, 11]
    axes = lab.gantt(recorder)
    assert sum(len(bars) for bars in axes.containers) == len(frame)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time (s)", "worker")
    assert lab.depth(recorder).get_xlabel() == "time (s)"
    assert plt.get_fignums() == []


def test_depth_is_never_negative_and_its_time_runs_forward(queue):
    """A worker may begin with a task before its `add` has told of it, and reads the clock for itself."""
    recorder = lab.Recorder(queue)
    for _ in range(300):
        queue.add("work", 0)
    queue.join(WAIT)
    queue.events.close()
    depth = recorder.depth()
    assert depth[["waiting", "running", "ended"]].min().min() >= 0
    assert depth["seconds"].is_monotonic_increasing
    assert depth.iloc[-1][["waiting", "running", "ended"]].tolist() == [0, 0, 300]


def test_what_was_cancelled_before_it_began_is_no_attempt(queue):
    recorder = lab.Recorder(queue)
    queue.add("work", 0, delay=60).cancel()
    running = queue.add("work", 60)
    queue.once("task:started", lambda event: running.cancel())
    with pytest.raises(TaskCancelled):
        running.result(WAIT)
    queue.events.close()
    frame, depth = recorder.frame(), recorder.depth()
    assert frame[["task", "attempt", "outcome"]].values.tolist() == [[running.id, 1, "cancelled"]]
    assert depth.iloc[-1][["waiting", "running", "ended"]].tolist() == [0, 0, 2]


def test_the_chart_shows_each_worker_in_its_lane_and_where_one_was_killed(queue):
    recorder = lab.Recorder(queue)
    handle = queue.add("work", 1, retry_delay=0, timeout=WAIT)
    while not any(worker.task_id for worker in queue.workers()):
        time.sleep(0.01)
    victim = next(worker for worker in queue.workers() if worker.task_id)
    os.kill(victim.pid, signal.SIGKILL)
    handle.result(WAIT)
    queue.events.close()
    axes = lab.gantt(recorder)
    assert recorder.frame()["outcome"].tolist() == ["worker killed", "completed"]
    assert [line.get_marker() for line in axes.lines] == ["X"]
    assert axes.get_xlim()[0] == 0


def test_pictures_are_the_same_from_the_same_seed(tmp_path):
    first, again, other = (lab.make_images(tmp_path / name, 2, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert first[0].read_bytes() != other[0].read_bytes()
    with Image.open(first[0]) as picture:
        assert picture.size == (960, 640)


def test_a_clean_chapter_leaves_nothing(here, capsys):
    with TaskQueue(here.path / "q.db", {"work": "queue_handlers:nothing"}, 1) as queue:
        queue.add("work").result(WAIT)
    lab.assert_clean()
    assert "Clean" in capsys.readouterr().out


def test_after_the_end_of_a_chapter_its_cells_still_run_and_so_does_the_last_one(here):
    lab.assert_clean()
    assert here.path.exists()
    assert here.fresh() != here.fresh()
    assert lab.serve(TaskQueue(here.path / "q.db", {}, 1)).is_running
    lab.assert_clean()


def test_a_chapters_directory_is_gone_when_its_process_has_ended():
    code = "from dtq import lab; print(lab.start(0).path)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert not Path(done.stdout.split()[-1]).exists()


def test_a_process_that_is_left_is_found(here, monkeypatch):
    monkeypatch.setattr(lab.hygiene, "WITHIN", 0.1)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with pytest.raises(AssertionError, match=f"process {child.pid} is still running"):
        lab.assert_clean()
    child.communicate()


def test_proc_and_ps_tell_the_same_of_a_process():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    read = [lab.hygiene._from_ps(), lab.hygiene._from_proc()] if lab.hygiene.PROC.exists() else [lab.hygiene._from_ps()]
    assert {(pid, parent) for rows in read for pid, parent, _, _ in rows if pid == child.pid} == {
        (child.pid, os.getpid())
    }
    child.communicate(b"\n")
    assert child.pid not in lab.hygiene.child_processes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_failed_is_found(here):
    thread = threading.Thread(target=lambda: 1 / 0, name="worker-7")
    thread.start()
    thread.join()
    with pytest.raises(AssertionError, match="thread worker-7 failed: ZeroDivisionError"):
        lab.assert_clean()


def test_cleaning_up_what_was_never_begun_says_so():
    with pytest.raises(RuntimeError, match=r"call lab.start\(chapter\)"):
        lab.assert_clean()
