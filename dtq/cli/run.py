"""`dtq run`: from options and a file to a node (node.py), which works until it is told to stop."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from dtq.cli.common import STORE, StoreOfNode, check
from dtq.cli.config import Config, Entry, Executor, read
from dtq.cli.node import Node, log_to_stderr, serve
from dtq.errors import DTQError, HandlerError


def run(
    store: StoreOfNode = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="A TOML file; options go before it.")] = None,
    handler: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE=WHERE", help="Who runs a type: a .py file, or module:function; repeatable."),
    ] = None,
    pool_size: Annotated[
        int | None, typer.Option(min=0, max=1000, metavar="N", help="How many workers; default 4.")
    ] = None,
    executor: Annotated[Executor | None, typer.Option(help="What a worker is; default process.")] = None,
    lease: Annotated[
        float | None,
        typer.Option(min=1, max=86400, metavar="SECONDS", help="Until other nodes may take over; default 30."),
    ] = None,
    max_tasks_per_worker: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Replace a worker after so many; default never.")
    ] = None,
    auto_cleanup: Annotated[
        bool | None, typer.Option("--auto-cleanup/--no-cleanup", help="Remove what ended long ago; default yes.")
    ] = None,
    cleanup_age: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="How long ago that is; default 86400, a day.")
    ] = None,
    max_result: Annotated[
        int | None, typer.Option(min=1, metavar="BYTES", help="That a result may have; default 1 MiB.")
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VARIABLE", help="Of webhooks, and the environment variable that holds it; repeatable."
        ),
    ] = None,
    webhook_network: Annotated[
        list[str] | None,
        typer.Option(metavar="NETWORK", help="That webhooks may reach beside public addresses; repeatable."),
    ] = None,
    webhook_http: Annotated[
        bool | None, typer.Option("--webhook-http", help="Let webhooks go to http: URLs too.")
    ] = None,
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="That running tasks have left after the first signal.")
    ] = 30.0,
) -> None:
    """Run tasks until SIGTERM or SIGINT (Ctrl-C).

    Says in one line on stdout when its workers are ready, and tells of
    failures and dead workers on stderr.

    The first signal drains: no more tasks begin, and those that run have
    --grace seconds. The second forces: what still runs is stopped and goes
    back to the queue, and no attempt is counted for it.

    Exit codes:
    0  drained
    1  forced, or --grace was over: some of what ran went back
    2  it could not start, or had to give up
    """
    given = (read(config) if config else Config()).with_options(
        _handlers(handler or ()), _variables(secret or ()), store=store, pool_size=pool_size, executor=executor,
        lease=lease,
        max_tasks_per_worker=max_tasks_per_worker, auto_cleanup=auto_cleanup, cleanup_age=cleanup_age,
        max_result=max_result, webhook_networks=tuple(webhook_network) if webhook_network else None,
        webhook_http=webhook_http,
    )  # fmt: skip
    _make_importable(Path.cwd(), *([config.absolute().parent] if config else []))
    log_to_stderr()
    raise typer.Exit(serve(_make(given), grace))


# --- from what was said to a node -----------------------------------------------------------------------------------


def _handlers(pairs: Iterable[str]) -> dict[str, Entry]:
    handlers = {}
    for pair in pairs:
        type, equals, where = pair.partition("=")
        if not (type and equals and where):
            raise DTQError(f"--handler is {pair!r}; allowed: TYPE=path/to/handler.py, or TYPE=module:function")
        handlers[type] = Entry(where)
    return handlers


def _variables(pairs: Iterable[str]) -> dict[str, str]:
    """Errors show nothing of it: it may be the secret itself, where its variable was meant."""
    variables = {name: variable for name, _, variable in (pair.partition("=") for pair in pairs)}
    if not all(name and variable for name, variable in variables.items()):
        raise DTQError("--secret is not as it should be; allowed: NAME=VARIABLE, which holds the secret")
    return variables


def _secrets(variables: Mapping[str, str]) -> dict[str, str]:
    """The secrets themselves, which only the environment knows."""
    for name, variable in variables.items():
        if not os.environ.get(variable):
            raise DTQError(f"the variable of the environment that is to hold the secret {name!r} is not set")
    return {name: os.environ[variable] for name, variable in variables.items()}


def _make_importable(*directories: Path) -> None:
    """As `python -m` does it: what lies in the working directory, or beside the file, can be named as a module."""
    sys.path[:0] = [str(directory) for directory in directories]


def _make(config: Config) -> Node:
    """Raises DTQError where the node could not work as it was described; then no store was made either."""
    if not config.handlers:
        raise DTQError("there is nothing to run: give --handler TYPE=WHERE, or a section [handlers] in the file")
    if config.pools and config.pool_size is not None:
        raise DTQError("pool_size is the size of the only pool, but there are [pools]: give one of them, not both")
    for type, entry in config.entries():
        _require_module(type, entry.handler)
    options = {name: value for name, value in msgspec.structs.asdict(config).items() if value not in (None, {}, ())}
    options["handlers"] = {type: entry.handler for type, entry in config.entries()}
    options["secrets"] = _secrets(config.secrets)
    node = Node(check(options.pop("store", STORE)), **options)
    for type, entry in config.entries():
        node.register(type, entry.handler, entry.concurrency, retry_on=entry.retry_on, give_up_on=entry.give_up_on)
    return node


def _require_module(type: str, where: str) -> None:
    """A worker that cannot import a handler's module fails every task of the type: better not to begin."""
    name = where.partition(":")[0].partition(".")[0]
    if not where.endswith(".py") and name.isidentifier() and name not in sys.modules and find_spec(name) is None:
        raise HandlerError(
            f"the handler of {type!r} is {where!r}, but there is no module {name!r}: not in {os.getcwd()}, not beside "
            "the file of --config, and none is installed"
        )
