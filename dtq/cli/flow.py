"""`dtq flow`: add a graph of tasks from a file, then show, cancel or retry it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from dtq.cli import common
from dtq.cli.common import JsonOption, StoreOption, existing, print_json, say
from dtq.cli.look import print_table
from dtq.errors import InvalidTask
from dtq.queue.flow import FlowState
from dtq.queue.manager import QueueManager

app = typer.Typer(no_args_is_help=True, help="Flows: tasks that wait for each other.")

IdArgument = Annotated[str, typer.Argument(metavar="FLOW", help="The flow's id, as dtq flow add printed it.")]


@app.command()
def add(
    file: Annotated[str, typer.Argument(metavar="FILE", help='JSON: {"name": {"type": ...}}; - is stdin.')],
    store: StoreOption = common.STORE,
    id: Annotated[
        str | None, typer.Option(metavar="ID", help="The flow's id; adding it again changes nothing.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the last result, and print it as JSON.")] = False,
) -> None:
    """Add a graph of tasks in one commit, and print the id of the flow.

    Each task has the fields of dtq add --file, plus "after": the names of the tasks that it waits for.
    """
    with QueueManager(common.check(store)) as manager:
        flow = manager.flow(_read(file), id)
        if not wait:
            typer.echo(flow.id)
            return
        say(flow.id)
        print_json(flow.result())


@app.command()
def show(
    id: IdArgument,
    store: StoreOption = common.STORE,
    limit: Annotated[int, typer.Option(min=1, help="How many tasks, at most.")] = 20,
    json: JsonOption = False,
) -> None:
    """Show the progress of a flow and its tasks."""
    with existing(store) as manager:
        flow = manager.get_flow(id)
        if json:
            print_json(flow.state())
            return
        tasks = flow.tasks(brief=True)
        print_table(tasks[:limit], len(flow) + 1)
        state = FlowState.of(flow.id, tasks)
        counts = ", ".join(f"{n:,} {status}" for status, n in state.counts.items() if n)
        typer.echo(f"{flow.id}: {state.status}, {state.progress:.0f} %, {counts}")


@app.command()
def cancel(id: IdArgument, store: StoreOption = common.STORE) -> None:
    """Cancel all tasks of a flow that have not ended."""
    with existing(store) as manager:
        say(f"cancelled: {manager.get_flow(id).cancel():,}")


@app.command()
def retry(id: IdArgument, store: StoreOption = common.STORE) -> None:
    """Retry the failed and cancelled tasks of a flow."""
    with existing(store) as manager:
        say(f"retried: {manager.get_flow(id).retry():,}")


def _read(file: str) -> dict[str, Any]:
    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return msgspec.json.decode(text, type=dict[str, dict[str, Any]])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidTask(
            f'{file} is not a graph; allowed: {{"name": {{"type": ..., "after": [...]}}}}: {error}'
        ) from None
