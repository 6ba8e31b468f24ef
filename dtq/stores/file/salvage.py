"""Salvage: read as much as possible of a change that another version of dtq wrote, or that was edited by hand.

An unreadable limit must not cause the loss of a task, nor an unreadable task the loss of others. A partly readable task
keeps its readable fields, and is doomed (see dtq.task.transitions.unreadable).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import Any, get_args, get_origin

import msgspec
from msgspec.structs import fields, replace

from dtq.stores.file.changes import Change, Entry, Moved
from dtq.stores.shared.decoding import decode_or_skip
from dtq.task.codec import CUT, cut
from dtq.task.model import TERMINAL, Task
from dtq.task.transitions import unreadable, unreadable_doom


class Loose(msgspec.Struct):
    """An Entry whose task may have unknown fields, or values of the wrong type."""

    number: int
    task: dict[str, Any]
    waits_for: tuple[str, ...] = ()


PROBLEMS = (msgspec.DecodeError, RecursionError)  # raised for a change or an entry that cannot be read
_whole_entry = msgspec.json.Decoder(Entry).decode
_loose_entry = msgspec.json.Decoder(Loose).decode
_moved = msgspec.json.Decoder(Moved).decode
_mapping = msgspec.json.Decoder(dict[str, Any]).decode
_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


def salvaged(body: bytes) -> Change:
    """Return the readable parts of a change, and log the rest."""
    body, found = cut(body), dict[str, Any]()
    for parts in decode_or_skip(_parts, [body], "a change"):
        for field in fields(Change):
            if field.name in parts:
                found |= _salvage(field.name, field.type, parts[field.name])
    return Change(**found)


def _salvage(name: str, kind: Any, body: msgspec.Raw) -> dict[str, Any]:
    """Return {name: value} for a readable field, {} for others. Of a list, keep the readable items."""
    if get_origin(kind) is list:
        items = chain.from_iterable(decode_or_skip(_items, [bytes(body)], name))
        read = _TASKS.get(name) or _decoder(get_args(kind)[0])
        return {name: decode_or_skip(read, map(bytes, items), f"one of {name}")}
    values = decode_or_skip(_decoder(kind), [bytes(body)], name)
    return {name: values[0]} if values else {}


def _decoder(kind: Any) -> Callable[[Any], Any]:
    return msgspec.json.Decoder(kind).decode


# --- tasks


def entry_of(body: bytes) -> Entry:
    """Return the entry of a task, with its readable fields."""
    problem = _cut_in(body)
    try:
        entry = _whole_entry(body)
    except PROBLEMS as error:
        loose, problem = _loose_entry(body), error
        known = _known(loose.task, Task)
        entry = Entry(loose.number, Task(**known | {"version": max(1, known.get("version", 1))}), loose.waits_for)
    return entry if problem is None else replace(entry, task=unreadable(entry.task, problem))


def _moved_of(body: bytes) -> Any:
    problem = _cut_in(body)
    try:
        moved = _moved(body)
    except PROBLEMS as error:
        problem = error
        moved = Moved(**_known(_mapping(body), Moved))
    if problem is None or moved.status in TERMINAL:
        return moved
    return replace(moved, doom=unreadable_doom(problem))


def _cut_in(body: bytes) -> Exception | None:
    return RecursionError() if CUT in body else None


def _known(given: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the fields of `given` that have the type that `kind` declares."""
    known = {}
    for field in fields(kind):
        if field.name in given:
            with suppress(msgspec.ValidationError):
                known[field.name] = msgspec.convert(given[field.name], field.type)
    return known


_TASKS: dict[str, Callable[[bytes], Any]] = {"put": entry_of, "moved": _moved_of}
