"""Read and check the file of `dtq run --config dtq.toml`, which describes a node.

store = "queue.db"                        every key is optional; options of the command override the file
pool_size = 4                             paths are relative to the directory of the file

[handlers]
email = "handlers/send_email.py"          a path, or "package.module:function"
fetch = { handler = "shop.web:fetch", concurrency = 100, give_up_on = ["ValueError"] }

[secrets]                                 of webhooks: not a secret itself, but the
shop = "SHOP_WEBHOOK_SECRET"              environment variable that holds it

[pools.urgent]                            instead of pool_size
size = 1
min_priority = 5
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from dtq.cli import common
from dtq.errors import DTQError
from dtq.workers.groups import Pool
from dtq.workers.handler_registry import MAX_CONCURRENCY

Executor = Literal["process", "thread"]
Count = Annotated[int, Meta(ge=1)]


class HandlerEntry(Struct, frozen=True):
    """A handler, how many calls of it run at once in each worker (if it is async), and which exceptions it retries or
    does not retry."""

    handler: str
    concurrency: Annotated[int, Meta(ge=1, le=MAX_CONCURRENCY)] = 1
    retry_on: tuple[str, ...] = ()
    give_up_on: tuple[str, ...] = ()


class Config(Struct, frozen=True):
    """The arguments of TaskQueue that a file can hold. None stands for TaskQueue's default."""

    store: str | None = None
    handlers: dict[str, str | HandlerEntry] = {}
    pool_size: int | None = None
    pools: dict[str, Pool] = {}
    executor: Executor | None = None
    lease: float | None = None
    max_tasks_per_worker: Count | None = None
    auto_cleanup: bool | None = None
    cleanup_age: Annotated[float, Meta(ge=0)] | None = None
    dead_age: Annotated[float, Meta(ge=0)] | None = None
    dead_limit: Annotated[int, Meta(ge=0)] | None = None
    max_result: Count | None = None
    secrets: dict[str, str] = {}
    webhook_networks: tuple[str, ...] = ()
    webhook_http: bool | None = None

    def entries(self) -> Iterator[tuple[str, HandlerEntry]]:
        """Yield each type with its handler."""
        for type, given in self.handlers.items():
            yield type, given if isinstance(given, HandlerEntry) else HandlerEntry(given)

    def with_options(self, handlers: Mapping[str, HandlerEntry], secrets: Mapping[str, str], **options: Any) -> Config:
        """Return this configuration with the options of the command line, which override the file. None means not
        given."""
        given = {name: value for name, value in options.items() if value is not None}
        return replace(self, handlers={**self.handlers, **handlers}, secrets={**self.secrets, **secrets}, **given)


def read(path: Path) -> Config:
    """Read a configuration. Raises DTQError that names the file, what is wrong in it, and what is allowed."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
        return _anchored(msgspec.convert(_known(given), Config), path.absolute().parent)
    except OSError as error:
        raise DTQError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, DTQError) as error:  # wrong TOML, encoding or value
        raise DTQError(f"{path}: {error}") from None


def _known(given: dict[str, Any]) -> dict[str, Any]:
    """Return the given tables if each of their keys, and the executor, is known. Raises DTQError otherwise."""
    _refuse_unknown("", given, Config)
    if (executor := given.get("executor", "process")) not in get_args(Executor):
        raise DTQError(f"executor is {executor!r}; allowed: {', '.join(map(repr, get_args(Executor)))}")
    for section, kind in (("pools", Pool), ("handlers", HandlerEntry)):
        tables = given.get(section)
        for name, table in tables.items() if isinstance(tables, dict) else ():
            _refuse_unknown(f"{section}.{name}.", table, kind)
    return given


def _refuse_unknown(where: str, table: Any, kind: type[Struct]) -> None:
    if isinstance(table, dict) and (unknown := table.keys() - set(kind.__struct_fields__)):
        raise DTQError(f"unknown key {where}{min(unknown)}; allowed: {', '.join(kind.__struct_fields__)}")


def _anchored(config: Config, directory: Path) -> Config:
    handlers = {
        type: replace(entry, handler=str(directory / entry.handler)) if entry.handler.endswith(".py") else entry
        for type, entry in config.entries()
    }
    store = common.anchor(config.store, directory) if config.store is not None else None
    return replace(config, store=store, handlers=handlers)
