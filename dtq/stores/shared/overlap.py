"""Meanwhile: something for a thread to do while a server is busy with what it asked.

    with meanwhile(work):
        store.update(outcomes)      a store that has sent its request calls `take_up`, which does the work

A store without a server never calls it, and then the work is not done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Here(threading.local):
    work: Callable[[], None] | None = None


_here = _Here()


@contextmanager
def while_waiting(work: Callable[[], None]) -> Iterator[None]:
    """Offers the work to what this thread does in the body: it is done once, or not at all."""
    _here.work = work
    try:
        yield
    finally:
        _here.work = None


def take_up() -> None:
    """Does what is offered to this thread, if anything is."""
    work, _here.work = _here.work, None
    if work is not None:
        work()
