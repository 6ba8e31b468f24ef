"""Every store keeps every promise of dtq.testing.conformance."""

from __future__ import annotations

import itertools

import pytest
import servers

from dtq.stores.file.store import FileStore
from dtq.stores.memory.store import MemoryStore
from dtq.stores.open import open_store
from dtq.stores.redis.store import RedisStore
from dtq.stores.sqlite.store import SQLiteStore
from dtq.testing import conformance
from dtq.testing.conformance import Check, Make, Subject


@pytest.fixture(params=["memory", "sqlite", "file", "valkey", "redis", "cluster"])
def make(request: pytest.FixtureRequest, tmp_path) -> Make:
    """Return a function that makes a fresh subject of the store."""
    numbers = itertools.count()

    def sqlite() -> Subject:
        path = tmp_path / f"queue{next(numbers)}.db"
        return Subject(lambda: SQLiteStore(path), SQLiteStore.abandon)

    def file() -> Subject:
        path = tmp_path / f"queue{next(numbers)}"
        return Subject(lambda: FileStore(path), FileStore.abandon)

    def server() -> Subject:
        url = servers.url_of(request.param)
        return Subject(lambda: open_store(url), RedisStore.abandon, sees_deaths=False)

    return {"memory": MemoryStore, "sqlite": sqlite, "file": file}.get(request.param, server)


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: f"{check.group}-{check.name}")
def test_the_store_keeps_the_promise(check: Check, make: Make):
    try:
        check.perform(make)
    except conformance.Skipped as reason:
        pytest.skip(str(reason))


def test_every_check_states_its_promise_in_one_line():
    assert [c.name for c in conformance.CHECKS if not c.promise.endswith(".") or "\n" in c.promise] == []
    assert len({c.name for c in conformance.CHECKS}) == len(conformance.CHECKS)
