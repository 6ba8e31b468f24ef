"""Open the store that a URL names. Only the module of that store is imported."""

from __future__ import annotations

import os
from typing import Any

from dtq.errors import StoreError
from dtq.stores.address import parse_address, redacted
from dtq.stores.protocol import Store


def open_store(url: str | os.PathLike[str] | Store) -> Store:
    """Return the store that a URL names, opened.

    Args:
        url: `memory:`, `sqlite:///path`, `file:directory`, `redis://host:port/number` (`rediss:` with TLS; `valkey:`
            and `valkeys:` are the same), or a bare path, which means SQLite. Options follow a question mark:
            `file:queue?persistence_interval=1`, `redis://host/0?namespace=mail`. A Store is returned unchanged.

    Raises:
        StoreError: The URL names no store, or the store cannot be opened.
    """
    if isinstance(url, os.PathLike):
        return _open_sqlite(os.fspath(url))
    if not isinstance(url, str):
        if isinstance(url, Store):
            return url
        raise StoreError(
            f"the store is {url!r}; allowed: a URL, a path, or an object with the methods of dtq.stores.protocol.Store"
        )
    scheme, _, rest = url.partition(":")
    place, _, query = rest.partition("?")
    if url == "memory:":
        from dtq.stores.memory.store import MemoryStore

        return MemoryStore()
    if scheme == "sqlite":
        return _open_sqlite(_database(url, place), **_options(url, query))
    if scheme == "file":
        from dtq.stores.file.store import FileStore

        return FileStore(_directory(url, place), **_options(url, query))
    if scheme in _REDIS:
        return _open_redis(url)
    if "://" in url or (":" in url and "/" not in scheme and len(scheme) > 1):
        raise StoreError(
            f"{redacted(url)!r} names no store: use memory:, sqlite:///path/to/queue.db, file:path/to/directory, "
            "redis://host:port/0, or a path"
        )
    return _open_sqlite(url)


_REDIS = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}  # as redis-py names them


def _open_redis(url: str) -> Store:
    try:
        from dtq.stores.redis.store import RedisStore
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise StoreError('a store on Redis or Valkey needs redis-py: pip install "dtq[redis]"') from None
    scheme, _, rest = url.partition(":")
    place, options = parse_address(f"{_REDIS[scheme]}:{rest}")
    return RedisStore(place, **options)


def _open_sqlite(path: str, **options: Any) -> Store:
    from dtq.stores.sqlite.store import SQLiteStore

    return SQLiteStore(path, **options)


def _database(url: str, place: str) -> str:
    """Return the path in the URL: sqlite:///a/b is a/b, sqlite:////a/b is /a/b (as in SQLAlchemy)."""
    if not place.startswith("///") or len(place) == 3:
        raise StoreError(f"{url!r} names no database: write sqlite:///relative/path.db or sqlite:////absolute/path.db")
    return place[3:]


def _directory(url: str, place: str) -> str:
    """Return the path in the URL: file:a/b, file:/a/b, or file:///a/b (RFC 8089)."""
    place = place.removeprefix("//") if place.startswith("///") else place
    if not place or place.startswith("//"):
        raise StoreError(f"{url!r} names no directory: write file:relative/path or file:/absolute/path")
    return place


def _options(url: str, query: str) -> dict[str, Any]:
    from urllib.parse import parse_qsl

    options: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    allowed = {"durability", "persistence_interval"} if url.startswith("file:") else {"durability"}
    if unknown := options.keys() - allowed:
        raise StoreError(f"{url!r} has the option {min(unknown)!r}; there are: {', '.join(sorted(allowed))}")
    if "persistence_interval" in options:
        options["persistence_interval"] = _number(url, options["persistence_interval"])
    return options


def _number(url: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise StoreError(f"{url!r}: {text!r} is no number of seconds") from None
