"""What the commands share: the options that many have, how a store is opened to look at it, and where words go.

stdout   what was asked for: a table, ids, JSON
stderr   all else: messages, progress, errors
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

STORE = "queue.db"  # where nothing else is said
ENVIRONMENT = "DTQ_STORE"
_STORE_HELP = "Where the queue is: a path (SQLite), sqlite:///path, file:directory, or redis://host/0."

StoreOption = Annotated[str, typer.Option("--store", envvar=ENVIRONMENT, metavar="URL", help=_STORE_HELP)]
StoreOfNode = Annotated[
    str | None,
    typer.Option("--store", envvar=ENVIRONMENT, metavar="URL", help=f"{_STORE_HELP} Default {STORE}."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else there.")]
TypeOption = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only tasks of this type.")]

_ON_DISK = re.compile(r"(sqlite:///|file:(?://(?=/))?)([^?]*)(.*)", re.DOTALL)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed


# --- stores


def split(url: str) -> tuple[str, str, str]:
    """A store's URL in three: what stands before its path, the path, and its options. Where there is no path, the store
    is not on this disk (or `open_store` will say what is wrong)."""
    if found := _ON_DISK.fullmatch(url):
        before, path, options = found.groups()
        return before, path, options
    return ("", "", "") if re.match(r"[^/:]{2,}:|.*://", url) else ("", url, "")


def anchor(url: str, directory: Path) -> str:
    """The URL with its path, where it is relative, below this directory."""
    before, path, options = split(url)
    return f"{before}{directory.absolute() / path}{options}" if path else url


def existing(url: str) -> QueueManager:
    """The queue at this URL, to be looked at or changed. Raises StoreError where there is none: a look makes no
    queue."""
    if not _is_there(url):
        raise StoreError(
            f"there is no queue at {url!r} (seen from {os.getcwd()}): name it with --store or {ENVIRONMENT}, or make "
            "one with dtq add or dtq run"
        )
    return QueueManager(check(url))


def check(url: str) -> str:
    """The URL, if a command can share the store that it names with other processes. Raises StoreError."""
    if url == "memory:":
        raise StoreError("memory: is a store within one process, in which a command would be alone: name a file")
    return url


def _is_there(url: str) -> bool:
    _, path, _ = split(url)
    if not path:
        return True
    place = Path(path)
    return any(place.iterdir()) if place.is_dir() else place.is_file() and place.stat().st_size > 0


# --- words


def say(text: str) -> None:
    typer.echo(readable(text), err=True)


def complain(text: object) -> None:
    """One red line."""
    typer.secho(readable(" ".join(str(text).split("\n"))), fg="red", err=True)


def complain_of_all(problems: Sequence[object]) -> None:
    """Says what could not be done, and ends the command with 1 if there is any."""
    for problem in problems:
        complain(problem)
    if problems:
        raise typer.Exit(1)


def readable(text: str) -> str:
    """Control characters as pictures: what a task brings along must not move the cursor, or worse."""
    return _CONTROL.sub(
        lambda found: chr(0x2400 + ord(found[0])) if found[0] < "\x20" else "\N{REPLACEMENT CHARACTER}", text
    )


def counted(n: int, what: str) -> str:
    """Return a number and its noun: 1 task, 2 tasks."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def print_json(value: Any) -> None:
    """One JSON document on a line of its own."""
    typer.echo(msgspec.json.encode(value))
