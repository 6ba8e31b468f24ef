"""Overlap: do other work while a server is busy with a request of this thread.

    with while_waiting(work):
        store.update(outcomes)      a store that has sent its request calls `run_offered_work`, which runs `work`

A store without a server never calls it, and then the work does not run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Offer(threading.local):
    work: Callable[[], None] | None = None


_offer = _Offer()


@contextmanager
def while_waiting(work: Callable[[], None]) -> Iterator[None]:
    """Offer `work` to the calls that this thread makes in the body. It runs once or not at all."""
    _offer.work = work
    try:
        yield
    finally:
        _offer.work = None


def run_offered_work() -> None:
    """Run the work that this thread was offered, if there is any."""
    work, _offer.work = _offer.work, None
    if work is not None:
        work()
