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
from collections import UserDict
from collections.abc import Callable
from typing import Any, get_args

import matplotlib.pyplot as plt
import msgspec
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap

from dtq import ErrorInfo, Status, Task, lab
from dtq.errors import IllegalTransition, InvalidTask
from dtq.lab.curves import STYLES
from dtq.lab.figures import OKABE_ITO, show_figure
from dtq.lab.guess import Guess, veil
from dtq.stores.memory.store import MemoryStore
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


def fire_all(error: ErrorInfo, claim: Callable[..., Any]) -> pd.DataFrame:
    """Apply the reader's claim and the package's six moves to each status. Return a table with a row for each status
    and a column for each move: the new status, or "" if the move is refused."""
    moves = {
        name: getattr(transitions, name) for name in ("succeed", "fail", "release", "interrupt", "cancel", "revive")
    }
    moves = {"claim": claim, **moves}
    arguments = {"claim": ("w1", 9.0), "succeed": (42, 9.0), "fail": (error, 9.0, random.random), "release": ()}
    arguments |= {"interrupt": (9.0,), "cancel": (9.0,), "revive": (9.0,)}
    return pd.DataFrame(
        [[_target(moves[move], status, args) for move, args in arguments.items()] for status in Status],
        index=[*Status], columns=[*arguments],
    )  # fmt: skip


def _target(move: Callable[..., Any], status: Status, arguments: tuple[Any, ...]) -> str:
    try:
        return str(move(Task(type="mail", status=status), *arguments).status)
    except IllegalTransition:
        return ""


# --- the figures of the chapter --------------------------------------------------------------------------------------


def draw_moves(matrix: pd.DataFrame, guess: Guess | None = None) -> None:
    """Draw the table of `fire_all`, folded away until the guess is locked in; then with the guess."""
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
    told = f"You guessed {guess['legal']:g} legal moves; there are {len(pairs)}." if guess else ""
    show_figure(figure, alt, matrix.reset_index(names="from"), told=told, veil=veil(guess))


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


# --- parts that the reader writes: ours, and what a reader's version must pass ----------------------------------------


def _refuse(field: str, value: object, allowed: str) -> None:
    raise InvalidTask(f"{field} is {value!r}; allowed: {allowed}")


def check_check_number(check_number: Any) -> None:
    for low, high in ((1, 9), (0, 86400.0), (-5, -1)):
        for value in (low, high, (low + high) / 2):
            expect(
                _refusal(check_number, value, low, high), "no refusal", f"check_number('n', {value!r}, {low}, {high})"
            )
        bad = (low - 1, high + 1, low - 1e-9, high + 1e-9, float("nan"), float("inf"), True, False, "3", None, [3])
        for value in bad:
            words = f"n is {value!r}; allowed: a number from {low:,} to {high:,}"
            expect(_refusal(check_number, value, low, high), words, f"refusal of {value!r}, from {low} to {high}")


def _refusal(check_number: Any, *args: Any) -> str:
    try:
        check_number("n", *args)
    except InvalidTask as error:
        return str(error)
    return "no refusal"


@lab.checked_by(check_check_number)
def check_number(field: str, value: Any, low: float, high: float) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        _refuse(field, value, f"a number from {low:,} to {high:,}")


def check_backoff(backoff: Any) -> None:
    grid = itertools.product(
        get_args(real.Backoff), (0.5, 3.0), (0.0, 0.25, 1.0), (7.0, 86400.0), (1, 2, 3, 4, 9, 5000)
    )
    for shape, delay, jitter, cap, attempt in grid:
        task = Task(type="mail", retry_backoff=shape, retry_delay=delay, retry_jitter=jitter, retry_cap=cap)
        what = f"backoff of {shape}, retry_delay {delay}, retry_cap {cap:g}, retry_jitter {jitter}, attempt {attempt}"
        for chance in (0.0, 0.5, 1.0):
            wanted = transitions.backoff(task, attempt, lambda chance=chance: chance)
            expect(backoff(task, attempt, lambda chance=chance: chance), wanted, f"{what}, chance {chance}")
    expect(
        backoff(Task(type="mail", retry_jitter=0.5), 3),
        4.0,
        "backoff after attempt 3, with jitter, called without chance",
    )


@lab.checked_by(check_backoff)
def backoff(task: Any, attempt: int, chance: Callable[[], float] = lambda: 0.0) -> float:
    factors = {"linear": attempt, "exponential": 2.0 ** min(attempt - 1, 64)}
    delay = min(task.retry_delay * factors.get(task.retry_backoff, 1), task.retry_cap)
    return delay * (1 - task.retry_jitter * chance())


