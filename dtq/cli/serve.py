"""`dtq serve`: the REST API and the live page over a store, until it is told to stop."""

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
    store: Annotated[str | None, typer.Argument(metavar="[STORE]", help="The store's URL; as --store.")] = None,
    named: StoreOption = DEFAULT,
    host: Annotated[str, typer.Option(help="Where to listen; elsewhere than here a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any that is free.")] = 3000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that share the port.")] = 1,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Tokens, one on a line: TOKEN, or SCOPE TOKEN.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="DTQ_TOKEN", metavar="TOKEN", help="Better in the environment or a file.")
    ] = None,
    rate_limit: Annotated[
        float | None, typer.Option(min=0.001, metavar="N", help="Requests a second with each token.")
    ] = None,
    backlog_limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Unfinished tasks, beyond which none is taken.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="By which a proxy is reached; repeatable.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Whose pages may use this server; repeatable.")
    ] = None,
) -> None:
    """Serve the REST API, its documentation (/docs) and the live page (/).

    Workers are another process's business: dtq run. Says on stdout where
    it is reached. SIGTERM and SIGINT (Ctrl-C) stop it when what was asked
    has been answered.

    A token's scope is read, submit (adds tasks, too) or admin; a line of
    the file that names none is for an admin.

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
            allowed_hosts=allowed_host or (), cors_origins=cors_origin or (),
        )  # fmt: skip
        _serve(server, store or named)


def _serve(server: object, where: str) -> None:
    from dtq.api.server import APIServer

    assert isinstance(server, APIServer)
    told = threading.Event()
    before = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with server:
            typer.echo(f"ready: {server.url}, processes {' '.join(map(str, server.pids()))}, store {redacted(where)}")
            while not told.wait(3600):  # a wait with a time can be ended by a signal
                pass
            say("stopping: what was asked is still answered")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tokens(token: str | None, file: Path | None) -> dict[str, str]:
    """Tokens and their scopes. Raises DTQError where the file cannot be read, naming the line but no token."""
    tokens = {token: "admin"} if token else {}
    for number, line in enumerate(_lines(file), 1):
        words = [] if line.startswith("#") else line.split()
        if len(words) > 2:
            raise DTQError(f"{file}, line {number}: allowed: TOKEN, or SCOPE TOKEN")
        if words:
            tokens[words[-1]] = words[0] if len(words) == 2 else "admin"
    if file is not None and not tokens:
        raise DTQError(f"{file} has no token: write one on a line, or SCOPE TOKEN")
    return tokens


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        return file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DTQError(f"the tokens in {file} cannot be read: {error}") from None
