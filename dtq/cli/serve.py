"""`dtq serve`: serve the REST API and the live page of a store until a signal comes."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from dtq.cli.common import STORE as DEFAULT
from dtq.cli.common import StoreOption, check, say
from dtq.cli.node import log_to_stderr
from dtq.errors import DTQError
from dtq.stores.address import redacted


def serve(
    store: Annotated[str | None, typer.Argument(metavar="[STORE]", help="The store's URL, as with --store.")] = None,
    named: StoreOption = DEFAULT,
    host: Annotated[str, typer.Option(help="The address to listen on; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 picks a free one.")] = 3000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Number of processes that share the port.")] = 1,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file of tokens, one a line: TOKEN, or SCOPE TOKEN.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="DTQ_TOKEN", metavar="TOKEN", help="An admin token; better given in the environment or a file."
        ),
    ] = None,
    rate_limit: Annotated[
        float | None, typer.Option(min=0.001, metavar="N", help="Requests each second for each token.")
    ] = None,
    backlog_limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Refuse new tasks beyond this many unfinished ones.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A host name under which a proxy serves it; repeatable.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A web origin whose pages may use this server; repeatable."),
    ] = None,
    without_token: Annotated[
        bool, typer.Option("--without-token", help="Allow --allowed-host without a token: the proxy authenticates.")
    ] = False,
) -> None:
    """Serve the REST API, its documentation (/docs) and the live page (/).

    It runs no tasks: dtq run does. It prints its address on stdout.
    SIGTERM and SIGINT (Ctrl-C) stop it after the current requests.

    A token's scope is read, submit (also adds tasks) or admin. A line of
    the file without a scope is an admin token.

    Exit codes: 0 stopped, 2 it could not start.
    """
    try:
        from dtq.api.server import APIServer
    except ModuleNotFoundError as error:
        raise DTQError(str(error)) from None
    from dtq.queue.manager import QueueManager

    log_to_stderr()
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    tokens = _tokens(token, token_file)
    with QueueManager(check(store or named), backlog_limit=backlog_limit) as manager:
        server = APIServer(
            manager, host, port, workers > 1, workers, tokens or None, rate_limit=rate_limit,
            allowed_hosts=allowed_host or (), cors_origins=cors_origin or (), without_token=without_token,
        )  # fmt: skip
        _serve(server, store or named)


def _serve(server: object, where: str) -> None:
    from dtq.api.server import APIServer

    assert isinstance(server, APIServer)
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with server:
            typer.echo(f"ready: {server.url}, processes {' '.join(map(str, server.pids()))}, store {redacted(where)}")
            while not stopped.wait(3600):  # only a wait with a timeout lets a signal in
                pass
            say("stopping after the current requests")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tokens(token: str | None, file: Path | None) -> dict[str, str]:
    """Return tokens and their scopes. Raises DTQError if the file cannot be read; it names the line, but no token."""
    tokens = {token: "admin"} if token else {}
    for number, line in enumerate(_lines(file), 1):
        words = [] if line.startswith("#") else line.split()
        if len(words) > 2:
            raise DTQError(f"{file}, line {number}: allowed: TOKEN, or SCOPE TOKEN")
        if words:
            tokens[words[-1]] = words[0] if len(words) == 2 else "admin"
    if file is not None and not tokens:
        raise DTQError(f"{file} has no token; allowed on each line: TOKEN, or SCOPE TOKEN")
    return tokens


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        return file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DTQError(f"the tokens in {file} cannot be read: {error}") from None
