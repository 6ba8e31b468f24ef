"""`dtq schedule`: add tasks by the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from dtq.cli import common
from dtq.cli.add import payload_of
from dtq.cli.common import JsonOption, StoreOption, complain_of_all, existing, print_json, say
from dtq.errors import UnknownSchedule
from dtq.policy.cron import Misfire
from dtq.queue.manager import QueueManager

app = typer.Typer(no_args_is_help=True, help="Schedules: add tasks by the clock.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The schedule.")]
NamesArgument = Annotated[list[str], typer.Argument(metavar="NAME", help="The schedules.")]


@app.command()
def add(
    name: NameArgument,
    type: Annotated[str, typer.Argument(metavar="TYPE", help="The type of the tasks, which selects the handler.")],
    payload: Annotated[str | None, typer.Argument(metavar="PAYLOAD", help="JSON; - reads stdin.")] = None,
    cron: Annotated[
        str | None, typer.Option(metavar="'M H D M W'", help="Such as '*/5 9-17 * * MON-FRI', or @daily.")
    ] = None,
    every: Annotated[float | None, typer.Option(metavar="SECONDS", help="An interval, in place of --cron.")] = None,
    tz: Annotated[str, typer.Option(metavar="ZONE", help="The time zone, such as Europe/Berlin.")] = "UTC",
    misfire: Annotated[
        Misfire, typer.Option(help="For ticks missed while no node ran: skip them, run once, or run all.")
    ] = "once",
    queue: Annotated[
        str | None, typer.Option(metavar="QUEUE", help="The queue of the tasks; default: default.")
    ] = None,
    priority: Annotated[int | None, typer.Option(metavar="N", help="The priority of the tasks; default 0.")] = None,
    max_attempts: Annotated[int | None, typer.Option(metavar="N", help="Attempts of each task; default 3.")] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Limit for each attempt; default 30.")
    ] = None,
    expires_in: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Cancel a task that has not started this long after its tick."),
    ] = None,
    store: StoreOption = common.STORE,
) -> None:
    """Create a schedule, or change the one with this name, and print its next tick."""
    options = {
        "queue": queue, "priority": priority, "max_attempts": max_attempts, "timeout": timeout,
        "expires_in": expires_in,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    with QueueManager(common.check(store)) as manager:
        manager.schedule(name, cron, type, payload_of(payload), every=every, tz=tz, misfire=misfire, **given)
        _print_next(manager, name, 1)


@app.command("list")
def list_schedules(store: StoreOption = common.STORE, json: JsonOption = False) -> None:
    """List all schedules; --json prints one on each line."""
    with existing(store) as manager:
        schedules = list(manager.schedules)
    if json:
        for schedule in schedules:
            print_json(schedule)
    else:
        from dtq.cli import views

        views.console().print(views.table_of_schedules(schedules))


@app.command("next")
def next_ticks(
    name: NameArgument,
    n: Annotated[int, typer.Option("-n", min=1, max=1000, help="How many.")] = 5,
    store: StoreOption = common.STORE,
) -> None:
    """Print the next ticks of a schedule, in its time zone."""
    with existing(store) as manager:
        _print_next(manager, name, n)


def _print_next(manager: QueueManager, name: str, n: int) -> None:
    moments = manager.schedules.upcoming(name, n)
    for moment in moments:
        typer.echo(moment.isoformat())
    if not moments:
        say(f"{name} is paused; to resume it: dtq schedule resume {name}")


@app.command()
def pause(names: NamesArgument, store: StoreOption = common.STORE) -> None:
    """Pause schedules until dtq schedule resume.

    Exit codes: 0 all of them, 1 not all.
    """
    with existing(store) as manager:
        _each(names, manager.schedules.pause)


@app.command()
def resume(names: NamesArgument, store: StoreOption = common.STORE) -> None:
    """Resume paused schedules with their next ticks.

    Exit codes: 0 all of them, 1 not all.
    """
    with existing(store) as manager:
        _each(names, manager.schedules.resume)


@app.command()
def remove(names: NamesArgument, store: StoreOption = common.STORE) -> None:
    """Remove schedules. Their tasks stay.

    Exit codes: 0 all of them, 1 not all.
    """
    with existing(store) as manager:
        _each(names, manager.schedules.remove)


def _each(names: Iterable[str], change: Callable[[str], Any]) -> None:
    problems = []
    for name in names:
        try:
            change(name)
            typer.echo(name)
        except UnknownSchedule as error:
            problems.append(error)
    complain_of_all(problems)
