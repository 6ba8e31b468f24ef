"""Figures agree with their data, and describe it for readers who cannot see them."""

from __future__ import annotations

import html
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dtq import TaskQueue, lab
from dtq.lab import figures
from dtq.lab.curves import ecdf, left_over, predict, scaling
from dtq.lab.fit import Law

WAIT = 20.0
WORKERS = [1, 2, 4, 8, 16]


@pytest.fixture
def shown(monkeypatch):
    displayed = []
    monkeypatch.setattr(figures, "display", lambda data, **options: displayed.append(data))
    return displayed


@pytest.fixture
def latencies():
    return pd.DataFrame({"arm": ["threads"] * 100 + ["processes"] * 100, "latency": [*range(1, 101), *range(101, 201)]})


@pytest.fixture
def runs():
    """Three runs for each number of workers, of which the middle one obeys the law exactly."""
    n = np.repeat(WORKERS, 3)
    return pd.DataFrame({"workers": n, "throughput": Law(100, 0.1, 0.004)(n) * np.tile([0.98, 1, 1.02], len(WORKERS))})


def alt(output):
    found = re.search(r'<img alt="([^"]*)"', output["text/html"])
    return found.group(1)


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


# --- what all figures share


def test_the_stamp_counts_the_runs(shown, runs):
    scaling(runs)
    scaling(runs.iloc[1:])
    ecdf(pd.DataFrame({"arm": ["a", "a"], "repeat": [1, 2], "latency": [[1.0] * 9, [2.0] * 9]}), "latency", "arm")
    counts = [re.search(r"dtq [\d.]+, (.*)</small>", output["text/html"]).group(1) for output in shown]
    assert counts == ["3 runs each", "2 to 3 runs each", "2 runs each"]


def test_words_are_escaped(shown):
    ecdf(pd.DataFrame({"a<b": [1.0], "arm": ['<i>"x']}), "a<b", "arm")
    assert "<i>" not in shown[0]["text/html"]
    assert "&lt;i&gt;&quot;x" in alt(shown[0])


def test_sizes_follow_matplotlibs_settings(shown, runs):
    """Instructor mode sets them in one place."""
    with plt.rc_context({"font.size": 23, "figure.figsize": (14, 7), "lines.markersize": 17}):
        axes = scaling(runs)
    assert axes.xaxis.label.get_size() == 23
    assert axes.figure.get_size_inches().tolist() == [14, 7]
    assert axes.containers[0].lines[0].get_markersize() == 17


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1234.5, "1,234"), (100.0, "100"), (99.44, "99.4"), (0.012345, "0.0123"), (0, "0"), (-2e6, "-2,000,000")],
)
def test_numbers_have_the_digits_that_matter(value, expected):
    assert figures.number(value) == expected


def test_nothing_to_draw_is_said(runs, latencies):
    for draw in (
        lambda: scaling(runs.iloc[:0]),
        lambda: ecdf(latencies.iloc[:0], "latency"),
        lambda: predict(None, None, runs.iloc[:0], "workers", "throughput"),
    ):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw()


# --- gantt, depth


def test_figures_of_a_run_tell_what_happened(shown):
    with TaskQueue("memory:", {"work": "queue_handlers:sleep_if_asked", "fail": "queue_handlers:fail"}, 2) as queue:
        recorder = lab.Recorder(queue)
        queue.add_many({"type": "work", "payload": 0.01} for _ in range(40))
        queue.add("fail", max_attempts=1)
        queue.join(WAIT)
        queue.events.close()
    figures.gantt(recorder, room="lab")
    figures.depth(recorder)
    gantt, depth = shown
    assert re.match(r"Gantt chart: 41 attempts on 2 workers \(40 completed, 1 failed\) within [\d.]+ s;", alt(gantt))
    assert "store MemoryStore, start fork, room lab" in gantt["text/html"]
    assert gantt["text/html"].count("<tr") == 3  # the head and a row for each worker
    assert re.match(r"Line chart: up to \d+ tasks wait and up to [12] run; 41 have ended after", alt(depth))
    assert depth["text/html"].count("<tr") <= figures.ROWS + 1
    assert re.search(r"<td>0</td>\s*<td>0</td>\s*<td>41</td>\s*</tr>\s*</tbody>", depth["text/html"])


