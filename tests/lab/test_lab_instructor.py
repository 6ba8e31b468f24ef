"""Instructor mode: one switch makes all larger, records what went well, and shows it when a live run fails."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dtq import TaskQueue, lab
from dtq.lab import figures, recorded

WAIT = 20.0


@pytest.fixture
def shown(monkeypatch):
    displayed = []
    monkeypatch.setattr(figures, "display", lambda data, **options: displayed.append(data))
    return displayed


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Begins chapter 3 in an empty folder; leaves matplotlib as it was."""
    monkeypatch.chdir(tmp_path)

    def start(instructor):
        monkeypatch.setenv("DTQ_INSTRUCTOR", "1" if instructor else "0")
        return lab.start(3)

    with plt.rc_context():
        yield start
    if lab.hygiene._watches:
        lab.hygiene._watches.pop().end()
    recorded.use(None, 0)


def measure(workers):
    return {"throughput": np.float64(100.0 * workers), "many": [1, 2]}


def fail(workers):
    raise RuntimeError("the projector was unplugged")


def run(function):
    experiment = lab.Experiment("What more workers bring!", [1, 2, 4], function, repeats=2, warmup=0, x="workers")
    return experiment.start().wait(WAIT)


def stamp_of(output):
    return re.search("<small>(.*?)</small>", output["text/html"])[1]


def test_the_switch_makes_type_and_figures_larger_and_is_told(begin, capsys):
    assert not begin(False).instructor
    small, width = plt.rcParams["font.size"], plt.rcParams["figure.figsize"][0]
    assert "instructor" not in capsys.readouterr().out
    assert begin(True).instructor
    assert plt.rcParams["font.size"] >= 1.5 * small
    assert plt.rcParams["figure.figsize"][0] > width
    assert "instructor mode, seed 3" in capsys.readouterr().out
    begin(False)
    assert plt.rcParams["font.size"] == small


def test_the_page_is_larger_too_and_only_then(begin, monkeypatch):
    shown = []
    monkeypatch.setattr("dtq.lab.setup.display", shown.append)
    begin(False)
    begin(True)
    assert ["--jp-content-font-size1:20px" in page.html for page in shown] == [False, True]
    assert shown[0].text == shown[1].text


def test_a_complete_run_is_recorded_once_and_stands_in_for_one_that_fails(begin, shown, capsys, tmp_path):
    begin(True)
    good = run(measure).frame()
    (path,) = (tmp_path / "recorded").iterdir()
    assert path.name == "03-what-more-workers-bring.json"
    before = path.read_bytes()
    run(lambda workers: {"throughput": 1.0})
    assert path.read_bytes() == before
    frame = run(fail).frame()
    pd.testing.assert_frame_equal(frame, good)
    out = capsys.readouterr().out
    assert "the projector was unplugged" in out
    assert re.search(r"A recording from \d{4}-\d\d-\d\d is shown instead\.", out)


def test_a_recorded_figure_says_so_in_the_picture_in_its_stamp_and_in_words(begin, shown):
    begin(True)
    run(measure)
    frame = run(fail).frame()
    for draw in (
        lambda table: lab.scaling(table[table["repeat"] > 0].assign(more=1)),
        lambda table: lab.ecdf(table, "throughput", "workers"),
        lambda table: lab.predict(None, None, table, "workers", "throughput"),
    ):
        axes = draw(frame)
        assert [text.get_text() for text in axes.figure.texts] == ["recorded"]
        assert re.match(r"recorded \d{4}-\d\d-\d\d, \d+ cores, Python", stamp_of(shown[-1]))
        assert shown[-1]["text/plain"].endswith("This is a recording, not a live run.")
    lab.scaling(run(measure).frame())
    assert re.match(r"\d+ cores", stamp_of(shown[-1]))
    assert "not live" not in shown[-1]["text/plain"]


def test_the_machine_of_a_recording_is_the_one_it_was_measured_on(begin, shown):
    begin(True)
    recorded.keep("old", pd.DataFrame({"arm": ["a"], "value": [1.0]}), "64 cores, Python 3.99")
    lab.predict(None, None, recorded.recall("old").frame())
    assert "64 cores, Python 3.99, 1 runs each" in stamp_of(shown[0])


def test_outside_of_instructor_mode_nothing_is_recorded_and_failures_are_failures(begin, tmp_path):
    begin(True)
    run(measure)
    begin(False)
    with pytest.raises(lab.RunFailed, match="unplugged"):
        run(fail)
    run(lambda workers: {"throughput": 1.0})
    assert len([*(tmp_path / "recorded").iterdir()]) == 1


def test_without_a_recording_a_failure_is_a_failure_and_what_was_stopped_is_not_recorded(begin, tmp_path):
    begin(True)
    with pytest.raises(lab.RunFailed, match="unplugged"):
        run(fail)
    experiment = lab.Experiment("stopped", [1, 2, 4], measure, repeats=2)
    experiment.stop()
    experiment.start().wait(WAIT)
    assert not (tmp_path / "recorded").exists()


def test_the_log_of_faults_is_saved_and_played_again(tmp_path):
    with TaskQueue("memory:", {"work": "queue_handlers:sleep_if_asked"}, 2) as queue:
        queue.add_many({"type": "work", "payload": 0.3, "retry_delay": 0} for _ in range(6))
        first = lab.fault(queue, seed=3)
        first.freeze()
        first.thaw()
        first.save(tmp_path / "faults.json")
        again = lab.fault(queue, seed=3)
        again.play(tmp_path / "faults.json").wait(WAIT)
        queue.join(WAIT)
    assert [entry[1:] for entry in again.log] == [entry[1:] for entry in first.log]
