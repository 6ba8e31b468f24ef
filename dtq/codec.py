"""JSON and MessagePack, both through msgspec.

JSON is what stores keep: anyone can read it. MessagePack is what travels between the pool and its workers. Both carry
plain data only (None, bool, int, float, str, list, dict), never a pickle.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dtq.errors import InvalidTask

pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder().decode
from_json = msgspec.json.Decoder().decode
_json = msgspec.json.Encoder()


def to_json(value: Any) -> bytes:
    """The value as JSON. Raises InvalidTask where JSON cannot carry it (NaN and infinity too, which would become
    null)."""
    try:
        data = _json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidTask(f"{_kind(value)} cannot be written as JSON: {error}") from None
    if b"null" in data and not _is_finite(value):
        raise InvalidTask(f"{_kind(value)} holds NaN or an infinity, which JSON cannot carry")
    return data


def normalise(value: Any, limit: int, what: str) -> Any:
    """The value as it comes back from a store: a copy made of plain JSON types, at most `limit` bytes long."""
    data = to_json(value)
    if len(data) > limit:
        raise InvalidTask(
            f"{what} is {len(data):,} bytes of JSON, more than the limit of {limit:,}: pass a path or a key to it"
        )
    return from_json(data)


def _kind(value: Any) -> str:
    return f"a value of type {type(value).__name__}"


def _is_finite(value: Any) -> bool:
    """Whether no float in it is NaN or infinite (`x - x` is zero for every other number)."""
    if isinstance(value, float):
        return value - value == 0
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_finite, value))
    return True
