"""`dtq dead`: list, show, redrive and purge dead letters, the tasks that have failed permanently."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from dtq.cli import common
from dtq.cli.common import JsonOption, StoreOption, TypeOption, complain_of_all, existing, print_json, say
from dtq.cli.look import pages, print_table
from dtq.errors import UnknownTask

app = typer.Typer(no_args_is_help=True, help="Dead letters: tasks that have failed permanently.")

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="The tasks; or select them by options.")]
QueueOption = Annotated[str | None, typer.Option("--queue", metavar="QUEUE", help="Only tasks of this queue.")]
ErrorOption = Annotated[
    str | None,
    typer.Option("--error", metavar="TYPE", help="Only tasks with this error, such as Timeout or WorkerDied."),
]
WithinOption = Annotated[
    float | None, typer.Option("--within", min=0, metavar="SECONDS", help="Only tasks that failed within this time.")
]
AllOption = Annotated[bool, typer.Option("--all", help="All dead letters.")]


@app.command("list")
def list_letters(
    store: StoreOption = common.STORE,
    queue: QueueOption = None,
    type: TypeOption = None,
    error: ErrorOption = None,
    within: WithinOption = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, at most.")] = 20,
    after: Annotated[str, typer.Option(metavar="ID", help="Start after this task.")] = "",
    json: JsonOption = False,
) -> None:
    """List dead letters, oldest first; --json prints one on each line."""
    with existing(store) as manager:
        filters = _filters(queue, type, error, within)
        if json:
            for task in pages(manager.dead, limit, after, brief=False, **filters):
                print_json(task)
        else:
            print_table(manager.dead.find(limit=limit, after=after, brief=True, **filters), limit)


@app.command()
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="The task.")],
    store: StoreOption = common.STORE,
    json: JsonOption = False,
) -> None:
    """Show one dead letter with all of its attempts."""
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
    rate: Annotated[float | None, typer.Option(metavar="N", help="Make this many due each second.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many, at most.")] = None,
) -> None:
    """Let dead letters wait again, with all their attempts, and print their ids.

    Exit codes: 0 all of them, 1 not all.
    """
    filters = _chosen(ids, _filters(queue, type, error, within), all)
    with existing(store) as manager:
        redriven = manager.dead.redrive(*(ids or ()), rate=rate, limit=limit, **filters)
    typer.echo("".join(f"{id}\n" for id in redriven), nl=False)
    say(f"redriven: {len(redriven):,}")
    complain_of_all([UnknownTask(f"{id} is not a dead letter") for id in ids or () if id not in redriven])


@app.command()
def purge(
    ids: Ids = None,
    store: StoreOption = common.STORE,
    queue: QueueOption = None,
    type: TypeOption = None,
    error: ErrorOption = None,
    all: AllOption = False,
    age: Annotated[float, typer.Option(min=0, help="Only tasks that failed at least this many seconds ago.")] = 0.0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove dead letters. This cannot be undone.

    Exit codes: 0 removed, 1 not confirmed.
    """
    filters = _chosen(ids, _filters(queue, type, error, None), all or age > 0)
    with existing(store) as manager:
        if not yes and not _is_confirmed(len(ids) if ids else len(manager.dead)):
            say("nothing was removed (--yes removes without asking)")
            raise typer.Exit(1)
        say(f"removed: {manager.dead.purge(*(ids or ()), age=age, **filters):,}")


def _filters(queue: str | None, type: str | None, error: str | None, within: float | None) -> dict[str, Any]:
    since = None if within is None else time.time() - within
    given = {"queue": queue, "type": type, "error": error, "since": since}
    return {name: value for name, value in given.items() if value is not None}


def _chosen(ids: list[str] | None, filters: dict[str, Any], all: bool) -> dict[str, Any]:
    """Return the filters if exactly one way selects the tasks: by id or by options. Raises BadParameter otherwise."""
    if bool(ids) == bool(filters or all):
        raise typer.BadParameter("give the IDs of tasks, or select them with --all, --queue, --type or --error")
    return filters


def _is_confirmed(n: int) -> bool:
    typer.echo(f"Remove dead letters (there are {n:,})? [y/N] ", nl=False, err=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
