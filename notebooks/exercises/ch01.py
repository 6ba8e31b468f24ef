"""Helpers of chapter 01: a comparison, its figures, and its exercises.

They are here and not in the notebook, so that its cells are about tasks, and no reader sees a solution before the
exercise. The chapter imports them:

    from exercises import ch01
    ch01.compare_moves({"succeed": succeed, "fail": fail}, MyTask, error)
    ch01.draw_moves(ch01.fire_all(error))
    ch01.cancel                 the card: task, hints, and the solution, folded
    ch01.cancel.check(cancel)
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any, get_args

import matplotlib.pyplot as plt
import msgspec
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.ticker import NullFormatter

from dtq import ErrorInfo, Status, Task, lab
from dtq.errors import IllegalTransition
from dtq.lab.curves import STYLES
from dtq.lab.figures import OKABE_ITO, show_figure, stamp
from dtq.task import model as real
from dtq.task import transitions
from dtq.testing.conformance import Broken, expect

Moves = dict[str, Callable[..., Any]]

# --- a reader's moves, beside the package's --------------------------------------------------------------------------


def compare_moves(mine: Moves, my_task: Any, error: ErrorInfo) -> tuple[list[tuple[Any, ...]], int]:
    """Apply `succeed` and `fail` of both to a grid of tasks. Return the cases in which they differ, and the number of
    cases.

    They agree if all fields of `my_task` are equal afterwards, or both refuse with the same message.
    """
    arguments = {"succeed": (42, 9.0), "fail": (error, 9.0, lambda: 0.25)}
    grid = itertools.product(Status, (1, 2, 3), get_args(real.Backoff), (0.0, 0.5))
    cases = [(name, *values) for values in grid for name in mine]
    differ = []
    for name, status, attempts, shape, jitter in cases:
        options = {"status": status, "attempts": attempts, "retry_backoff": shape, "retry_jitter": jitter}
        got, wanted = (
            _outcome(move, kind(type="mail", id="t1", **options), arguments[name], my_task.__struct_fields__)
            for move, kind in ((mine[name], my_task), (getattr(transitions, name), Task))
        )
        if got != wanted:
            differ.append((name, options, got, wanted))
    return differ, len(cases)


def _outcome(move: Callable[..., Any], task: Any, arguments: tuple[Any, ...], fields: tuple[str, ...]) -> Any:
    try:
        after = move(task, *arguments)
    except IllegalTransition as error:
        return str(error)
    return {field: getattr(after, field) for field in fields}


# --- every move from every status -------------------------------------------------------------------------------------


def fire_all(error: ErrorInfo) -> pd.DataFrame:
    """Apply the package's six moves to each status. Return a table with a row for each status and a column for each
    move: the new status, or "" if the move is refused."""
    arguments = {"succeed": (42, 9.0), "fail": (error, 9.0, random.random), "release": ()}
    arguments |= {"interrupt": (9.0,), "cancel": (9.0,), "revive": (9.0,)}
    return pd.DataFrame(
        [[_target(getattr(transitions, move), status, args) for move, args in arguments.items()] for status in Status],
        index=[*Status], columns=[*arguments],
    )  # fmt: skip


def _target(move: Callable[..., Any], status: Status, arguments: tuple[Any, ...]) -> str:
    try:
        return str(move(Task(type="mail", status=status), *arguments).status)
    except IllegalTransition:
        return ""


# --- the figures of the chapter --------------------------------------------------------------------------------------


def draw_moves(matrix: pd.DataFrame) -> None:
    """Draw the table of `fire_all`."""
    figure, axes = plt.subplots(figsize=(9, 3.8), layout="constrained")
    axes.pcolormesh(matrix != "", cmap=ListedColormap(["#F2F2F2", OKABE_ITO["sky"]]), edgecolor="white", linewidth=2)
    for (row, column), target in np.ndenumerate(matrix):
        axes.text(
            column + 0.5, row + 0.5, target or "refused", ha="center", va="center", color="black" if target else "0.4"
        )
    axes.set(ylim=(len(matrix), 0), title="Where each move leads", xlabel="move", ylabel="from")
    axes.set_xticks(np.arange(matrix.shape[1]) + 0.5, matrix.columns)
    axes.set_yticks(np.arange(matrix.shape[0]) + 0.5, matrix.index)
    pairs = [f"{move} leads from {status} to {to}" for (status, move), to in matrix.stack().items() if to]
    alt = f"Matrix of statuses and moves: {len(pairs)} of {matrix.size} are legal. {'; '.join(pairs)}."
    show_figure(figure, alt, matrix.reset_index(names="from"))


def draw_delays(delays: pd.DataFrame) -> None:
    """Draw a curve for each column: the delay in seconds by the number of the failed attempt."""
    figure, axes = plt.subplots(layout="constrained")
    for (name, values), (color, marker, line) in zip(delays.items(), STYLES, strict=False):
        axes.plot(values, color=OKABE_ITO[color], marker=marker, linestyle=line, label=name)
    first = delays.iloc[:, 0]
    axes.fill_between(delays.index, first / 2, first, color=OKABE_ITO["blue"], alpha=0.15, label="with jitter 0.5")
    axes.set(
        yscale="log", xlabel="failed attempt (number)", ylabel="delay (s)", title="How long until the next attempt"
    )
    axes.set_xticks(delays.index)
    axes.set_yticks([1, 10, 100], ["1", "10", "100"])
    figure.legend(loc="outside right upper")
    ends = "; ".join(f"{name}: {values.iloc[0]:g} to {values.iloc[-1]:g} s" for name, values in delays.items())
    alt = f"Delays after {delays.index[0]} to {delays.index[-1]} failed attempts, on a logarithmic scale. {ends}."
    show_figure(figure, alt, delays.reset_index(names="attempt"))


def draw_waves(bins: np.ndarray, waves: dict[float, np.ndarray]) -> None:
    """Draw how many retries fall into each bin of 0.1 s, in a panel for each jitter."""
    figure, panels = plt.subplots(len(waves), 1, sharex=True, sharey=True, figsize=(9, 4.6), layout="constrained")
    for axes, (jitter, counts), color in zip(panels, waves.items(), ("vermilion", "blue"), strict=True):
        axes.bar(bins[:-1], counts, width=0.1, align="edge", color=OKABE_ITO[color])
        axes.set(title=f"jitter {jitter:g}: at most {counts.max():,} in 0.1 s", ylabel="retries in 0.1 s")
    panels[-1].set_xlabel("time after the outage began (s)")
    peaks = "; ".join(f"with jitter {jitter:g} at most {counts.max()} in 0.1 s" for jitter, counts in waves.items())
    columns = {f"jitter {jitter:g}": counts for jitter, counts in waves.items()}
    show_figure(figure, f"Retries over time: {peaks}.", pd.DataFrame({"from (s)": bins[:-1], **columns}))


def draw_sizes(seconds: pd.Series, sizes: dict[str, float], **facts: object) -> None:
    """Draw a dot for each way to encode a task: its duration, and the size of its output."""
    figure, axes = plt.subplots(layout="constrained")
    table = pd.DataFrame({"time (µs)": seconds * 1e6, "size (bytes)": sizes})
    for (way, (time, size)), (color, marker, _) in zip(table.iterrows(), STYLES, strict=False):
        axes.plot(time, size, marker=marker, color=OKABE_ITO[color], markersize=10, linestyle="none")
        axes.annotate(str(way), (time, size), xytext=(11, -4), textcoords="offset points")
    x, y = table.columns
    axes.set(xscale="log", xlim=(table[x].min() / 1.5, table[x].max() * 4), ylim=(0, 1.2 * table[y].max()))
    axes.set(xlabel=x, ylabel=y, title="Size against time, for one task")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    dots = "; ".join(f"{way}: {time:.2f} µs, {size:.0f} bytes" for way, (time, size) in table.iterrows())
    alt = f"Size against time to encode one task. {dots}."
    show_figure(figure, alt, table.reset_index(names="way"), stamp(**facts))


# --- 1.1 a transition ------------------------------------------------------------------------------------------------


def check_cancel(cancel: Any) -> None:
    for status in Status:
        task = Task(type="mail", id="t", status=status, attempts=1, worker="w1", lease_until=40.0, started_at=5.0)
        if task.is_terminal:
            _expect_refusal(cancel, task)
        else:
            _expect_cancelled(cancel, task)


def _expect_refusal(cancel: Any, task: Task) -> None:
    try:
        given = cancel(task, 9.0)
    except IllegalTransition:
        return
    raise Broken(f"cancel of a task that is {task.status}: expected IllegalTransition, got {given!r}")


def _expect_cancelled(cancel: Any, task: Task) -> None:
    given = cancel(task, 9.0, "no longer needed")
    expect(str(getattr(given, "status", given)), "cancelled", f"status after cancel of a task that is {task.status}")
    wanted = transitions.cancel(task, 9.0, "no longer needed")
    for field in ("finished_at", "lease_until", "error", "result", "worker", "attempts", "version"):
        expect(getattr(given, field), getattr(wanted, field), f"{field} after cancel of a task that is {task.status}")
    expect(given, cancel(task, 9.0, "no longer needed"), "the same call once more")


CANCEL = """
def cancel(task, now, reason="cancelled by request"):
    if task.status in real.TERMINAL:
        raise IllegalTransition(f"task {task.id} is {task.status}: it cannot become cancelled")
    error = ErrorInfo("Cancelled", reason)
    return replace(task, status=Status.CANCELLED, error=error, finished_at=now, lease_until=None)
