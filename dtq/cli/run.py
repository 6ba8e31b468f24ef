"""`dtq run`: make a node (node.py) from options and a file, and work until a signal comes."""

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
from dtq.cli.config import Config, Executor, HandlerEntry, read
from dtq.cli.node import NodeService, log_to_stderr, serve
from dtq.errors import DTQError, HandlerError


def run(
    store: StoreOfNode = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="A TOML file; options override it.")] = None,
    handler: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE=WHERE", help="The handler of a type: a .py file, or module:function; repeatable."),
    ] = None,
    pool_size: Annotated[
        int | None, typer.Option(min=0, max=1000, metavar="N", help="Number of workers; default 4.")
    ] = None,
    executor: Annotated[Executor | None, typer.Option(help="What a worker is; default process.")] = None,
    lease: Annotated[
        float | None,
        typer.Option(min=1, max=86400, metavar="SECONDS", help="After which other nodes may take over; default 30."),
    ] = None,
    max_tasks_per_worker: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Replace a worker after this many tasks; default never.")
    ] = None,
    auto_cleanup: Annotated[
        bool | None, typer.Option("--auto-cleanup/--no-cleanup", help="Remove tasks that ended long ago; default yes.")
    ] = None,
    cleanup_age: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="How long ago that is; default 86400, a day.")
    ] = None,
    max_result: Annotated[
        int | None, typer.Option(min=1, metavar="BYTES", help="The largest result; default 1 MiB.")
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VARIABLE", help="A webhook secret, and the environment variable that holds it; repeatable."
        ),
    ] = None,
    webhook_network: Annotated[
        list[str] | None,
        typer.Option(metavar="NETWORK", help="A network that webhooks may reach besides public addresses; repeatable."),
    ] = None,
    webhook_http: Annotated[
        bool | None, typer.Option("--webhook-http", help="Allow webhooks to http: URLs too.")
    ] = None,
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time for running tasks after the first signal.")
    ] = 30.0,
) -> None:
    """Run tasks until SIGTERM or SIGINT (Ctrl-C).

    Prints one line on stdout when the workers are ready, and logs failures
    and dead workers on stderr.

    The first signal drains the node: no more tasks start, and running ones
    have --grace seconds to end. The second signal forces it: running tasks
    are stopped and return to the queue, and their attempts do not count.

    Exit codes:
    0  drained
    1  forced, or --grace was over: some tasks returned to the queue
    2  the node could not start, or had to give up
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


# --- from options to a node -----------------------------------------------------------------------------------


def _handlers(pairs: Iterable[str]) -> dict[str, HandlerEntry]:
    handlers = {}
    for pair in pairs:
        type, equals, where = pair.partition("=")
        if not (type and equals and where):
            raise DTQError(f"--handler is {pair!r}; allowed: TYPE=path/to/handler.py, or TYPE=module:function")
        handlers[type] = HandlerEntry(where)
    return handlers


def _variables(pairs: Iterable[str]) -> dict[str, str]:
    """Return the variables of the secrets. Errors quote nothing: a user may have given the secret itself."""
    variables = {name: variable for name, _, variable in (pair.partition("=") for pair in pairs)}
    if not all(name and variable for name, variable in variables.items()):
        raise DTQError(
            "--secret is malformed; allowed: NAME=VARIABLE, where the environment variable VARIABLE holds the secret"
        )
    return variables


def _secrets(variables: Mapping[str, str]) -> dict[str, str]:
    """Read the secrets from the environment."""
    for name, variable in variables.items():
        if not os.environ.get(variable):
            raise DTQError(f"the environment variable for the secret {name!r} is not set")
    return {name: os.environ[variable] for name, variable in variables.items()}


def _make_importable(*directories: Path) -> None:
    """Let handlers import modules from these directories, as `python -m` does for the working directory."""
    sys.path[:0] = [str(directory) for directory in directories]


def _make(config: Config) -> NodeService:
    """Make the node. Raises DTQError if it could not work as described; no store is created then."""
    if not config.handlers:
        raise DTQError("the node has no handlers: give --handler TYPE=WHERE, or a section [handlers] in the file")
    if config.pools and config.pool_size is not None:
        raise DTQError("pool_size is for a node without [pools]: give one of them, not both")
    for type, entry in config.entries():
        _require_module(type, entry.handler)
    options = {name: value for name, value in msgspec.structs.asdict(config).items() if value not in (None, {}, ())}
    options["handlers"] = {type: entry.handler for type, entry in config.entries()}
    options["secrets"] = _secrets(config.secrets)
    node = NodeService(check(options.pop("store", STORE)), **options)
    for type, entry in config.entries():
        node.register(type, entry.handler, entry.concurrency, retry_on=entry.retry_on, give_up_on=entry.give_up_on)
    return node


def _require_module(type: str, where: str) -> None:
    """Refuse a handler whose module does not exist: a worker could not import it, and every task of the type would
    fail."""
    name = where.partition(":")[0].partition(".")[0]
    if not where.endswith(".py") and name.isidentifier() and name not in sys.modules and find_spec(name) is None:
        raise HandlerError(
            f"the handler of {type!r} is {where!r}, but there is no module {name!r}: not in {os.getcwd()}, not beside "
            "the file of --config, and none is installed"
        )
