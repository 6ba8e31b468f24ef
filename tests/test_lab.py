"""The lab: bars that move, figures that agree with the store, and a clean-up that overlooks nothing."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from matplotlib import pyplot as plt
from PIL import Image

from dtq import TaskQueue, lab

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


def test_waiting_for_bars_that_stand_still_says_what_is_left(queue):
    bars = lab.progress(queue, total=1)
    with pytest.raises(TimeoutError, match="0 ended, 1 to go"):
        bars.wait(0.1)
    queue.add("work", 0)
    bars.wait(WAIT)


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
    assert not here.path.exists()
    assert "Clean" in capsys.readouterr().out


def test_a_process_that_is_left_is_found(here):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with pytest.raises(AssertionError, match=f"process {child.pid} lives"):
        lab.assert_clean()
    child.communicate()


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
