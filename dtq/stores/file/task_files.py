"""TaskFiles: one JSON file for each task, which people can read, and from which a store opens. Checkpoints write them.

    queue/tasks/7f/018f3c...e1.json     {"number": 12, "task": {"type": "email", ...}}
    queue/queue.json, queue-copy.json   all else, with a checksum: twice, as no journal repeats it
    queue/quarantine/                   files and lines that could not be read

A file is never newer than the journals that are left. The file of a task may be edited while no process has the store
open, so it has no checksum. But a field that no task has, or a value that no task may have, counts as damage.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from glob import escape, glob
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
from msgspec.structs import force_setattr

from dtq.errors import InvalidTask
from dtq.stores.file.changes import Change, Entry
from dtq.stores.file.disk import Disk
from dtq.stores.file.salvage import PROBLEMS, entry_of, salvaged
from dtq.task.codec import NULL, cut, from_json, raw
from dtq.task.model import Attempt, ErrorInfo, Task, Webhook, check

log = logging.getLogger("dtq")

_PLAIN = re.compile(r"[0-9a-z_][0-9a-z_-]{0,99}")


class Parts(msgspec.Struct, forbid_unknown_fields=True):
    """An Entry whose task is not decoded yet."""

    number: int
    task: dict[str, msgspec.Raw]
    waits_for: tuple[str, ...] = ()


class Sealed(msgspec.Struct, forbid_unknown_fields=True):
    """The content of queue.json: a Change as JSON, and its checksum."""

    crc32: int
    change: msgspec.Raw


_to_json = msgspec.json.Encoder().encode
_entry = msgspec.json.Decoder(Entry).decode
_parts = msgspec.json.Decoder(Parts).decode
_change = msgspec.json.Decoder(Change).decode
_sealed = msgspec.json.Decoder(Sealed).decode
_DAMAGE = (msgspec.DecodeError, UnicodeDecodeError, IsADirectoryError, InvalidTask, ValueError)


def read_entry(data: bytes) -> Entry:
    """Return the entry in a task file; its payload and result stay JSON. Raise one of _DAMAGE for a field or a value
    that no task has."""
    try:
        parts = _parts(msgspec.json.format(data, indent=-1))
        bulk = {name: raw(bytes(parts.task.pop(name, NULL))) for name in ("payload", "result")}
        rest = _to_json(parts)
        entry = _entry(rest)
    except RecursionError:
        return entry_of(cut(data))
    check(entry.task)
    if unknown := _unknown(from_json(rest)):
        raise ValueError(f"there is no field {', '.join(map(repr, unknown))}")
    for name, value in bulk.items():
        force_setattr(entry.task, name, value)
    return entry


def _unknown(entry: dict[str, Any]) -> list[str]:
    """Return the names of fields in the file that reading it ignored."""
    task = entry["task"]
    parts = [(Entry, entry), (Task, task), (ErrorInfo, task.get("error")), (Webhook, task.get("webhook"))]
    for attempt in task.get("history", ()):
        parts += [(Attempt, attempt), (ErrorInfo, attempt["error"])]
    return [name for kind, fields in parts for name in fields or () if name not in kind.__struct_fields__]


def seal(change: Change) -> bytes:
    """Return the change as JSON, with its checksum."""
    body = _to_json(change)
    return _to_json(Sealed(crc32(body), msgspec.Raw(body)))


def unseal(data: bytes) -> Change:
    """Return what can be read of the change that was sealed. Raise one of _DAMAGE where the checksum differs."""
    sealed = _sealed(data)
    if crc32(sealed.change) != sealed.crc32:
        raise ValueError("its checksum does not match")
    try:
        return _change(sealed.change)
    except PROBLEMS:  # written by another version: not damaged
        return salvaged(bytes(sealed.change))


class TaskFiles:
    """The files of one store. One process at a time writes them (see Directory.checkpoint)."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self.tasks = directory / "tasks"
        self.quarantine = directory / "quarantine"
        self._others = (directory / "queue.json", directory / "queue-copy.json")
        self._disk = disk
        self._made: set[str] = set()  # folders that are known to exist
        self.tasks.mkdir(exist_ok=True)

    def path(self, task_id: str) -> str:
        """Return the path of a task's file. Its name has a hash where the id is no safe file name or has capitals."""
        digest = sha256(task_id.encode()).hexdigest()
        similar = re.sub("[^0-9a-z_-]", "-", task_id.lower())[:60]
        name = task_id if _PLAIN.fullmatch(task_id) else f"{similar}~{digest[:32]}"
        return f"{self._folder(digest[:2])}/{name}.json"

    def _folder(self, name: str) -> str:
        path = f"{self.tasks}/{name}"
        if name not in self._made:
            os.makedirs(path, exist_ok=True)
            self._made.add(name)
        return path

    # --- write

    def put(self, entries: Iterable[Entry], gone: Iterable[str], others: Change) -> None:
        """Write the entries and `others`, and remove the files of tasks that are `gone`.

        Raise OSError where that fails; what was written until then does no harm.
        """
        for entry in entries:
            self._disk.place(self.path(entry.task.id), msgspec.json.format(_to_json(entry), indent=1))
        for task_id in gone:
            self._disk.remove(self.path(task_id))
        for path in self._others:
            self._disk.place(str(path), seal(others))
        self._disk.flush_all()

    # --- read

    def read(self, task_id: str) -> Task | None:
        """Return the task as its file has it; None where that is missing or damaged."""
        try:
            with open(self.path(task_id), "rb") as file:
                return read_entry(file.read()).task
        except (FileNotFoundError, *_DAMAGE):
            return None

    def entries(self) -> Iterator[Entry]:
        """Yield every task that can be read. Move other files to the quarantine, and log that.

        Another process may be writing files at the same time: the journals still hold those changes.
        """
        for path in glob(f"{escape(str(self.tasks))}/*/*"):
            try:
                with open(path, "rb") as file:
                    entry = read_entry(file.read())
            except FileNotFoundError:
                continue
            except _DAMAGE as error:
                self._put_aside(Path(path), error)
            else:
                if self.path(entry.task.id) == path:
                    yield entry
                else:  # it would replace another task, which has its own file
                    self._put_aside(Path(path), ValueError(f"it holds the task {entry.task.id!r}"))

    def others(self) -> Change:
        """Return all but the tasks, from the first of the two files that is whole. Log where both are damaged: limits,
        shares and nodes are lost then."""
        damaged = False
        for path in self._others:
            try:
                return unseal(path.read_bytes())
            except FileNotFoundError:
                continue
            except _DAMAGE as error:
                self._put_aside(path, error)
                damaged = True
        if damaged:
            log.error("the limits of this queue are lost and no longer apply: set them again")
        return Change()

    def _put_aside(self, path: Path, error: Exception) -> None:
        self.quarantine.mkdir(exist_ok=True)
        path.rename(self.quarantine / path.name)
        log.warning(
            "%s is damaged, or is not a file of this queue, and was moved to %s: %s", path, self.quarantine, error
        )

    def keep_damaged(self, lines: Iterable[bytes]) -> None:
        """Write damaged lines of a journal to the quarantine."""
        for line in lines:
            self.quarantine.mkdir(exist_ok=True)
            path = self.quarantine / f"line-{sha256(line).hexdigest()[:16]}"
            path.write_bytes(line)
            log.warning(
                "a line of the journal is damaged and was saved as %s; the parts that cannot be read are lost", path
            )
