"""The commands that only look: get, list, stats."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer

from dtq.cli import common
from dtq.cli.common import JsonOption, StoreOption, TypeOption, existing, print_json, say
from dtq.queue.dead_letters import DeadLetters
from dtq.queue.manager import QueueManager
from dtq.stores.protocol import Stats
from dtq.task.model import Status, Task

PAGE, WHOLE = 1000, 50  # tasks that are read at once, brief or with all that they carry


def get(
    id: Annotated[str, typer.Argument(metavar="ID", help="Of the task.")],
    store: StoreOption = common.STORE,
    json: JsonOption = False,
) -> None:
    """Everything about one task: what it is, how far it is, what went wrong, what it printed."""
    with existing(store) as manager:
        task = manager.get(id)
    if json:
        print_json(task)
    else:
        from dtq.cli import views

        views.console().print(views.whole_task(task))


def list_tasks(
    store: StoreOption = common.STORE,
    status: Annotated[Status | None, typer.Option(help="Only tasks of this status.")] = None,
    queue: Annotated[str | None, typer.Option(metavar="QUEUE", help="Only tasks of this queue.")] = None,
    type: TypeOption = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, at most.")] = 20,
    after: Annotated[str, typer.Option(metavar="ID", help="Go on behind this one.")] = "",
    json: JsonOption = False,
) -> None:
    """Tasks, oldest first; with --json one on each line."""
    with existing(store) as manager:
        tasks = pages(manager, limit, after=after, status=status, queue=queue, type=type, brief=not json)
        if json:
            for task in tasks:
                print_json(task)
        else:
            print_table(list(tasks), limit)


def pages(
    manager: QueueManager | DeadLetters, limit: int, after: str = "", brief: bool = True, **wanted: Any
) -> Iterator[Task]:
    """Yield up to `limit` tasks by id, fetched page by page."""
    most = PAGE if brief else WHOLE
    while limit > 0 and (page := manager.find(after=after, limit=min(limit, most), brief=brief, **wanted)):
        yield from page
        limit, after = limit - len(page), page[-1].id


def print_table(tasks: list[Task], limit: int) -> None:
    from dtq.cli import views

    views.console().print(views.table_of(tasks, time.time()))
    if len(tasks) == limit:
        say(f"there may be more: --after {tasks[-1].id}, or a higher --limit")


def stats(
    store: StoreOption = common.STORE,
    json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, until Ctrl-C, which then is no error.")] = False,
    every: Annotated[float, typer.Option(min=0.05, max=3600, help="Seconds between looks of --watch.")] = 1.0,
) -> None:
    """How many tasks are where, who is at work, and how long the oldest has waited."""
    if watch and json:
        raise typer.BadParameter("--watch is for people; with --json it is one document, now")
    with existing(store) as manager:
        if json:
            print_json(_as_json(manager.stats()))
        elif watch:
            _watch(manager, every)
        else:
            from dtq.cli import views

            views.console().print(views.whole_stats(manager.stats(), time.time()))


def _as_json(stats: Stats) -> dict[str, Any]:
    workers = {"total": stats.workers.total, "active": stats.workers.active, "idle": stats.workers.idle}
    return {"at": time.time(), **msgspec.structs.asdict(stats), "unfinished": stats.unfinished, "workers": workers}


def _watch(manager: QueueManager, every: float) -> None:
    from dtq.cli import views

    try:
        with views.live() as show:
            while True:
                show(views.whole_stats(manager.stats(), time.time()))
                time.sleep(every)
    except KeyboardInterrupt:
        return