"""

cancel = lab.exercise(
    "1.1",
    """
    Write `cancel(task, now, reason)`. A task that has not ended ends without a result, whatever its state: its status
    becomes cancelled, its error is `ErrorInfo("Cancelled", reason)`, it has finished now, and no worker has a lease on
    it any more. One that has ended refuses, with `IllegalTransition`.
    """,
    effort="about 5 lines, 8 minutes",
    hints=[
        "Two parts, as in every transition of this chapter: first the refusal, then one `replace`.",
        "`real.TERMINAL` holds the statuses in which a task has ended. All others may be left, `processing` too.",
        "`replace(task, status=..., error=..., finished_at=..., lease_until=None)`; the time is the argument `now`.",
    ],
    solution=CANCEL,
    check=check_cancel,
    why="a transition decides from its arguments alone. Because `now` comes in, the check could call it twice and "
    "compare; because the task is frozen, the refusal leaves nothing half done.",
    samples=[
        'getattr(cancel(Task(type="mail"), 9.0), "status", None)',
        'getattr(cancel(Task(type="mail"), 9.0), "finished_at", None)',
        'getattr(cancel(Task(type="mail"), 9.0, "no longer needed"), "error", None)',
    ],
    wrong=[
        ("ends what has ended", CANCEL.replace("task.status in real.TERMINAL", "task.status == Status.CANCELLED")),
        ("only of those that wait", CANCEL.replace("in real.TERMINAL", "not in real.WAITING")),
        ("keeps the lease", CANCEL.replace(", lease_until=None", "")),
        ("asks the clock", "import time\n" + CANCEL.replace("finished_at=now", "finished_at=time.time()")),
    ],
)


# --- 1.2 a backoff ---------------------------------------------------------------------------------------------------


def check_full_jitter(full_jitter: Any) -> None:
    for attempt, ceiling in ((1, 2.0), (2, 4.0), (3, 8.0), (5, 30.0), (9, 30.0)):
        for chance in (0.0, 0.25, 1.0):
            what = f"full_jitter({attempt}, 2.0, 30.0, lambda: {chance})"
            expect(full_jitter(attempt, 2.0, 30.0, lambda chance=chance: chance), ceiling * chance, what)
    expect(full_jitter(5000, 2.0, 30.0, lambda: 0.5), 15.0, "full_jitter(5000, 2.0, 30.0, lambda: 0.5)")
    asked: list[float] = []
    full_jitter(1, 2.0, 30.0, lambda: asked.append(0.5) or 0.5)
    expect(len(asked), 1, "how often chance was asked")


FULL_JITTER = """
def full_jitter(attempt, base, cap, chance):
    ceiling = min(base * 2.0 ** min(attempt - 1, 64), cap)
    return ceiling * chance()