def test_faults_are_marked_where_and_when_they_hit(shown):
    with TaskQueue("memory:", {"work": "queue_handlers:sleep_if_asked"}, 2) as queue:
        recorder, fault = lab.Recorder(queue), lab.fault(queue)
        queue.add_many({"type": "work", "payload": 0.3, "retry_delay": 0} for _ in range(4))
        frozen = fault.freeze()
        fault.thaw()
        killed = fault.kill()
        queue.join(WAIT)
        marks = fault.marks(recorder.began)
        axes = figures.gantt(recorder, marks)
    drawn = {label.partition(" ")[0]: line for label, line in lines(axes).items()}
    lanes = [label.get_text() for label in axes.get_yticklabels()]
    assert {"freeze", "thaw", "kill"} <= drawn.keys()
    assert {"freeze (1)", "thaw (1)", "kill (1)"} <= {text.get_text() for text in axes.figure.legends[0].get_texts()}
    for kind, worker in (("freeze", frozen), ("kill", killed)):
        assert drawn[kind].get_ydata()[0] == pytest.approx(lanes.index(worker) + 0.45)
    assert [drawn[kind].get_xdata()[0] for kind in ("freeze", "thaw", "kill")] == [seconds for seconds, _ in marks]
    assert re.search(rf"Faults: freeze {frozen} at [\d.]+ s, thaw at [\d.]+ s, kill {killed} at", alt(shown[0]))
    assert re.search(rf"(?s)<td>{killed}</td>.*kill at [\d.]+ s</td>", shown[0]["text/html"])
    assert re.search(r"(?s)<td>all</td>.*<td>thaw at [\d.]+ s</td>", shown[0]["text/html"])


def test_the_table_of_a_gantt_has_a_cell_of_faults_for_each_worker_and_no_holes(shown):
    with TaskQueue("memory:", {"work": "queue_handlers:sleep_if_asked"}, 2) as queue:
        recorder = lab.Recorder(queue)
        queue.add_many({"type": "work", "payload": 0.2} for _ in range(4))
        queue.join(WAIT)
        figures.gantt(recorder, [(0.1, "freeze w2"), (0.2, "thaw"), (0.3, "kill w2")])
    rows = re.findall(r"<td>([^<]*)</td>\s*</tr>", shown[0]["text/html"])
    assert rows == ["", "freeze at 0.1 s, kill at 0.3 s", "thaw at 0.2 s"]


def test_a_mark_after_the_last_attempt_and_of_a_worker_that_ended_none_is_in_sight(shown):
    with TaskQueue("memory:", {"work": "queue_handlers:nothing"}, 1) as queue:
        recorder = lab.Recorder(queue)
        queue.add("work").result(WAIT)
        axes = figures.gantt(recorder, [(70.0, "kill w9")])
    assert axes.get_xlim()[1] > 70
    assert "<td>kill w9 at 70 s</td>" in shown[0]["text/html"]


def test_a_recorder_that_heard_nothing_has_nothing_to_draw():
    with TaskQueue("memory:", {"work": "queue_handlers:nothing"}, 1) as queue:
        recorder = lab.Recorder(queue)
        for draw in (figures.gantt, figures.depth):
            with pytest.raises(ValueError, match="nothing to draw"):
                draw(recorder)


# --- ecdf


def test_the_ecdf_shows_the_share_at_or_below_each_value(shown, latencies):
    drawn = lines(ecdf(latencies, "latency", "arm"))
    x, y = drawn["threads"].get_data()
    assert [y[x <= value].max() for value in (1, 50, 99, 100)] == pytest.approx([0.01, 0.5, 0.99, 1])
    assert drawn["processes"].get_xdata()[1:].tolist() == [*range(101, 201)]
    assert "threads: half at or below 50.5, 99 % at or below 99 (of 100)" in alt(shown[0])


def test_lists_of_values_are_unpacked_and_what_is_missing_is_left_out(shown):
    frame = pd.DataFrame({"latency": [[1.0, 2.0], [3.0], None]})
    axes = ecdf(frame, "latency", log=True, labels={"latency": "latency (ms)"})
    assert lines(axes)["latency"].get_xdata()[1:].tolist() == [1, 2, 3]
    assert (axes.get_xlabel(), axes.get_xscale()) == ("latency (ms)", "log")
    assert "(of 3)" in alt(shown[0])


