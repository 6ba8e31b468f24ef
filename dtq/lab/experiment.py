"""Experiment: runs each arm several times, fairly, beside the kernel, and gives a table of what was measured.

arms x rounds --shuffled within each round--> for each: fresh state, run, note ---> frame: runs; summary: medians
                                              (on a thread; a bar moves, Stop ends it after the current run)

Machines drift: they heat up, and others work on them. All runs of one arm and then all of the next would put the drift
on the arms' account. Here each round runs every arm once, in an order of its own, so drift hits all of them alike. The
first rounds only warm up (caches, imports, processes that start) and are not counted.
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
Run = tuple[Arm, int]  # what, and in which repeat; 0 is warming up


class RunFailed(DTQError):
    """A run of an experiment raised; its exception is the cause of this one."""


class Experiment:
    """Compares arms.

    `arms` are functions by name, or values that `measure(arm)` takes. A run returns a number (noted as `y`), a
    dictionary of values by name, or nothing; how many seconds it took is noted in any case. `fresh(arm)` gives a
    context manager: it is entered before each run and left after it, outside of the measured time, and what it gives
    is the run's last argument. `x` names the arms' column, or the columns, where each arm is a tuple. Runs must not
    print: it would land in whatever cell runs then.
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
        """Shows the bar, runs on a thread of its own, and returns at once."""
        if self._thread.ident is not None:
            raise DTQError(f"experiment {self.name!r} has run: make a new one to measure again")
        twin, text = _twin(self.name, len(self._plan)), f"{self.name}: {len(self._plan)} runs"
        display({**self.widget._repr_mimebundle_(), "text/html": twin, "text/plain": text}, raw=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends it after the run that is on; what was measured so far stays. So does the button."""
        self._stop.set()

    def wait(self, timeout: float = 60.0) -> Self:
        """Returns when all has run, or was stopped. Raises RunFailed, and TimeoutError, saying how far it is; in
        instructor mode, where there is a recording, it says so instead, and `frame` gives what was recorded.

        A cell that waits keeps the kernel from hearing the button; interrupting the cell stops the experiment too."""
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
        """Raises where the run was no good; else keeps it, if it is complete and instructor mode asks for that."""
        if not over:
            raise TimeoutError(f"{self._done} of {len(self._plan)} runs of {self.name!r} have ended after {timeout} s")
        self._thread.join()
        if self._failed is not None:
            run, error = self._failed
            raise RunFailed(f"{_words(run)} of {self.name!r} failed: {type(error).__name__}: {error}") from error
        if self._done == len(self._plan):
            recorded.keep(self.name, self.frame(), machine())

    def _fall_back(self, error: Exception) -> None:
        """Shows what was recorded. Raises the error where nothing was."""
        self._recording = recorded.recall(self.name)
        if self._recording is None:
            raise error
        self.stop()
        print(f"{error}\nIn its place you see what was recorded on {self._recording.at}.")

    def _work(self) -> None:
        run = self._plan[0]
        try:
            for run in self._plan:
                if self._stop.is_set():
                    break
                self._note(run, self._measure(run[0]))
        except BaseException as error:  # also what no run should raise: whoever waits must hear of it
            self._failed = run, error
        self._finish()
        self._over.set()

    def _measure(self, arm: Arm) -> dict[str, Any]:
        """One run, with state of its own: how long it took, and what it gave."""
        with self._fresh(arm) if self._fresh else nullcontext() as state:
            function = self._functions[arm]
            began = time.perf_counter()
            given = function(state) if self._fresh else function()
            seconds = time.perf_counter() - began
        return {"seconds": seconds, **_metrics(given, self._y)}

    def _note(self, run: Run, measured: dict[str, Any]) -> None:
        """Counts the run, and keeps what it gave unless it was for warming up."""
        arm, repeat = run
        if repeat:
            values: Any = arm if len(self._x) > 1 else (arm,)
            self._rows.append({**dict(zip(self._x, values, strict=True)), "repeat": repeat, **measured})
        self._done += 1
        self.bar.value = self._done
        self.label.value = html.escape(f"{self._done} of {len(self._plan)} runs; the last: {_words(run)}")

    # --- look --------------------------------------------------------------------------------------------------------

    def frame(self) -> pd.DataFrame:
        """A row for each run that has ended, in the order they ran: the arm, repeat, seconds, what it returned."""
        if self._recording is not None:
            return self._recording.frame()
        rows = self._rows.copy()
        return pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*self._x, "repeat", "seconds"])

    def summary(self, value: str | None = None) -> pd.DataFrame:
        """A row for each arm: how many runs, the median of `value`, and its 95 % interval from `low` to `high`.

        Without `value`, it is of what the runs returned as a number, or else of the seconds they took."""
        frame = self.frame()
        return summarise(frame, self._x, value or (self._y if self._y in frame else "seconds"))

    def __repr__(self) -> str:
        return f"<Experiment {self.name!r}: {self._done} of {len(self._plan)} runs>"

    # --- bar ---------------------------------------------------------------------------------------------------------

    def _make_widget(self) -> None:
        total = len(self._plan)
        style, layout = {"bar_color": OKABE_ITO["blue"]}, widgets.Layout(width="70%")
        self.bar = widgets.IntProgress(max=total, style=style, layout=layout)
        self.button = widgets.Button(description="Stop", tooltip="Ends the experiment after the run that is on")
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
    """All runs in their order: rounds, of which each has every arm once, shuffled. Warming up is repeat 0."""
    if repeats < 1 or warmup < 0:
        raise DTQError(
            f"repeats is {repeats}, warmup is {warmup}; expected: at least 1 repeat, and 0 or more to warm up"
        )
    chance, arms = random.Random(seed), [*arms]
    rounds = [0] * warmup + [*range(1, repeats + 1)]
    return [(arm, number) for number in rounds for arm in chance.sample(arms, len(arms))]


def _functions(arms: Mapping[Any, Any] | Iterable[Any], measure: Callable[..., Any] | None) -> dict[Any, Any]:
    """What to call for each arm."""
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
    """What readers see where no kernel runs."""
    name = html.escape(name)
    return f"<p><em>A live bar for the {total} runs of “{name}” stands here when you run the notebook.</em></p>"
