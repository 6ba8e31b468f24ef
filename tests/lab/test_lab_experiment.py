"""Experiments are fair, seeded, and answer while they run; load comes at its times; fits find the laws behind data."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dtq import DTQError, InvalidTask, QueueManager, TaskQueue, lab
from dtq.lab import experiment
from dtq.lab.experiment import Experiment, RunFailed, plan
from dtq.lab.fit import Law, fit_amdahl, fit_usl, interval, summarise
from dtq.lab.load import arrivals, offer

WAIT = 20.0


@pytest.fixture
def shown(monkeypatch):
    displayed = []
    monkeypatch.setattr(experiment, "display", lambda data, **options: displayed.append(data))
    return displayed


# --- experiments


def test_each_round_runs_every_arm_once_in_an_order_of_its_own():
    runs = plan("abcd", repeats=6, warmup=2, seed=1)
    rounds = [runs[first : first + 4] for first in range(0, 32, 4)]
    assert [{number for _, number in each} for each in rounds] == [{0}, {0}, {1}, {2}, {3}, {4}, {5}, {6}]
    assert all(sorted(arm for arm, _ in each) == [*"abcd"] for each in rounds)
    assert len({tuple(arm for arm, _ in each) for each in rounds}) > 3


def test_the_same_seed_gives_the_same_order_and_another_one_another():
    assert plan("abcd", 5, 1, seed=7) == plan("abcd", 5, 1, seed=7) != plan("abcd", 5, 1, seed=8)


def test_a_row_for_each_run_that_counts_with_what_it_returned(shown):
    done = Experiment("squares", [1, 2, 3], lambda n: n * n, repeats=4, warmup=2, x="n").start().wait(WAIT)
    frame = done.frame()
    assert [*frame.columns] == ["n", "repeat", "seconds", "value"]
    assert Counter(frame["n"]) == {1: 4, 2: 4, 3: 4}
    assert (frame["value"] == frame["n"] ** 2).all()
    assert (frame["seconds"] >= 0).all()
    assert sorted(frame[frame["n"] == 2]["repeat"]) == [1, 2, 3, 4]


def test_warm_up_runs_are_run_and_dropped(shown):
    calls = []
    done = Experiment("warm", {"a": lambda: calls.append(1)}, repeats=2, warmup=3).start().wait(WAIT)
    assert (len(calls), len(done.frame())) == (5, 2)


def test_a_run_may_return_several_metrics_and_an_arm_several_columns(shown):
    done = Experiment(
        "two factors", [("threads", 1), ("threads", 2)], lambda arm: {"rate": 10 * arm[1], "errors": 0},
        repeats=2, x=("pool", "workers"),
    ).start().wait(WAIT)  # fmt: skip
    summary = done.summary("rate")
    assert summary[["pool", "workers", "runs", "median"]].values.tolist() == [
        ["threads", 1, 2, 10],
        ["threads", 2, 2, 20],
    ]


def test_every_run_has_fresh_state_that_is_put_away_after_it(shown):
    log = []

    @contextmanager
    def fresh(arm):
        log.append(("enter", arm))
        yield []
        log.append(("leave", arm))

    def run(arm, state):
        state.append(arm)
        log.append(("run", arm))
        return len(state)

    done = Experiment("fresh", ["a", "b"], run, repeats=3, warmup=1, fresh=fresh).start().wait(WAIT)
    assert set(done.frame()["value"]) == {1}
    assert len(log) == 24
    assert all(
        [what for what, _ in log[i : i + 3]] == ["enter", "run", "leave"]
        and len({arm for _, arm in log[i : i + 3]}) == 1
        for i in range(0, 24, 3)
    )


def test_making_state_and_putting_it_away_is_not_measured(shown, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(experiment, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    @contextmanager
    def slow(arm):
        now[0] += 10
        yield now
        now[0] += 100

    def run(now):
        now[0] += 1

    done = Experiment("slow", {"a": run}, repeats=1, warmup=0, fresh=slow).start().wait(WAIT)
    assert done.frame()["seconds"].tolist() == [1]


def test_the_bar_moves_run_by_run_while_the_kernel_is_free(shown):
    go, seen = threading.Semaphore(0), []
    running = Experiment("bar", {"a": go.acquire}, repeats=3, warmup=0)
    running.bar.observe(lambda change: seen.append(change["new"]), "value")
    running.start()
    assert (running.bar.value, running.bar.max, running.frame().empty) == (0, 3, True)
    for _ in range(3):
        go.release()
    running.wait(WAIT)
    assert seen == [1, 2, 3]
    assert running.label.value == "3 of 3 runs: complete"
    assert repr(running) == "<Experiment 'bar': 3 of 3 runs>"


def test_what_ran_is_shown_once_with_words_where_no_kernel_runs(shown):
    Experiment("a <b", {"a": int}, repeats=1).start().wait(WAIT)
    assert len(shown) == 1
    assert "2 runs of “a &lt;b”" in shown[0]["text/html"]
    assert shown[0]["text/plain"] == "a <b: 2 runs"


def test_stop_takes_effect_after_the_run_that_is_on_and_keeps_what_was_measured(shown):
    running, go = threading.Event(), threading.Event()

    def run():
        running.set()
        go.wait(WAIT)
        return 1

    stopped = Experiment("stopped", {"a": run}, repeats=100, warmup=0).start()
    assert running.wait(WAIT)
    stopped.button.click()
    with pytest.raises(TimeoutError, match="0 of 100 runs"):
        stopped.wait(0.05)
    go.set()
    stopped.wait(WAIT)
    assert len(stopped.frame()) == 1
    assert stopped.label.value == "1 of 100 runs: stopped"
    assert stopped.button.disabled


def test_interrupting_the_cell_that_waits_stops_the_experiment(shown, monkeypatch):
    go = threading.Semaphore(0)
    running = Experiment("interrupted", {"a": go.acquire}, repeats=100).start()
    with monkeypatch.context() as patched:
        patched.setattr(running._over, "wait", lambda timeout: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            running.wait(WAIT)
    go.release()
    running.wait(WAIT)
    assert "stopped" in running.label.value


def test_a_failure_names_the_arm_and_the_repeat_and_ends_the_experiment(shown):
    calls = Counter()

    def fail_at_third(arm):
        calls[arm] += 1
        return 1 // (0 if arm == "b" and calls[arm] == 3 else 1)

    failed = Experiment("bad", ["a", "b"], fail_at_third, repeats=5, warmup=1).start()
    for _ in range(2):
        with pytest.raises(RunFailed, match="arm 'b', repeat 2 of 'bad' failed: ZeroDivisionError") as raised:
            failed.wait(WAIT)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert calls["b"] == 3
    assert "failed in arm &#x27;b&#x27;, repeat 2" in failed.label.value


def test_state_that_cannot_be_made_is_a_failure_of_its_run(shown):
    def no_state(arm):
        raise FileNotFoundError("no/such/file")

    failed = Experiment("bad", {"a": print}, fresh=no_state).start()
    with pytest.raises(RunFailed, match="arm 'a', warming up of 'bad' failed: FileNotFoundError"):
        failed.wait(WAIT)


def test_an_experiment_runs_once_and_only_after_it_was_started(shown):
    new = Experiment("once", {"a": int}, repeats=1)
    with pytest.raises(DTQError, match=r"call start\(\) first"):
        new.wait(WAIT)
    new.start().wait(WAIT)
    with pytest.raises(DTQError, match="make a new one"):
        new.start()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1, 2],), {}, "measure=function"),
        (({"a": int}, int), {}, "without measure"),
        (({},), {}, "arms is empty"),
        (({"a": int},), {"repeats": 0}, "at least 1 repeat"),
    ],
)
def test_an_experiment_that_cannot_be_run_says_why(arguments, options, message):
    with pytest.raises(DTQError, match=message):
        Experiment("bad", *arguments, **options)


# --- intervals


def test_the_interval_is_the_same_from_the_same_seed_and_holds_the_median():
    values = np.random.default_rng(3).normal(10, 1, 25)
    low, high = interval(values)
    assert interval(values) == (low, high)
    assert values.min() < low < np.median(values) < high < values.max()


def test_nineteen_of_twenty_intervals_hold_the_true_median():
    chance = np.random.default_rng(5)
    intervals = [interval(chance.normal(10, 1, 25), seed) for seed in range(200)]
    assert 0.90 <= np.mean([low <= 10 <= high for low, high in intervals]) <= 0.99


def test_a_summary_has_a_row_for_each_group_in_order():
    frame = pd.DataFrame({"workers": [4, 1, 4, 1, 4], "rate": [30.0, 10, 32, 12, 31]})
    summary = summarise(frame, "workers", "rate")
    assert summary[["workers", "runs", "median", "low", "high"]].values.tolist() == [
        [1, 2, 11, 10, 12],
        [4, 3, 31, 30, 32],
    ]


# --- laws

N = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]


@pytest.mark.parametrize("sigma", [0.0, 0.02, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("kappa", [0.0, 0.0001, 0.02])
def test_exact_data_gives_back_the_law_behind_it(sigma, kappa):
    law = fit_usl(N, Law(120.0, sigma, kappa)(N))
    assert (law.rate, law.sigma, law.kappa) == pytest.approx((120.0, sigma, kappa), abs=1e-6)


@pytest.mark.parametrize("serial", [0.0, 0.05, 0.5, 1.0])
def test_exact_speed_ups_give_back_amdahls_serial_share(serial):
    law = fit_amdahl(N, [1 / (serial + (1 - serial) / n) for n in N])
    assert (law.rate, law.sigma, law.kappa) == pytest.approx((1.0, serial, 0.0), abs=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_parameters_are_found_again_under_noise(seed):
    chance, n, true = np.random.default_rng(seed), np.repeat(N, 5), Law(120.0, 0.08, 0.003)
    law = fit_usl(n, true(n) * chance.normal(1, 0.03, n.shape))
    assert law.rate == pytest.approx(true.rate, rel=0.05)
    assert law.sigma == pytest.approx(true.sigma, abs=0.03)
    assert law.kappa == pytest.approx(true.kappa, rel=0.25)
    assert law.peak == pytest.approx(true.peak, rel=0.1)


@pytest.mark.parametrize("seed", range(10))
def test_no_law_in_the_neighbourhood_comes_nearer(seed):
    """Least squares in X, within the bounds, whatever the data look like."""
    chance, n = np.random.default_rng(seed), np.repeat(N, 2)
    x = Law(*chance.uniform([1, 0, 0], [100, 1, 0.1]))(n) * chance.lognormal(0, 0.3, n.shape)
    best = fit_usl(n, x)
    for scale in (1e-4, 1e-2):
        for _ in range(200):
            rate, sigma, kappa = np.array([best.rate, best.sigma, best.kappa]) + chance.normal(0, scale, 3) * [
                best.rate,
                1,
                0.1,
            ]
            other = Law(rate, min(max(sigma, 0), 1), max(kappa, 0))
            assert np.square(other(n) - x).sum() >= np.square(best(n) - x).sum() * (1 - 1e-9)


def test_better_than_linear_stays_within_the_bounds():
    law = fit_usl([1, 2, 4, 8], [10, 22, 48, 100])
    assert (law.sigma, law.kappa) == (0, 0)
    assert law.peak == np.inf


def test_what_falls_from_the_start_stays_within_the_bounds():
    law = fit_amdahl([1, 2, 4, 8], [10, 6, 4, 3])
    assert (law.rate, law.sigma) == pytest.approx((5.75, 1))
    assert fit_usl([1, 2, 4, 8], [10, 6, 4, 3]).sigma <= 1


def test_throughput_is_highest_at_the_peak():
    law, n = Law(10, 0.05, 0.002), np.linspace(1, 100, 10_000)
    assert law.peak == pytest.approx(n[np.argmax(law(n))], abs=0.01)


@pytest.mark.parametrize(
    ("fit", "n", "x", "message"),
    [
        (fit_usl, [1, 2, 2], [1, 2, 2], "2 different n"),
        (fit_amdahl, [4, 4], [1, 2], "1 different n"),
        (fit_usl, [1, 2, 4], [1, 2, 0], "above 0"),
        (fit_usl, [0, 2, 4], [1, 2, 3], "n of 1 or more"),
        (fit_usl, [1, 2, 4], [1, 2, np.nan], "finite"),
    ],
)
def test_data_that_tell_nothing_are_refused(fit, n, x, message):
    with pytest.raises(ValueError, match=message):
        fit(n, x)


# --- load


def test_arrivals_are_seeded_and_come_at_their_rate():
    times = arrivals(50, 5000, seed=2)
    assert times.tolist() == arrivals(50, 5000, seed=2).tolist() != arrivals(50, 5000, seed=3).tolist()
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05)  # as exponential gaps have it
    assert arrivals(50, 4, kind="even").tolist() == pytest.approx([0.02, 0.04, 0.06, 0.08])


def test_arrivals_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="rate is 0"):
        arrivals(0, 5)
    with pytest.raises(ValueError, match="allowed: 'poisson', 'even'"):
        arrivals(1, 5, kind="odd")


def test_tasks_come_at_their_times_though_nothing_ends():
    """The manager has no workers: whoever waited for an answer would never send the second task."""
    with QueueManager("memory:") as queue:
        times = arrivals(100, 30, seed=1)
        began = time.monotonic()
        offered = offer(queue, "work", times, lambda number: number, priority=3)
        assert times[-1] <= time.monotonic() - began < times[-1] + 1
        tasks = [queue.get(id) for id in offered.ids]
        late = [task.created_at - offered.began - at for task, at in zip(tasks, offered.times, strict=True)]
        assert [task.payload for task in tasks] == [*range(30)]
        assert {task.priority for task in tasks} == {3}
        assert min(late) > -0.01
        assert np.median(late) < 0.05


def test_latency_counts_from_the_time_at_which_a_task_should_have_come(monkeypatch):
    """`add` is held up for 0.3 s once: all that was due meanwhile is late, and its latency says so."""
    with TaskQueue("memory:", {"work": "queue_handlers:nothing"}, 1, executor="inline") as queue:
        add_many, batches = queue.add_many, []

        def slow(tasks):
            batches.append(len(tasks))
            time.sleep(0 if batches[1:] else 0.3)
            return add_many(tasks)

        monkeypatch.setattr(queue, "add_many", slow)
        frame = offer(queue, "work", arrivals(100, 20, kind="even")).frame(WAIT)
    assert (frame["status"] == "completed").all()
    assert (frame["latency"] >= frame["late"]).all()
    assert frame["late"].iloc[0] > 0.28
    assert frame["latency"].iloc[1:10].min() > 0.15
    assert batches[-1] == 20 - batches[0]  # what was due by then comes in one commit


def test_stopping_ends_the_load_at_once():
    with QueueManager("memory:") as queue:
        stop = threading.Event()
        threading.Timer(0.05, stop.set).start()
        began = time.monotonic()
        offered = offer(queue, "work", [0, 0, 60], stop=stop)
        assert time.monotonic() - began < 5
        assert (len(offered.ids), offered.times) == (2, [0, 0])


def test_load_that_is_refused_raises():
    with QueueManager("memory:", max_payload=10) as queue, pytest.raises(InvalidTask):
        offer(queue, "work", [0], "x" * 100)


def test_tasks_that_do_not_end_are_reported():
    with QueueManager("memory:") as queue, pytest.raises(TimeoutError):
        offer(queue, "work", [0]).frame(0.05)


def test_an_experiment_on_the_real_queue_leaves_nothing(shown):
    lab.start(0)

    @contextmanager
    def fresh(workers):
        with TaskQueue("memory:", {"work": "queue_handlers:sleep_if_asked"}, workers) as queue:
            queue.add("work", 0).result(WAIT)
            yield queue

    def measure(workers, queue):
        return {"latency": offer(queue, "work", arrivals(200, 10), 0.0).frame(WAIT)["latency"].tolist()}

    done = Experiment("latency", [1, 2], measure, repeats=1, warmup=0, fresh=fresh, x="workers").start().wait(WAIT)
    assert done.frame().explode("latency").groupby("workers").size().tolist() == [10, 10]
    lab.assert_clean()
