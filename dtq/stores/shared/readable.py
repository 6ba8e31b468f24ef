"""Readable: what a store holds beside its tasks, as far as it can be read.

Limits and nodes are written by whatever version of dtq has the store open. One that cannot be read costs itself only:
it is passed over, the log names it, and everything else goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

log = logging.getLogger("dtq")

T = TypeVar("T")
PROBLEMS = (msgspec.DecodeError, ValueError, TypeError, RecursionError)


def readable(read: Callable[[Any], T], bodies: Iterable[Any], what: str) -> list[T]:
    """What `read` makes of these bodies, without those that it cannot read. `what`: what one of them is."""
    found = []
    for body in bodies:
        try:
            found.append(read(body))
        except PROBLEMS as error:
            _tell_once(what, repr(body)[:200], str(error)[:200])
    return found


@lru_cache(256)
def _tell_once(what: str, body: str, problem: str) -> None:
    log.warning("%s in the store cannot be read, and is passed over: %s: %s", what, body, problem)
