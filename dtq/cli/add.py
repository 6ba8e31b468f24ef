"""`dtq add`: add one task from the command line, or many from a file of JSON lines.

tasks.jsonl --> lines --> batches of 1,000 --> add_many: a whole batch or nothing --> ids on stdout
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import IO, Annotated, Any, get_args

import msgspec
import typer

from dtq.cli import common
from dtq.cli.common import StoreOption, complain, counted, print_json, say
from dtq.errors import DTQError, InvalidTask
from dtq.queue.manager import QueueManager
from dtq.task.model import Backoff, Status
from dtq.task.unique import OnConflict

TASKS_PER_ADD = 1000  # each add is one commit


def add(
    type: Annotated[str | None, typer.Argument(metavar="TYPE", help="The type, which selects the handler.")] = None,
    payload: Annotated[str | None, typer.Argument(metavar="PAYLOAD", help="JSON; - reads stdin.")] = None,
    store: StoreOption = common.STORE,
    file: Annotated[
        str | None, typer.Option(metavar="FILE", help="A file of tasks, one JSON object a line; - is stdin.")
    ] = None,
    queue: Annotated[str | None, typer.Option(metavar="NAME", help="The queue; default: default.")] = None,
    priority: Annotated[int | None, typer.Option(metavar="N", help="-1000 to 1000, higher first; default 0.")] = None,
    max_attempts: Annotated[int | None, typer.Option(metavar="N", help="Attempts before it fails; default 3.")] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Limit for each attempt; default 30.")
    ] = None,
    retry_delay: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Before the next attempt; default 1.")
    ] = None,
    retry_backoff: Annotated[
        Backoff | None, typer.Option(metavar="HOW", help=f"{', '.join(get_args(Backoff))}; default exponential.")
    ] = None,
    delay: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Start it no earlier than this, from now.")
    ] = None,
    expires_in: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Cancel it if it has not started by then, from now.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="A unique key; if a task has it already, that task counts.")] = None,
    window: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="With --key: how long it stays taken after its task ended.")
    ] = None,
    on_conflict: Annotated[
        OnConflict | None, typer.Option(metavar="HOW", help=f"With --key: {', '.join(get_args(OnConflict))}.")
    ] = None,
    limit_key: Annotated[str | None, typer.Option(metavar="KEY", help="Tasks of different keys take turns.")] = None,
    after: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Wait for this task to end; repeatable.")
    ] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Send the outcome to this URL.")] = None,
    webhook_secret: Annotated[
        str | None, typer.Option(metavar="NAME", help="The secret that signs the webhook.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result, and print it as JSON.")] = False,
    wait_timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Wait for the result, but no longer than this.")
    ] = None,
) -> None:
    """Add one task or many, and print their ids.

    With --file, the options are defaults for every line of the file.

    Exit codes:
      0  done
      1  a part of the file was added
      2  nothing was added
      3  the awaited task failed, or was cancelled
      4  the awaited task did not end in time
    130  interrupted
    """
    options: dict[str, Any] = {
        "type": type, "queue": queue, "priority": priority, "max_attempts": max_attempts, "timeout": timeout,
        "retry_delay": retry_delay, "retry_backoff": retry_backoff, "delay": delay, "expires_in": expires_in,
        "key": key, "window": window, "on_conflict": on_conflict, "limit_key": limit_key, "after": after or None,
    }  # fmt: skip
    if webhook is not None:
        options["webhook"] = {"url": webhook, "secret": webhook_secret}
    elif webhook_secret is not None:
        raise typer.BadParameter("--webhook-secret needs --webhook")
    given = {name: value for name, value in options.items() if value is not None}
    _check(type, payload, file is not None, key, wait or wait_timeout is not None, window, on_conflict)
    with QueueManager(common.check(store)) as manager:
        if file is not None:
            _add_file(manager, file, given)
        else:
            _add_one(manager, given | {"payload": payload_of(payload)}, wait or wait_timeout is not None, wait_timeout)


def _check(
    type: str | None, payload: str | None, many: bool, key: str | None, wait: bool, window: float | None,
    on_conflict: str | None,
) -> None:  # fmt: skip
    if not many and type is None:
        raise typer.BadParameter("name the TYPE of the task, or a --file of tasks")
    if many and payload is not None:
        raise typer.BadParameter("PAYLOAD is for one task; in a --file, each line has its own")
    if many and key is not None:
        raise typer.BadParameter("--key is for one task; in a --file, each line has its own")
    if many and (window is not None or on_conflict is not None):
        raise typer.BadParameter("--window and --on-conflict are for one task, not for a --file")
    if many and wait:
        raise typer.BadParameter("--wait is for one task, not for a --file")


# --- one


def payload_of(text: str | None) -> Any:
    """Return the payload that this JSON describes. Raises InvalidTask for anything but JSON."""
    if text is None:
        return None
    given = sys.stdin.read() if text == "-" else text
    try:
        return msgspec.json.decode(given)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        shown = given if len(given) <= 60 else given[:57] + "..."
        raise InvalidTask(f"PAYLOAD is {shown!r}; allowed: JSON, as in '{{\"n\": 1}}' or '\"text\"': {error}") from None


def _add_one(manager: QueueManager, options: dict[str, Any], wait: bool, timeout: float | None) -> None:
    id = manager.add(**options).id
    if not wait:
        typer.echo(id)
        return
    say(id)  # stdout has only the result
    try:
        task = manager.wait_for(id, timeout)
    except TimeoutError as error:
        complain(f"dtq add: {error}")
        raise typer.Exit(4) from None
    if task.status != Status.COMPLETED:
        verb = "failed" if task.status == Status.FAILED else "was cancelled"
        complain(f"dtq add: task {id} ({task.type}) {verb}: {task.error}")
        raise typer.Exit(3)
    print_json(task.result)


# --- many


class JsonLines:
    """The tasks in the lines of a file, in batches.

    - `number`: the number of the last line that was read
    - `size`: the bytes up to the end of that line
    - `within`: a line is being read or checked, so an error now is an error of that line
    """

    def __init__(self, file: Iterable[bytes], defaults: Mapping[str, Any]) -> None:
        self.number = self.size = 0
        self.within = False
        self._defaults = defaults
        self._tasks = self._read(file)

    def batch(self) -> Iterator[dict[str, Any]]:
        self.within = True
        yield from islice(self._tasks, TASKS_PER_ADD)
        self.within = False

    def _read(self, file: Iterable[bytes]) -> Iterator[dict[str, Any]]:
        for line in file:
            self.number, self.size = self.number + 1, self.size + len(line)
            if line.strip():
                yield {**self._defaults, **_from_line(line)}


def _from_line(line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidTask(f"a line must be one JSON object: {error}") from None


@contextmanager
def _opened(path: str) -> Iterator[tuple[IO[bytes], float | None]]:
    """Open the file, with its size in bytes if it has one."""
    if path == "-":
        yield sys.stdin.buffer, None
    else:
        with open(path, "rb") as file:
            yield file, os.path.getsize(path) or None  # a pipe has none


def _add_file(manager: QueueManager, path: str, defaults: Mapping[str, Any]) -> None:
    """Add the tasks in this file. Raises typer.Exit at the first error; batches before it stay added."""
    from dtq.cli.views import progress

    added = 0
    try:
        with _opened(path) as (file, size), progress("adding", size) as show:
            lines = JsonLines(file, defaults)
            while ids := [handle.id for handle in manager.add_many(lines.batch())]:
                added += len(ids)
                typer.echo("\n".join(ids))
                show(lines.size, counted(added, "task"))
    except DTQError as error:
        where = f"line {lines.number}" if lines.within else f"the batch that ends with line {lines.number}"
        complain(f"dtq add: {path}, {where}: {error}")
        raise typer.Exit(1 if added else 2) from None
    finally:
        say(f"added: {added:,}")