"""

full_jitter = lab.exercise(
    "1.2",
    """
    Write `full_jitter(attempt, base, cap, chance)`: the seconds to wait after the failed attempt 1, 2, 3, ... The
    ceiling is base, 2 base, 4 base, ... but never over the cap; the delay is anywhere between 0 and the ceiling, where
    `chance()`, a number from 0 to 1, decides where. It must survive attempt 5000.
    """,
    effort="about 2 lines, 6 minutes",
    hints=[
        "First the ceiling, without chance; then one multiplication.",
        "The cap belongs to the ceiling: limit first, and draw below the limit.",
        "`2.0 ** 4999` raises OverflowError: limit the exponent, to 64 say, before you raise to it.",
    ],
    solution=FULL_JITTER,
    check=check_full_jitter,
    why="the delays are spread evenly from 0 to the ceiling. Had you drawn first and capped then, all draws over the "
    "cap would meet at the cap, and after a long outage the herd would be back.",
    samples=[
        "[full_jitter(n, 2.0, 30.0, lambda: 1.0) for n in (1, 2, 3, 4, 5)]",
        "full_jitter(3, 2.0, 30.0, lambda: 0.5)",
    ],
    wrong=[
        (
            "draws first, then caps",
            """
            def full_jitter(attempt, base, cap, chance):
                return min(base * 2.0 ** min(attempt - 1, 64) * chance(), cap)
            """,
        ),
        ("starts with twice the base", FULL_JITTER.replace("attempt - 1", "attempt")),
        ("overflows", FULL_JITTER.replace("min(attempt - 1, 64)", "(attempt - 1)")),
        ("only the upper half", FULL_JITTER.replace("ceiling * chance()", "ceiling / 2 + ceiling / 2 * chance()")),
    ],
)


# --- 1.3 a record that is older than the code ------------------------------------------------------------------------

OLD = {"id": "t1", "type": "mail", "payload": {"to": "ada"}, "state": "waiting", "delay_ms": 250}


def check_upgrade(upgrade: Any) -> None:
    for state, status in (("waiting", "pending"), ("done", "completed"), ("error", "failed")):
        _expect_upgraded(upgrade, OLD | {"state": state}, {"status": status, "retry_delay": 0.25})
    _expect_upgraded(upgrade, OLD | {"delay_ms": 0}, {"status": "pending", "retry_delay": 0.0})
    _expect_upgraded(upgrade, OLD | {"priority": 7}, {"status": "pending", "retry_delay": 0.25, "priority": 7})
    _expect_upgraded(upgrade, {"id": "t2", "type": "mail", "status": "retrying", "retry_delay": 2.0}, {})


def _expect_upgraded(upgrade: Any, record: dict[str, Any], changes: dict[str, Any]) -> None:
    given = dict(record)
    upgraded = upgrade(given)
    expect(given, record, "the record that was passed in, afterwards")
    wanted = {name: value for name, value in record.items() if name not in ("state", "delay_ms")} | changes
    expect(upgraded, wanted, f"upgrade({record})")
    msgspec.convert(upgraded, Task)


UPGRADE = """
def upgrade(record):
    new = dict(record)
    if "state" in new:
        new["status"] = {"waiting": "pending", "done": "completed", "error": "failed"}[new.pop("state")]
    if "delay_ms" in new:
        new["retry_delay"] = new.pop("delay_ms") / 1000
    return new
