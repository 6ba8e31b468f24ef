"""`dtq dead`: the tasks that have failed for good: list, show, redrive, purge."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from dtq.cli import common
from dtq.cli.common import JsonOption, StoreOption, TypeOption, complain_of_all, existing, print_json, say
from dtq.cli.look import pages, print_table
from dtq.errors import UnknownTask

app = typer.Typer(no_args_is_help=True, help="The dead letters: tasks that have failed for good.")

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Of the tasks; or say which ones by options.")]
QueueOption = Annotated[str | None, typer.Option("--queue", metavar="QUEUE", help="Only tasks of this queue.")]
ErrorOption = Annotated[
    str | None, typer.Option("--error", metavar="TYPE", help="Only with this error, as in Timeout, WorkerDied.")
]
WithinOption = Annotated[
    float | None, typer.Option("--within", min=0, metavar="SECONDS", help="Only what failed so lately.")
]
AllOption = Annotated[bool, typer.Option("--all", help="All of them.")]


@app.command("list")
def list_letters(
    store: StoreOption = common.STORE,
    queue: QueueOption = None,
    type: TypeOption = None,
    error: ErrorOption = None,
    within: WithinOption = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, at most.")] = 20,
    after: Annotated[str, typer.Option(metavar="ID", help="Go on behind this one.")] = "",
    json: JsonOption = False,
) -> None:
    """What has failed, oldest first; with --json one on each line."""
    with existing(store) as manager:
        filters = _filters(queue, type, error, within)
        if json:
            for task in pages(manager.dead, limit, after, brief=False, **filters):
                print_json(task)
        else:
            print_table(manager.dead.find(limit=limit, after=after, brief=True, **filters), limit)


@app.command()
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="Of the task.")],
    store: StoreOption = common.STORE,
    json: JsonOption = False,
) -> None:
    """One of them, with all of its attempts."""
    with existing(store) as manager:
        task = manager.dead.get(id)
    if json:
        print_json(task)
    else:
        from dtq.cli import views

        views.console().print(views.whole_task(task))


@app.command()
def redrive(
    ids: Ids = None,
    store: StoreOption = common.STORE,
    queue: QueueOption = None,
    type: TypeOption = None,
    error: ErrorOption = None,
    within: WithinOption = None,
    all: AllOption = False,
    rate: Annotated[float | None, typer.Option(metavar="N", help="So many a second become due.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many, at most.")] = None,
) -> None:
    """Start them afresh, with all their attempts, and print their ids.

    Exit codes: 0 all of them, 1 not all.
    """
    filters = _chosen(ids, _filters(queue, type, error, within), all)
    with existing(store) as manager:
        redriven = manager.dead.redrive(*(ids or ()), rate=rate, limit=limit, **filters)
    typer.echo("".join(f"{id}\n" for id in redriven), nl=False)
    say(f"redriven: {len(redriven):,}")
    complain_of_all([UnknownTask(f"{id} is no dead letter") for id in ids or () if id not in redriven])


@app.command()
def purge(
    ids: Ids = None,
    store: StoreOption = common.STORE,
    queue: QueueOption = None,
    type: TypeOption = None,
    error: ErrorOption = None,
    all: AllOption = False,
    age: Annotated[float, typer.Option(min=0, help="Seconds since they failed, at least.")] = 0.0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove them for good.

    Exit codes: 0 removed, 1 the answer was no.
    """
    filters = _chosen(ids, _filters(queue, type, error, None), all or age > 0)
    with existing(store) as manager:
        if not yes and not _agreed(len(ids) if ids else len(manager.dead)):
            say("nothing was removed (--yes does it without a question)")
            raise typer.Exit(1)
        say(f"removed: {manager.dead.purge(*(ids or ()), age=age, **filters):,}")


def _filters(queue: str | None, type: str | None, error: str | None, within: float | None) -> dict[str, Any]:
    since = None if within is None else time.time() - within
    given = {"queue": queue, "type": type, "error": error, "since": since}
    return {name: value for name, value in given.items() if value is not None}


def _chosen(ids: list[str] | None, filters: dict[str, Any], all: bool) -> dict[str, Any]:
    """The filters, if it was said which tasks are meant, and in one way only."""
    if bool(ids) == bool(filters or all):
        raise typer.BadParameter("give the IDs of tasks, or say which ones: --all, --queue, --type, --error")
    return filters


def _agreed(n: int) -> bool:
    typer.echo(f"Remove dead letters (there are {n:,})? [y/N] ", nl=False, err=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