# --- a store of bytes -------------------------------------------------------------------------------------------------


class _Bytes(UserDict[str, Any]):
    """Tasks by id, of which only the bytes are kept."""

    def __init__(self, encode: Callable[[Task], bytes], decode: Callable[[bytes], Task]) -> None:
        super().__init__()
        self._encode, self._decode = encode, decode

    def __getitem__(self, id: str) -> Any:
        return self._decode(self.data[id])

    def __setitem__(self, id: str, task: Any) -> None:
        self.data[id] = self._encode(task)


class ByteStore(MemoryStore):
    """A MemoryStore that keeps each task as the bytes that `encode` makes of it, and reads it with `decode`."""

    def __init__(self, encode: Callable[[Task], bytes], decode: Callable[[bytes], Task]) -> None:
        super().__init__()
        self._tasks = _Bytes(encode, decode)

    def documents(self) -> dict[str, bytes]:
        """Return the bytes by id."""
        return dict(self._tasks.data)


# --- 1.1 a transition ------------------------------------------------------------------------------------------------


def check_cancel(cancel: Any) -> None:
    for status in Status:
        task = Task(
            type="mail", id="t", payload=[1], status=status, attempts=1, worker="w1", lease_until=40.0, started_at=5.0
        )
        if task.is_terminal:
            _expect_refusal(cancel, task)
        else:
            _expect_cancelled(cancel, task)


def _expect_refusal(cancel: Any, task: Task) -> None:
    try:
        given = cancel(task, 9.0, "no longer needed")
    except IllegalTransition:
        return
    raise Broken(f"cancel of a task that is {task.status}: expected IllegalTransition, got {given!r}")


def _expect_cancelled(cancel: Any, task: Task) -> None:
    for reason, args in (("no longer needed", ("no longer needed",)), ("cancelled by request", ())):
        given, of = cancel(task, 9.0, *args), f"after cancel{args} of a task that is {task.status}"
        expect(str(getattr(given, "status", given)), "cancelled", f"status {of}")
        wanted = transitions.cancel(task, 9.0, reason)
        for field in ("finished_at", "lease_until", "error", "result", "attempts"):
            expect(getattr(given, field), getattr(wanted, field), f"{field} {of}")
        kept = "id", "type", "payload", "priority", "run_at", "started_at", "history"
        expect(
            [getattr(given, name) for name in kept], [getattr(task, name) for name in kept], f"{', '.join(kept)} {of}"
        )
        expect(given, cancel(task, 9.0, *args), f"the same call once more, {of}")


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
    Write `cancel(task, now, reason="cancelled by request")`. A task that has not ended ends without a result, whatever
    its state: its status becomes cancelled, its error is `ErrorInfo("Cancelled", reason)`, it has finished now, and no
    worker has a lease on it any more. One that has ended refuses, with `IllegalTransition`.
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
        ("another default reason", CANCEL.replace("cancelled by request", "cancelled")),
        ("always the same reason", CANCEL.replace('("Cancelled", reason)', '("Cancelled", "cancelled by request")')),
        (
            "forgets the payload",
            CANCEL.replace("status=Status.CANCELLED, error", "status=Status.CANCELLED, payload=None, error"),
        ),
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
    for attempt, base, cap, wanted in ((1, 50.0, 30.0, 30.0), (12, 1.0, 9000.0, 2048.0), (30, 0.5, 1e9, 2.0**28)):
        what = f"full_jitter({attempt}, {base}, {cap:g}, lambda: 1.0)"
        expect(full_jitter(attempt, base, cap, lambda: 1.0), wanted, what)
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
        ("an exponent of 4 at most", FULL_JITTER.replace("64", "4")),
        (
            "a base over the cap",
            FULL_JITTER.replace(
                "min(base * 2.0 ** min(attempt - 1, 64), cap)",
                "base if attempt == 1 else min(base * 2.0 ** min(attempt - 1, 64), cap)",
            ),
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
    _expect_upgraded(upgrade, OLD | {"colour": "red"}, {"status": "pending", "retry_delay": 0.25, "colour": "red"})
    _expect_upgraded(upgrade, {"type": "mail", "delay_ms": 1500}, {"retry_delay": 1.5})
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
        (
            "drops what it does not know",
            UPGRADE.replace("return new", "return {k: v for k, v in new.items() if hasattr(Task, k)}"),
        ),
        ("whole seconds", UPGRADE.replace("/ 1000", "// 1000")),
        ("only old records", UPGRADE.replace('    if "state" in new:\n    ', "")),
    ],
)