# --- scaling


def test_scaling_shows_medians_intervals_the_fit_and_the_ideal(shown, runs):
    axes = scaling(runs)
    points, _, _ = axes.containers[0].lines
    assert points.get_xdata().tolist() == WORKERS
    assert points.get_ydata() == pytest.approx(Law(100, 0.1, 0.004)(WORKERS))
    drawn = lines(axes)
    n, fitted = drawn["USL"].get_data()
    assert fitted == pytest.approx(Law(100, 0.1, 0.004)(n), rel=0.01)
    n, ideal = drawn["USL, ideal"].get_data()
    assert ideal == pytest.approx(100 * n, rel=0.01)
    assert re.search(r"rate \d+[\d.]*, sigma 0\.10\d, kappa 0\.00\d+; highest at workers 15\.\d", alt(shown[0]))


def test_amdahl_has_no_highest_point(shown, runs):
    axes = scaling(runs[runs["workers"] < 16], fit="amdahl")
    assert "Amdahl" in lines(axes)
    assert "kappa 0; no highest point" in alt(shown[0])


def test_each_group_has_its_own_fit(shown, runs):
    both = pd.concat([runs.assign(pool="threads"), runs.assign(pool="processes", throughput=runs["throughput"] * 2)])
    drawn = lines(scaling(both, by="pool"))
    assert drawn["processes USL"].get_ydata() == pytest.approx(2 * drawn["threads USL"].get_ydata(), rel=1e-6)
    assert drawn["processes USL"].get_linestyle() != drawn["threads USL"].get_linestyle()
    assert shown[0]["text/html"].count("<tr") == 2 * len(WORKERS) + 1


def test_a_law_that_is_not_known_is_refused(runs):
    with pytest.raises(ValueError, match="fit is 'gustafson'; allowed: usl, amdahl"):
        scaling(runs, fit="gustafson")


# --- predict


def test_guess_theory_and_measurement_are_overlaid(shown, runs):
    axes = predict(dict.fromkeys(WORKERS, 300), lambda n: 100 * n, runs, "workers", "throughput")
    drawn = lines(axes)
    assert drawn["guess"].get_ydata().tolist() == [300] * 5
    assert drawn["theory"].get_ydata().tolist() == [100, 200, 400, 800, 1600]
    text = shown[0]["text/plain"]
    assert text.partition(". ")[2] in html.unescape(shown[0]["text/html"])
    assert "Theory is typically off by 35%, and within the interval for 1 of 5." in text
    assert "Most is left over at workers 16: measured 462 (453 to 472)" in text
    assert "1,138 less than the 1,600 of theory" in text


def test_what_is_left_over_is_a_table_to_assert_on(runs):
    table = left_over({1: 90, 2: ...}, {2: 150.0}, runs, "workers", "throughput")
    assert [*table.columns] == ["workers", "guess", "theory", "runs", "median", "low", "high", "left"]
    assert table["guess"].isna().tolist() == [False, True, True, True, True]
    assert table.loc[1, "left"] == pytest.approx(Law(100, 0.1, 0.004)(2) - 150)


def test_without_a_guess_the_figure_still_stands(shown, runs):
    axes = predict(None, None, runs, "workers", "throughput")
    assert "guess" not in lines(axes)
    assert "Your guess: none yet. Theory: none yet." in alt(shown[0])


def test_values_of_many_sizes_may_have_a_logarithmic_axis(runs):
    assert predict(None, lambda n: 100 * n, runs, "workers", "throughput", log=True).get_yscale() == "log"


def test_arms_may_be_names(shown):
    frame = pd.DataFrame({"arm": ["a", "a", "b", "b"], "value": [1.0, 2, 5, 6]})
    axes = predict({"a": 1, "b": 2}, {"a": 1.5, "b": 7}, frame)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert lines(axes)["guess"].get_linestyle() == "None"  # between names no line leads anywhere
    assert "Most is left over at arm b: measured 5.5 (5 to 6), which is 1.5 less than the 7 of theory." in alt(shown[0])
