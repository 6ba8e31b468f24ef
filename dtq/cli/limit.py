"""`dtq limit`: limit how many tasks start or run, over all nodes."""

from __future__ import annotations

from typing import Annotated

import typer

from dtq.cli import common
from dtq.cli.common import JsonOption, StoreOption, existing, print_json, say

app = typer.Typer(no_args_is_help=True, help="Limits: how many tasks start each second, and how many run at once.")

QueueOption = Annotated[str | None, typer.Option("--queue", metavar="QUEUE", help="Only tasks of this queue.")]
TypeOption = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only tasks of this type.")]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="Only tasks of this limit key; '*' limits each key on its own."),
]


@app.command("set")
def set_limit(
    queue: QueueOption = None,
    type: TypeOption = None,
    key: KeyOption = None,
    rate: Annotated[
        float | None, typer.Option(metavar="N", help="Tasks that may start each second; 0 for no limit.")
    ] = None,
    burst: Annotated[
        int | None, typer.Option(metavar="N", help="Tasks that may start at once; default a tenth of the rate.")
    ] = None,
    max_running: Annotated[
        int | None, typer.Option(metavar="N", help="Tasks that may run at once; 0 for no limit.")
    ] = None,
    store: StoreOption = common.STORE,
) -> None:
    """Set or change the limit of these tasks; of all, without options.

    It applies at once, to all nodes together. Values that are not given stay.
    """
    with existing(store) as manager:
        manager.limit(queue, type, key, rate=rate, burst=burst, max_running=max_running)


@app.command("list")
def list_limits(store: StoreOption = common.STORE, json: JsonOption = False) -> None:
    """List all limits, and the paused queues."""
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
    """Remove the limit that was set with the same --queue, --type and --key."""
    with existing(store) as manager:
        manager.unlimit(queue, type, key)
    say("the limit is removed")
