"""Doctor: what can be lost where a queue is kept, and what to do about it. Pure checks of what a store tells of itself.

RedisStore.facts() --> check_server --.
durability         --> check_disk ----+--> findings, each with a verdict
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

OLDEST = 7  # major version of Redis, or of the Redis that Valkey says it is, on which the store is tested
CLOCKS_APART = 1.0  # seconds


class Finding(msgspec.Struct, frozen=True):
    """`verdict`: ok; note (what can be lost by choice, or what cannot be seen); bad (tasks will be lost, some day)."""

    verdict: Literal["ok", "note", "bad"]
    subject: str
    text: str


def check_server(facts: Mapping[str, Any]) -> list[Finding]:
    """`facts` are those of INFO, with `config` (of CONFIG GET; empty where that is forbidden) and `ahead` (seconds)."""
    return [*_version(facts), *_persistence(facts), *_memory(facts), *_replication(facts), *_clock(facts)]


def check_disk(durability: str) -> list[Finding]:
    """Of a store on this machine's disk."""
    if durability == "full":
        text = "each add and each outcome is on the disk before it is acknowledged: nothing that was is lost"
        return [Finding("ok", "disk", text)]
    text = "durability=relaxed: a power cut may take the last seconds; a killed process loses nothing"
    return [Finding("note", "disk", text)]


def _version(facts: Mapping[str, Any]) -> Iterator[Finding]:
    valkey = facts.get("valkey_version")
    name = f"Valkey {valkey}" if valkey else f"Redis {facts['redis_version']}"
    if int(str(facts["redis_version"]).split(".")[0]) >= OLDEST:
        yield Finding("ok", "version", name)
    else:
        yield Finding("bad", "version", f"{name} is too old: Redis {OLDEST} or later, or any Valkey")


def _persistence(facts: Mapping[str, Any]) -> Iterator[Finding]:
    sync = facts["config"].get("appendfsync")
    if facts.get("aof_enabled"):
        if facts.get("aof_last_write_status", "ok") != "ok":
            yield Finding("bad", "persistence", "the last write of the append-only file failed: look at its disk")
        elif sync == "always":
            yield Finding("ok", "persistence", "append-only file, fsync always: nothing that was acknowledged is lost")
        elif sync == "no":
            text = "append-only file, fsync no: a power cut may take half a minute; set appendfsync always"
            yield Finding("note", "persistence", text)
        elif sync == "everysec":
            text = "append-only file, fsync everysec: a power cut may take the last second; set appendfsync always"
            yield Finding("note", "persistence", text)
        else:
            text = "append-only file; how often it is flushed cannot be seen (CONFIG GET is forbidden)"
            yield Finding("note", "persistence", text)
    elif facts["config"].get("save", "unknown"):
        text = "snapshots only: a crash of the server loses all since the last one; set appendonly yes"
        yield Finding("bad", "persistence", text)
    else:
        yield Finding("bad", "persistence", "none: a restart of the server loses every task; set appendonly yes")


def _memory(facts: Mapping[str, Any]) -> Iterator[Finding]:
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        yield Finding("ok", "memory", "maxmemory-policy noeviction: when memory is full, add fails and nothing is lost")
    else:
        text = f"maxmemory-policy {policy}: the server may drop tasks when memory is full; set noeviction"
        yield Finding("bad", "memory", text)


def _replication(facts: Mapping[str, Any]) -> Iterator[Finding]:
    if facts.get("cluster_enabled"):
        yield Finding("ok", "cluster", "the namespace lives in one slot: one of the masters has all of it")
    if facts.get("role") == "slave":
        yield Finding("bad", "replication", "this is a replica: name its master, or use Sentinel")
    elif replicas := facts.get("connected_slaves", 0):
        text = (
            f"{replicas} replicas, fed after the acknowledgement: a failover loses what was not replicated yet. "
            "replicas=1 in the URL waits until one has it (WAIT); min-replicas-to-write bounds how much is lost"
        )
        yield Finding("note", "replication", text)
    else:
        yield Finding("note", "replication", "no replica: while the server is away, the queue stands still")


def _clock(facts: Mapping[str, Any]) -> Iterator[Finding]:
    ahead = facts["ahead"]
    if abs(ahead) < CLOCKS_APART:
        yield Finding("ok", "clock", f"the server's and this machine's are {abs(ahead):.3f} s apart")
    else:
        text = f"the server's is {ahead:+.1f} s from this machine's: the queue goes by the server's, so it does no harm"
        yield Finding("note", "clock", text)
