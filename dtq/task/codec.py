"""Codec: JSON and MessagePack, both by msgspec.

Stores keep JSON, which people can read. MessagePack travels between the pool and its workers. Both carry plain data
only (None, bool, int, float, str, list, dict), never a pickle.

A payload is encoded when a task is added, a result when its handler returns. From then on they travel as they are, as a
msgspec.Raw, and are decoded where a handler or a user looks at them (see JsonField in model.py).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

import msgspec

from dtq.errors import InvalidTask

pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder().decode
from_json = msgspec.json.Decoder().decode
_json = msgspec.json.Encoder()
_checked = msgspec.json.Decoder(msgspec.Raw).decode

NULL = msgspec.Raw(b"null")
MAX_DEPTH = 64  # levels of nested arrays and objects in a payload or a result
TOO_DEEP = f"has more than {MAX_DEPTH} levels of nested arrays and objects"
ENVELOPE_DEPTH = 16  # levels that a store may put around a payload or a result
CUT = b'"dtq: nested too deep to be read"'  # what `cut` puts in place of what it removes
_SAFE = 3000  # Python's recursion limit up to which encoding cannot exhaust the C stack
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_TOKEN = re.compile(rb'[\[\]{}]|"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_AS_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_CONTAINERS = (dict, list, tuple, set, frozenset, msgspec.Struct)
_NO_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))


def to_json(value: Any) -> bytes:
    """Return the value as JSON. Raise InvalidTask where JSON cannot carry it, as with NaN and infinity, which would
    become null."""
    if type(value) is msgspec.Raw:
        return bytes(value)
    if sys.getrecursionlimit() > _SAFE and is_nested(value, _SAFE // 10):
        raise InvalidTask(f"{_kind(value)} {TOO_DEEP}")
    try:
        data = _json.encode(value)
        is_sound = b"null" not in data or _is_finite(value)
    except RecursionError:
        raise InvalidTask(f"{_kind(value)} {TOO_DEEP}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidTask(f"{_kind(value)} cannot be written as JSON: {error}") from None
    if not is_sound:
        raise InvalidTask(f"{_kind(value)} holds NaN or an infinity, which JSON cannot carry")
    return data


def is_too_deep(data: bytes, limit: int = MAX_DEPTH) -> bool:
    """Return whether this JSON has more than `limit` levels of nested arrays and objects.

    It does not recurse, and takes almost no time where there are at most `limit` arrays and objects in total.
    """
    if len(data) <= 2 * limit or data.count(b"[") + data.count(b"{") <= limit:
        return False
    brackets = _STRING.sub(b"", data).translate(_AS_ONE_KIND, _NO_BRACKETS)
    for _ in range(limit):
        brackets = brackets.replace(b"[]", b"")  # removes the innermost pairs
    return bool(brackets)


def cut(data: bytes, limit: int = MAX_DEPTH + ENVELOPE_DEPTH) -> bytes:
    """Return this JSON with CUT in place of what is nested deeper than `limit`."""
    if not is_too_deep(data, limit):
        return data
    parts, start, depth = [], 0, 0
    for token in _TOKEN.finditer(data):
        if token[0] in (b"[", b"{"):
            depth += 1
            if depth == limit + 1:
                parts += [data[start : token.start()], CUT]
        elif token[0] in (b"]", b"}"):
            if depth == limit + 1:
                start = token.end()
            depth -= 1
    return b"".join([*parts, data[start:]])


def raw(data: bytes | str) -> msgspec.Raw | None:
    """Return this JSON as a task keeps it: checked, but not decoded. Return None for `null`.

    Raise DecodeError, UnicodeDecodeError or RecursionError where it cannot be decoded. (A number that is too large for
    a float or an integer is found only later, where it is decoded.)
    """
    if isinstance(data, bytes) and not data.isascii():
        data.decode()  # the check below does not look at the characters of texts
    value = _checked(data)
    return None if value == NULL else value


def encoded(value: Any, limit: int, what: str) -> msgspec.Raw | None:
    """Return the value as a task keeps it: as JSON, or None for None.

    Raise InvalidTask, which names `what`, where it is longer than `limit` bytes or nested deeper than MAX_DEPTH.
    """
    data = to_json(value)
    if is_too_deep(data):
        raise InvalidTask(f"{what} {TOO_DEEP}: flatten it, or pass it as text")
    if len(data) > limit:
        raise InvalidTask(
            f"{what} is {len(data):,} bytes of JSON, more than the limit of {limit:,}: pass a path or a key to it"
        )
    try:
        return raw(data)
    except ValueError as error:  # a msgspec.Raw in the value held no JSON
        raise InvalidTask(f"{what} cannot be written as JSON: {error}") from None


def _kind(value: Any) -> str:
    return f"a value of type {type(value).__name__}"


def is_nested(value: Any, limit: int = MAX_DEPTH) -> bool:
    """Return whether a value has more than `limit` levels of nested containers, without recursion: it may have
    thousands."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(limit):
        if not level:
            return False
        level = [child for parent in level for child in _inner(parent) if isinstance(child, _CONTAINERS)]
    return bool(level)


def _inner(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return msgspec.structs.astuple(value) if isinstance(value, msgspec.Struct) else value


def _is_finite(value: Any) -> bool:
    """Return whether no float in the value is NaN or infinite (`x - x` is zero for every other number)."""
    if isinstance(value, float):
        return value - value == 0
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_finite, value))
    return True
