"""The commands that only read: get, list, stats."""

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

BRIEF_PER_PAGE, WHOLE_PER_PAGE = 1000, 50  # tasks that one read returns, without or with payload, result and log


def get(
    id: Annotated[str, typer.Argument(metavar="ID", help="The task.")],
    store: StoreOption = common.STORE,
    json: JsonOption = False,
) -> None:
    """Show everything about one task: its options, progress, errors and output."""
    with existing(store) as manager:
        task = manager.get(id)
    if json:
        print_json(task)
    else:
        from dtq.cli import views

        views.console().print(views.whole_task(task))


def list_tasks(
    store: StoreOption = common.STORE,
    status: Annotated[Status | None, typer.Option(help="Only tasks with this status.")] = None,
    queue: Annotated[str | None, typer.Option(metavar="QUEUE", help="Only tasks of this queue.")] = None,
    type: TypeOption = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, at most.")] = 20,
    after: Annotated[str, typer.Option(metavar="ID", help="Start after this task.")] = "",
    json: JsonOption = False,
) -> None:
    """List tasks, oldest first; --json prints one on each line."""
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
    """Yield up to `limit` tasks by id, and read them page by page."""
    page_size = BRIEF_PER_PAGE if brief else WHOLE_PER_PAGE
    while limit > 0 and (page := manager.find(after=after, limit=min(limit, page_size), brief=brief, **wanted)):
        yield from page
        limit, after = limit - len(page), page[-1].id


def print_table(tasks: list[Task], limit: int) -> None:
    from dtq.cli import views

    views.console().print(views.table_of(tasks, time.time()))
    if len(tasks) == limit:
        say(f"there may be more: use --after {tasks[-1].id}, or a higher --limit")


def stats(store: StoreOption = common.STORE, json: JsonOption = False) -> None:
    """Show how many tasks have each status, which nodes work, and how long the oldest task has waited.

    dtq top shows live what happens.
    """
    with existing(store) as manager:
        if json:
            print_json(_as_json(manager.stats()))
        else:
            from dtq.cli import views

            views.console().print(views.whole_stats(manager.stats(), time.time()))


def _as_json(stats: Stats) -> dict[str, Any]:
    workers = {"total": stats.workers.total, "active": stats.workers.active, "idle": stats.workers.idle}
    return {"at": time.time(), **msgspec.structs.asdict(stats), "unfinished": stats.unfinished, "workers": workers}
