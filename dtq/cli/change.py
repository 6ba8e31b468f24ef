"""The commands that change what is there: cancel, retry, purge, pause, resume."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Annotated

import typer

from dtq.cli import common
from dtq.cli.common import StoreOption, TypeOption, complain_of_all, existing, say
from dtq.cli.look import PAGE, pages
from dtq.errors import IllegalTransition, UnknownTask
from dtq.queue.manager import QueueManager
from dtq.task.model import TERMINAL, Status, Task
from dtq.task.transitions import revive

QueueArgument = Annotated[str, typer.Argument(metavar="QUEUE", help="Its name.")]


def cancel(
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="Of the tasks.")], store: StoreOption = common.STORE
) -> None:
    """End tasks that wait or run, and print their ids.

    Of one that runs, the attempt is stopped.

    Exit codes: 0 all of them, 1 not all.
    """
    with existing(store) as manager:
        complain_of_all(_each(ids, manager.cancel))


def retry(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Of the tasks.")] = None,
    store: StoreOption = common.STORE,
    failed: Annotated[bool, typer.Option("--failed", help="All tasks that have failed.")] = False,
    type: TypeOption = None,
) -> None:
    """Start failed or cancelled tasks afresh, and print their ids.

    Exit codes: 0 all of them, 1 not all.
    """
    if bool(ids) == failed:
        raise typer.BadParameter("give the IDs of tasks, or --failed for all that have failed")
    if type is not None and not failed:
        raise typer.BadParameter("--type goes with --failed")
    with existing(store) as manager:
        if failed:
            _retry_all(manager, type)
        else:
            complain_of_all(_each(ids or (), manager.retry))


def _each(ids: Iterable[str], change: Callable[[str], Task]) -> list[Exception]:
    """Changes one after the other, printing each id that was; gives what went wrong with the others."""
    problems: list[Exception] = []
    for id in ids:
        try:
            typer.echo(change(id).id)
        except (UnknownTask, IllegalTransition) as error:
            problems.append(error)
    return problems


def _retry_all(manager: QueueManager, type: str | None) -> None:
    """A page in each commit. One that is changed by somebody else meanwhile is no longer ours to retry."""
    from dtq.cli.views import progress

    stats, revived = manager.stats(), 0
    counts = stats.counts if type is None else stats.types.get(type, {})
    tasks = pages(manager, counts.get(Status.FAILED, 0), status=Status.FAILED, type=type)
    with progress("retrying", counts.get(Status.FAILED, 0)) as show:
        while page := list(islice(tasks, PAGE)):
            now = time.time()
            accepted = manager.store.update([(revive(task, now), ()) for task in page])
            typer.echo("".join(f"{task.id}\n" for task in page if task.id in accepted), nl=False)
            revived += len(accepted)
            show(revived, f"{revived:,} tasks")
    say(f"started afresh: {revived:,}")


def purge(
    store: StoreOption = common.STORE,
    age: Annotated[float, typer.Option(min=0, help="Seconds since they ended, at least.")] = 86400.0,
    status: Annotated[
        list[Status] | None, typer.Option(help="completed, failed or cancelled; repeatable. [default: all three]")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove tasks that have ended, for good.

    Exit codes: 0 removed, 1 the answer was no.
    """
    statuses = set(status or TERMINAL)
    if not statuses <= TERMINAL:
        raise typer.BadParameter(f"--status is {min(statuses - TERMINAL)}; allowed: {', '.join(sorted(TERMINAL))}")
    with existing(store) as manager:
        if not yes and not _agreed(manager, statuses, age):
            say("nothing was removed (--yes does it without a question)")
            raise typer.Exit(1)
        say(f"removed: {manager.cleanup(age, statuses):,}")


def _agreed(manager: QueueManager, statuses: set[Status], age: float) -> bool:
    counts = manager.stats().counts
    there = ", ".join(f"{counts[status]:,} {status}" for status in sorted(statuses))
    typer.echo(f"There are {there}. Remove those that ended over {age:,g} s ago? [y/N] ", nl=False, err=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def pause(queue: QueueArgument, store: StoreOption = common.STORE) -> None:
    """Let nothing of a queue start any more.

    That holds on every node, until dtq resume; what runs goes on.
    """
    with existing(store) as manager:
        manager.pause(queue)
    say(f"{queue} is paused: dtq resume {queue}")


def resume(queue: QueueArgument, store: StoreOption = common.STORE) -> None:
    """Let a queue that was paused go on."""
    with existing(store) as manager:
        manager.resume(queue)
    say(f"{queue} goes on")
