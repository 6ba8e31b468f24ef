"""What the commands share: common options, how they open a store, and where they print.

stdout   the result: a table, ids, JSON
stderr   messages, progress, errors
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from dtq.errors import StoreError
from dtq.queue.manager import QueueManager

STORE = "queue.db"  # the default
ENVIRONMENT = "DTQ_STORE"
_STORE_HELP = "Where the queue is: a path (SQLite), sqlite:///path, file:directory, or redis://host/0."

StoreOption = Annotated[str, typer.Option("--store", envvar=ENVIRONMENT, metavar="URL", help=_STORE_HELP)]
StoreOfNode = Annotated[
    str | None,
    typer.Option("--store", envvar=ENVIRONMENT, metavar="URL", help=f"{_STORE_HELP} Default {STORE}."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
TypeOption = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only tasks of this type.")]

_ON_DISK = re.compile(r"(sqlite:///|file:(?://(?=/))?)([^?]*)(.*)", re.DOTALL)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed


# --- stores


def split(url: str) -> tuple[str, str, str]:
    """Split a store's URL into what precedes its path, the path, and its options.

    The path is empty if the store is not on this disk (or the URL is wrong, which `open_store` reports).
    """
    if found := _ON_DISK.fullmatch(url):
        before, path, options = found.groups()
        return before, path, options
    return ("", "", "") if re.match(r"[^/:]{2,}:|.*://", url) else ("", url, "")


def anchor(url: str, directory: Path) -> str:
    """Return the URL with its path made absolute, relative to this directory."""
    before, path, options = split(url)
    return f"{before}{directory.absolute() / path}{options}" if path else url


def existing(url: str) -> QueueManager:
    """Open the queue at this URL, to read or change it. Raises StoreError if there is none: reading must not create a
    queue."""
    if not _is_there(url):
        raise StoreError(
            f"there is no queue at {url!r} (seen from {os.getcwd()}): name it with --store or {ENVIRONMENT}, or create "
            "one with dtq add or dtq run"
        )
    return QueueManager(check(url))


def check(url: str) -> str:
    """Return the URL if other processes can share its store. Raises StoreError otherwise."""
    if url == "memory:":
        raise StoreError("memory: is a store within one process, so a command would see no tasks: name a file")
    return url


def _is_there(url: str) -> bool:
    _, path, _ = split(url)
    if not path:
        return True
    place = Path(path)
    return any(place.iterdir()) if place.is_dir() else place.is_file() and place.stat().st_size > 0


# --- output


def say(text: str) -> None:
    typer.echo(readable(text), err=True)


def complain(text: object) -> None:
    """Print one red line on stderr."""
    typer.secho(readable(" ".join(str(text).split("\n"))), fg="red", err=True)


def complain_of_all(problems: Sequence[object]) -> None:
    """Print these errors. If there are any, end the command with exit code 1."""
    for problem in problems:
        complain(problem)
    if problems:
        raise typer.Exit(1)


def readable(text: str) -> str:
    """Replace control characters by visible ones, so that the data of a task cannot control the terminal."""
    return _CONTROL.sub(
        lambda found: chr(0x2400 + ord(found[0])) if found[0] < "\x20" else "\N{REPLACEMENT CHARACTER}", text
    )


def counted(n: int, what: str) -> str:
    """Return a number and its noun: 1 task, 2 tasks."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def print_json(value: Any) -> None:
    """Print one JSON document on one line."""
    typer.echo(msgspec.json.encode(value))
