"""`dtq schedule`: work that comes by itself, by the clock."""

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

app = typer.Typer(no_args_is_help=True, help="Add tasks by the clock: schedules, and when they tick.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of the schedule.")]
NamesArgument = Annotated[list[str], typer.Argument(metavar="NAME", help="Of the schedules.")]


@app.command()
def add(
    name: NameArgument,
    type: Annotated[str, typer.Argument(metavar="TYPE", help="Which handler is to run it.")],
    payload: Annotated[str | None, typer.Argument(metavar="PAYLOAD", help="JSON; - reads it from stdin.")] = None,
    cron: Annotated[
        str | None, typer.Option(metavar="'M H D M W'", help="As in '*/5 9-17 * * MON-FRI', or @daily.")
    ] = None,
    every: Annotated[float | None, typer.Option(metavar="SECONDS", help="Instead of --cron.")] = None,
    tz: Annotated[str, typer.Option(metavar="ZONE", help="Whose clock; as in Europe/Berlin.")] = "UTC",
    misfire: Annotated[
        Misfire, typer.Option(help="Of ticks that came while nobody was there: skip them, run once, or run all.")
    ] = "once",
    queue: Annotated[str | None, typer.Option(metavar="QUEUE", help="Of the tasks; default: default.")] = None,
    priority: Annotated[int | None, typer.Option(metavar="N", help="Of the tasks; default 0.")] = None,
    max_attempts: Annotated[int | None, typer.Option(metavar="N", help="Of each task; default 3.")] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Of each attempt; default 30.")] = None,
    expires_in: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="From the tick: not started by then, it is cancelled.")
    ] = None,
    store: StoreOption = common.STORE,
) -> None:
    """Make a schedule, or edit the one that has the name; prints its next tick."""
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
    """All schedules; with --json one on each line."""
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
    """When a schedule ticks next, in its own time zone."""
    with existing(store) as manager:
        _print_next(manager, name, n)


def _print_next(manager: QueueManager, name: str, n: int) -> None:
    moments = manager.schedules.upcoming(name, n)
    for moment in moments:
        typer.echo(moment.isoformat())
    if not moments:
        say(f"{name} is paused: dtq schedule resume {name}")


@app.command()
def pause(names: NamesArgument, store: StoreOption = common.STORE) -> None:
    """Let schedules tick no more, until resume.

    Exit codes: 0 all of them, 1 not all.
    """
    with existing(store) as manager:
        _each(names, manager.schedules.pause)


@app.command()
def resume(names: NamesArgument, store: StoreOption = common.STORE) -> None:
    """Let schedules go on, with their next ticks.

    Exit codes: 0 all of them, 1 not all.
    """
    with existing(store) as manager:
        _each(names, manager.schedules.resume)


@app.command()
def remove(names: NamesArgument, store: StoreOption = common.STORE) -> None:
    """Remove schedules; the tasks that they have added stay.

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
