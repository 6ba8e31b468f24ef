"""How the commands show tasks, counts and progress. Imported only to show something, as rich takes time to import."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dtq.cli.common import readable
from dtq.policy.cron import Schedule
from dtq.policy.limits import Limit
from dtq.stores.protocol import Counts, Node, Stats
from dtq.task.model import WAITING, Attempt, Status, Task

WIDTH = 160  # columns when there is no terminal, wide enough for a whole id
MAX_SHOWN = 4000  # characters of a payload or result
STYLES = {
    "blocked": "dim", "pending": "cyan", "processing": "blue", "retrying": "yellow",
    "completed": "green", "failed": "red", "cancelled": "magenta",
}  # fmt: skip


def console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


@contextmanager
def live() -> Iterator[Callable[[RenderableType], None]]:
    """Show one thing after the other, in the same place on a terminal, else one below the other."""
    there = console()
    if not there.is_terminal:
        yield there.print
    else:
        with Live(console=there, auto_refresh=False) as view:
            yield lambda shown: view.update(shown, refresh=True)


@contextmanager
def progress(what: str, total: float | None) -> Iterator[Callable[[float, str], None]]:
    """Show a progress bar on stderr if that is a terminal. Yields `show(completed, text)`, which moves it."""
    error_console = Console(stderr=True)
    columns = (
        TextColumn(what),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=error_console, transient=True, disable=not error_console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda completed, words: bar.update(task, completed=completed, description=words)


# --- text ----------------------------------------------------------------------------------------------------------


def _text(value: object, style: str = "") -> Text:
    return Text(readable(str(value)), style)


def _status(status: str) -> Text:
    return Text(status, STYLES[status])


def when(at: float | None) -> str:
    return "" if not at else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def span(seconds: float) -> str:
    """Return a rough duration: 40 ms, 12 s, 3 min, 5 h, 2 d."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _json(value: Any) -> Text:
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    cut = f"{text[:MAX_SHOWN]}\n... ({len(text):,} characters; --json prints all)" if len(text) > MAX_SHOWN else text
    return _text(cut)


# --- many tasks -----------------------------------------------------------------------------------------------------


def table_of(tasks: Sequence[Task], now: float) -> Table:
    table = Table("id", "type", "queue", "status", "priority", "attempts", "added", "about")
    table.columns[0].no_wrap = True
    for task in tasks:
        table.add_row(
            task.id, _text(task.type), _text(task.queue), _status(task.status), str(task.priority),
            f"{task.attempts} of {task.max_attempts}", f"{span(max(0, now - task.created_at))} ago", _about(task, now),
        )  # fmt: skip
    return table


def _about(task: Task, now: float) -> Text:
    """Return the most useful fact about a task in one line."""
    if task.status in WAITING and task.run_at > now:
        return Text(f"in {span(task.run_at - now)}")
    if task.status == Status.PROCESSING:
        return _text(f"{task.progress:g} % {task.note}")
    return _text(str(task.error or "").partition("\n")[0][:100])


def table_of_schedules(schedules: Sequence[Schedule]) -> Table:
    table = Table("name", "when", "time zone", "type", "next tick", "missed ones", "problem")
    for schedule in schedules:
        timing = schedule.cron or ("" if schedule.every is None else f"every {schedule.every:g} s")
        following = when(schedule.next_at) if schedule.next_at else "paused" if schedule.paused else "none"
        kind, problem = _text(str(schedule.task.get("type", ""))), _text(schedule.problem or "")
        table.add_row(schedule.name, _text(timing), schedule.tz, kind, following, schedule.misfire, problem)
    return table


def table_of_limits(limits: Sequence[Limit]) -> Table:
    table = Table("queue", "type", "key", "a second", "at once", "running", "")
    for limit in limits:
        names = [_text("any" if name is None else name) for name in limit.selector]
        rate, burst = (f"{limit.rate:g}", str(limit.burst)) if limit.rate else ("", "")
        running = str(limit.max_running) if limit.max_running else ""
        table.add_row(*names, rate, burst, running, "paused" if limit.paused else "")
    return table


# --- one task -------------------------------------------------------------------------------------------------------

_SHOWN_APART = ("payload", "result", "error", "history", "log", "status")
_TIMES = ("run_at", "created_at", "started_at", "finished_at", "lease_until", "expires")
_ALWAYS_SHOWN = ("id", "type", "queue", "priority", "attempts", "max_attempts", "timeout", "created_at", "run_at")


def whole_task(task: Task) -> Group:
    """Render the fields that are set, then the long parts: payload, result, error, attempts, log."""
    return Group(_fields(task), *_parts(task))


def _fields(task: Task) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_row("status", _status(task.status))
    for name, value in msgspec.structs.asdict(task).items():
        if name not in _SHOWN_APART and (name in _ALWAYS_SHOWN or value not in (None, "", (), 0)):
            grid.add_row(name, _text(when(value) if name in _TIMES else value))
    return grid


def _parts(task: Task) -> Iterator[RenderableType]:
    yield from _part("payload", _json(task.payload))
    if task.status == Status.COMPLETED:
        yield from _part("result", _json(task.result))
    if task.error is not None:
        yield from _part("error", _text(task.error.traceback or task.error, "red"))
    if task.history:
        yield from _part("failed attempts", _history(task.history))
    if task.log:
        yield from _part("log", _text(task.log))


def _part(title: str, body: RenderableType) -> tuple[RenderableType, ...]:
    return Text(f"\n{title}", "bold"), body


def _history(attempts: Sequence[Attempt]) -> Table:
    table = Table("attempt", "began", "took", "worker", "error")
    for attempt in attempts:
        took = "" if attempt.started_at is None else span(attempt.finished_at - attempt.started_at)
        worker = _text(attempt.worker or "")
        table.add_row(str(attempt.number), when(attempt.started_at), took, worker, _text(attempt.error))
    return table


# --- counts ---------------------------------------------------------------------------------------------------------


def whole_stats(stats: Stats, now: float) -> Group:
    """Render the queues and their counts, the nodes, and a summary."""
    workers = stats.workers
    words = Text(f"workers: {workers.total}, {workers.active} busy, {workers.idle} idle")
    if stats.oldest is not None and stats.oldest <= now:
        words.append(f"; the oldest task has waited for {span(now - stats.oldest)}")
    return Group(_queues(stats), *([_nodes(stats.nodes, now)] if stats.nodes else ()), words)


def _queues(stats: Stats) -> Table:
    table = Table("queue", title="tasks", title_justify="left")
    for status in Status:
        table.add_column(Text(status, STYLES[status]), justify="right")
    paused = {limit.queue for limit in stats.limits if limit.paused and limit.type is None and limit.key is None}
    for name in sorted(stats.queues.keys() | {queue for queue in paused if queue is not None}):
        table.add_row(_text(f"{name} (paused)" if name in paused else name), *_cells(stats.queues.get(name, {})))
    table.add_section()
    table.add_row("all", *_cells(stats.counts))
    return table


def _cells(counts: Counts) -> list[str]:
    return [f"{counts.get(status, 0):,}" for status in Status]


def _nodes(nodes: Sequence[Node], now: float) -> Table:
    table = Table(
        "node", "host", "process", "workers", "at work", "types", "last seen", title="nodes", title_justify="left"
    )
    for node in nodes:
        table.add_row(
            _text(node.id), _text(node.host), str(node.pid), str(node.workers), str(node.busy),
            _text(", ".join(node.types)), f"{span(max(0, now - node.seen_at))} ago",
        )  # fmt: skip
    return table
