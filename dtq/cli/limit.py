"""`dtq limit`: how much of what may run, over all nodes."""

from __future__ import annotations

from typing import Annotated

import typer

from dtq.cli import common
from dtq.cli.common import JsonOption, StoreOption, existing, print_json, say

app = typer.Typer(no_args_is_help=True, help="Hold back what would be too much: rates, and how many run at once.")

QueueOption = Annotated[str | None, typer.Option("--queue", metavar="QUEUE", help="Only tasks of this queue.")]
TypeOption = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only tasks of this type.")]
KeyOption = Annotated[
    str | None, typer.Option("--key", metavar="KEY", help="Only tasks of this limit key; '*': each key on its own.")
]


@app.command("set")
def set_limit(
    queue: QueueOption = None,
    type: TypeOption = None,
    key: KeyOption = None,
    rate: Annotated[float | None, typer.Option(metavar="N", help="That may start in a second; 0: any.")] = None,
    burst: Annotated[
        int | None, typer.Option(metavar="N", help="That may start at once; default a tenth of the rate.")
    ] = None,
    max_running: Annotated[int | None, typer.Option(metavar="N", help="That may run at once; 0: any.")] = None,
    store: StoreOption = common.STORE,
) -> None:
    """Set or change the limit of the tasks that are named; of all, if none are.

    It holds at once, and over all nodes together. What is not said stays.
    """
    with existing(store) as manager:
        manager.limit(queue, type, key, rate=rate, burst=burst, max_running=max_running)


@app.command("list")
def list_limits(store: StoreOption = common.STORE, json: JsonOption = False) -> None:
    """All limits, and the queues that are paused."""
    with existing(store) as manager:
        limits = manager.limits()
    if json:
        print_json(limits)
    else:
        from dtq.cli import views

        views.console().print(views.table_of_limits(limits))


@app.command("remove")
def remove(
    queue: QueueOption = None, type: TypeOption = None, key: KeyOption = None, store: StoreOption = common.STORE
) -> None:
    """Take away the limit that was set with these very options."""
    with existing(store) as manager:
        manager.unlimit(queue, type, key)
    say("no such limit any more")
