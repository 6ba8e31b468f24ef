"""Experiment: run each arm several times, in fair order, in the background, and tabulate the measurements.

arms x rounds --shuffled within each round--> for each: fresh state, run, note ---> frame: runs; summary: medians
                                              (on a thread; a bar moves, Stop ends it after the current run)

Machines drift: they heat up, and other programs use them. If all runs of one arm came before all runs of the next, the
drift would look like a difference between the arms. Here each round runs every arm once, in random order, so drift
affects all arms alike. The first rounds only warm up (caches, imports, starting processes) and are not counted.
"""

from __future__ import annotations

import functools
import html
import random
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import ipywidgets as widgets
import pandas as pd
from IPython.display import display

from dtq.errors import DTQError
from dtq.lab import recorded
from dtq.lab.figures import OKABE_ITO, machine
from dtq.lab.fit import summarise

Arm = Hashable
Run = tuple[Arm, int]  # the arm, and the repeat; repeat 0 is a warm-up


class RunFailed(DTQError):
    """A run of an experiment raised an exception, which is the cause of this one."""


class Experiment:
    """Compares arms, in the background.

    A run returns a number, a dictionary of values by name, or nothing. Its duration in seconds is measured in any case.
    Runs must not print: the text would appear in whichever cell is running.

    Args:
        name: The title, and the name of a recording.
        arms: Functions by name, or values that `measure(arm)` takes.
        measure: Runs one arm, if `arms` are values.
        repeats: How many times each arm is measured.
        warmup: How many rounds run first and are not counted.
        seed: Determines the order of the arms in each round.
        x: The column with the arm, or several columns if each arm is a tuple.
        y: The column with the number that a run returns.
        fresh: Returns a context manager for an arm. It is entered before each run and left after it, outside the
            measured time; its value is the last argument of the run.

    Raises:
        DTQError: `repeats`, `warmup` or `arms` is not allowed.
    """

    def __init__(
        self, name: str, arms: Mapping[Any, Callable[..., Any]] | Iterable[Any],
        measure: Callable[..., Any] | None = None, *, repeats: int = 5, warmup: int = 1, seed: int = 0,
        x: str | tuple[str, ...] = "arm", y: str = "value",
        fresh: Callable[[Any], AbstractContextManager[Any]] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self._x = (x,) if isinstance(x, str) else x
        self._y = y
        self._functions = _functions(arms, measure)
        self._fresh = fresh
        self._plan = plan(self._functions, repeats, warmup, seed)
        self._rows: list[dict[str, Any]] = []
        self._done = 0
        self._stop = threading.Event()
        self._over = threading.Event()
        self._failed: tuple[Run, BaseException] | None = None
        self._recording: recorded.Recording | None = None  # shown in place of a run that failed
        self._thread = threading.Thread(target=self._work, name="dtq-experiment", daemon=True)
        self._make_widget()

    # --- run ---------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Show the bar, start the runs on a thread, and return at once."""
        if self._thread.ident is not None:
            raise DTQError(f"experiment {self.name!r} has run: make a new one to measure again")
        twin, text = _twin(self.name, len(self._plan)), f"{self.name}: {len(self._plan)} runs"
        display({**self.widget._repr_mimebundle_(), "text/html": twin, "text/plain": text}, raw=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the experiment after the current run and keep the measurements, as the button does."""
        self._stop.set()

    def wait(self, timeout: float = 60.0) -> Self:
        """Return when all runs have ended, or the experiment was stopped.

        In instructor mode, a recording replaces an experiment that fails: this prints a notice, and `frame` returns the
        recorded table. A cell that waits keeps the kernel busy, so the button has no effect; interrupt the cell
        instead.

        Raises:
            RunFailed: A run failed.
            TimeoutError: Runs were left after `timeout` seconds.
        """
        if self._thread.ident is None:
            raise DTQError(f"experiment {self.name!r} does not run: call start() first")
        try:
            over = self._over.wait(timeout)
        except KeyboardInterrupt:
            self.stop()
            raise
        try:
            self._check(over, timeout)
        except (TimeoutError, RunFailed) as error:
            self._fall_back(error)
        return self

    def _check(self, over: bool, timeout: float) -> None:
        """Raise RunFailed or TimeoutError if the experiment failed. Else record it, if it is complete and this is
        instructor mode."""
        if not over:
            raise TimeoutError(f"{self._done} of {len(self._plan)} runs of {self.name!r} have ended after {timeout} s")
        self._thread.join()
        if self._failed is not None:
            run, error = self._failed
            raise RunFailed(f"{_words(run)} of {self.name!r} failed: {type(error).__name__}: {error}") from error
        if self._done == len(self._plan):
            recorded.keep(self.name, self.frame(), machine())

    def _fall_back(self, error: Exception) -> None:
        """Use the recording. Raise the error if there is none."""
        self._recording = recorded.recall(self.name)
        if self._recording is None:
            raise error
        self.stop()
        print(f"{error}\nA recording from {self._recording.at} is shown instead.")

    def _work(self) -> None:
        run = self._plan[0]
        try:
            for run in self._plan:
                if self._stop.is_set():
                    break
                self._note(run, self._measure(run[0]))
        except BaseException as error:  # whatever a run raises, `wait` must raise it
            self._failed = run, error
        self._finish()
        self._over.set()

    def _measure(self, arm: Arm) -> dict[str, Any]:
        """Run one arm with fresh state. Return its duration and what it returned."""
        with self._fresh(arm) if self._fresh else nullcontext() as state:
            function = self._functions[arm]
            began = time.perf_counter()
            given = function(state) if self._fresh else function()
            seconds = time.perf_counter() - began
        return {"seconds": seconds, **_metrics(given, self._y)}

    def _note(self, run: Run, measured: dict[str, Any]) -> None:
        """Count the run, and keep its measurements unless it was a warm-up."""
        arm, repeat = run
        if repeat:
            values: Any = arm if len(self._x) > 1 else (arm,)
            self._rows.append({**dict(zip(self._x, values, strict=True)), "repeat": repeat, **measured})
        self._done += 1
        self.bar.value = self._done
        self.label.value = html.escape(f"{self._done} of {len(self._plan)} runs; the last: {_words(run)}")

    # --- results -----------------------------------------------------------------------------------------------------

    def frame(self) -> pd.DataFrame:
        """Return a row for each run that has ended, in order: the arm, repeat, seconds, and what the run returned."""
        if self._recording is not None:
            return self._recording.frame()
        rows = self._rows.copy()
        return pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*self._x, "repeat", "seconds"])

    def summary(self, value: str | None = None) -> pd.DataFrame:
        """Return a row for each arm: the number of runs, the median of `value`, and its 95 % interval from `low` to
        `high`.

        Without `value`, it summarises the number that the runs returned, or else their seconds."""
        frame = self.frame()
        return summarise(frame, self._x, value or (self._y if self._y in frame else "seconds"))

    def __repr__(self) -> str:
        return f"<Experiment {self.name!r}: {self._done} of {len(self._plan)} runs>"

    # --- bar ---------------------------------------------------------------------------------------------------------

    def _make_widget(self) -> None:
        total = len(self._plan)
        style, layout = {"bar_color": OKABE_ITO["blue"]}, widgets.Layout(width="70%")
        self.bar = widgets.IntProgress(max=total, style=style, layout=layout)
        self.button = widgets.Button(description="Stop", tooltip="End the experiment after the current run")
        self.button.on_click(lambda button: self.stop())
        self.label = widgets.HTML(f"0 of {total} runs")
        title = widgets.HTML(f"<b>{html.escape(self.name)}</b>")
        self.widget = widgets.VBox([title, widgets.HBox([self.bar, self.button]), self.label])

    def _finish(self) -> None:
        self.button.disabled = True
        end = (
            f"failed in {_words(self._failed[0])}"
            if self._failed
            else "complete"
            if self._done == len(self._plan)
            else "stopped"
        )
        self.label.value = html.escape(f"{self._done} of {len(self._plan)} runs: {end}")


def plan(arms: Iterable[Arm], repeats: int, warmup: int, seed: int) -> list[Run]:
    """Return all runs in order: in each round every arm once, shuffled. A warm-up is repeat 0."""
    if repeats < 1 or warmup < 0:
        raise DTQError(
            f"repeats is {repeats}, warmup is {warmup}; expected: at least 1 repeat, and 0 or more to warm up"
        )
    chance, arms = random.Random(seed), [*arms]
    rounds = [0] * warmup + [*range(1, repeats + 1)]
    return [(arm, number) for number in rounds for arm in chance.sample(arms, len(arms))]


def _functions(arms: Mapping[Any, Any] | Iterable[Any], measure: Callable[..., Any] | None) -> dict[Any, Any]:
    """Return the function to call for each arm."""
    if isinstance(arms, Mapping) and measure is None:
        functions = dict(arms)
    elif measure is not None and not isinstance(arms, Mapping):
        functions = {arm: functools.partial(measure, arm) for arm in arms}
    else:
        raise DTQError("arms is either functions by name, without measure, or a list of values, with measure=function")
    if not functions:
        raise DTQError("arms is empty; expected: at least one")
    return functions


def _metrics(given: Any, name: str) -> dict[str, Any]:
    if given is None:
        return {}
    return dict(given) if isinstance(given, Mapping) else {name: given}


def _words(run: Run) -> str:
    arm, repeat = run
    return f"arm {arm!r}, {f'repeat {repeat}' if repeat else 'warming up'}"


def _twin(name: str, total: int) -> str:
    """Return what readers see without a kernel."""
    name = html.escape(name)
    return f"<p><em>A live bar for the {total} runs of “{name}” appears here when you run the notebook.</em></p>"
