"""The commands that change tasks and queues: cancel, retry, purge, pause, resume."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from dtq.cli import common
from dtq.cli.common import StoreOption, complain_of_all, existing, say
from dtq.errors import IllegalTransition, UnknownTask
from dtq.queue.manager import QueueManager
from dtq.task.model import TERMINAL, Status, Task

QueueArgument = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue.")]


def cancel(
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="The tasks.")], store: StoreOption = common.STORE
) -> None:
    """Cancel waiting and running tasks, and print their ids.

    A running attempt is stopped.

    Exit codes: 0 all of them, 1 not all.
    """
    with existing(store) as manager:
        complain_of_all(_each(ids, manager.cancel))


def retry(
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="The tasks.")], store: StoreOption = common.STORE
) -> None:
    """Let failed or cancelled tasks wait again, and print their ids.

    Their attempts count from 0 again. For all failed tasks: dtq dead redrive --all

    Exit codes: 0 all of them, 1 not all.
    """
    with existing(store) as manager:
        complain_of_all(_each(ids, manager.retry))


def _each(ids: Iterable[str], change: Callable[[str], Task]) -> list[Exception]:
    """Change one task after the other, and print the id of each. Return the errors of the others."""
    problems: list[Exception] = []
    for id in ids:
        try:
            typer.echo(change(id).id)
        except (UnknownTask, IllegalTransition) as error:
            problems.append(error)
    return problems


def purge(
    store: StoreOption = common.STORE,
    age: Annotated[float, typer.Option(min=0, help="Only tasks that ended at least this many seconds ago.")] = 86400.0,
    status: Annotated[
        list[Status] | None, typer.Option(help="completed, failed or cancelled; repeatable. [default: all three]")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove tasks that have ended. This cannot be undone.

    Exit codes: 0 removed, 1 not confirmed.
    """
    statuses = set(status or TERMINAL)
    if not statuses <= TERMINAL:
        raise typer.BadParameter(f"--status is {min(statuses - TERMINAL)}; allowed: {', '.join(sorted(TERMINAL))}")
    with existing(store) as manager:
        if not yes and not _is_confirmed(manager, statuses, age):
            say("nothing was removed (--yes removes without asking)")
            raise typer.Exit(1)
        say(f"removed: {manager.cleanup(age, statuses):,}")


def _is_confirmed(manager: QueueManager, statuses: set[Status], age: float) -> bool:
    counts = manager.stats().counts
    there = ", ".join(f"{counts[status]:,} {status}" for status in sorted(statuses))
    typer.echo(f"There are {there}. Remove those that ended over {age:,g} s ago? [y/N] ", nl=False, err=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def pause(queue: QueueArgument, store: StoreOption = common.STORE) -> None:
    """Start no more tasks of a queue, on any node, until dtq resume.

    Running tasks go on.
    """
    with existing(store) as manager:
        manager.pause(queue)
    say(f"{queue} is paused; to resume it: dtq resume {queue}")


def resume(queue: QueueArgument, store: StoreOption = common.STORE) -> None:
    """Start tasks of a paused queue again."""
    with existing(store) as manager:
        manager.resume(queue)
    say(f"{queue} is resumed")
