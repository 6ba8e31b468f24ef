"""Salvage: the readable parts of a change that cannot be read as a whole, since another version of dtq wrote it, or a
hand. A limit that cannot be read must not take a task along."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, get_args, get_origin

import msgspec
from msgspec.structs import fields

from dtq.stores.readable import readable
from dtq.stores.replica import Change

_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


def salvaged(body: bytes) -> Change:
    """What can be read of it; the log tells of the rest."""
    found: dict[str, Any] = {}
    for parts in readable(_parts, [body], "a change"):
        for field in fields(Change):
            if field.name in parts:
                found |= _salvage(field.name, field.type, parts[field.name])
    return Change(**found)


def _salvage(name: str, kind: Any, body: msgspec.Raw) -> dict[str, Any]:
    """The value of this field under its name; of a list, its items that can be read."""
    if get_origin(kind) is list:
        items = chain.from_iterable(readable(_items, [bytes(body)], name))
        return {name: readable(_decoder(get_args(kind)[0]), map(bytes, items), f"one of {name}")}
    values = readable(_decoder(kind), [bytes(body)], name)
    return {name: values[0]} if values else {}


def _decoder(kind: Any) -> Callable[[Any], Any]:
    return msgspec.json.Decoder(kind).decode