"""

upgrade = lab.exercise(
    "1.3",
    """
    An earlier release wrote its tasks with other names: `state` (waiting, done or error) where today there is `status`
    (pending, completed or failed), and `delay_ms`, whole milliseconds, where today there is `retry_delay`, seconds.
    Write `upgrade(record)`: it returns a new dictionary with today's names.

    Unknown fields stay as they are; a record of today is returned unchanged; the original dictionary does not change.
    """,
    effort="about 7 lines, 10 minutes",
    hints=[
        "Begin with a copy, `new = dict(record)`, and work on that.",
        'For each old name: is it there? Then `new["status"] = ...[new.pop("state")]`.',
        'Ask `"delay_ms" in new`, not whether it is true: a delay of 0 is a delay.',
    ],
    solution=UPGRADE,
    check=check_upgrade,
    why="the function is pure and may be applied twice, so it can stand in front of every decoder: while a new release "
    "is rolled out, old and new records lie side by side in one store.",
    samples=[
        'upgrade({"type": "mail", "state": "done", "delay_ms": 0})',
        'upgrade({"type": "mail", "status": "pending"})',
    ],
    wrong=[
        ("changes what came in", UPGRADE.replace("dict(record)", "record")),
        ("forgets a delay of 0", UPGRADE.replace('if "delay_ms" in new', 'if new.get("delay_ms")')),
        ("whole seconds", UPGRADE.replace("/ 1000", "// 1000")),
        ("only old records", UPGRADE.replace('    if "state" in new:\n    ', "")),
    ],
)
