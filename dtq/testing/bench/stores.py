"""The stores that benchmarks measure: a new one for each round."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from dtq.stores.open import open_store
from dtq.stores.protocol import Store


def nothing(payload: object, context: object) -> None:
    """The handler of all throughput figures: it does nothing."""


URLS = {"memory": "memory:", "file": "file:{}/queue", "sqlite": "{}/queue.db"}


@contextmanager
def fresh_store(kind: str) -> Iterator[Store]:
    """Open an empty store. If it needs a disk, it is on the disk of the working directory."""
    with tempfile.TemporaryDirectory(dir=".") as directory:
        store = open_store(URLS[kind].format(directory))
        yield store
        store.close()
