"""Decoding: read what a store holds beside its tasks, and skip what cannot be read.

Any version of dtq that has the store open writes limits and nodes. An entry that cannot be read is logged and skipped,
and everything else goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

log = logging.getLogger("dtq")

T = TypeVar("T")
UNREADABLE = (msgspec.DecodeError, ValueError, TypeError, RecursionError)


def decode_or_skip(read: Callable[[Any], T], bodies: Iterable[Any], what: str) -> list[T]:
    """Return `read` of each body, without those that it cannot read.

    Args:
        read: Decodes one body. Raises one of UNREADABLE if it cannot.
        bodies: As they are stored.
        what: The word for one of them in the log, such as "a node".
    """
    found = []
    for body in bodies:
        try:
            found.append(read(body))
        except UNREADABLE as error:
            _warn_once(what, repr(body)[:200], str(error)[:200])
    return found


@lru_cache(256)
def _warn_once(what: str, body: str, problem: str) -> None:
    log.warning("%s in the store cannot be read, and is passed over: %s: %s", what, body, problem)
