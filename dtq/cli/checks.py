"""Check what can be lost where a queue is kept. Each check is a pure function of the facts that a store reports.

RedisStore.facts() --> check_server --.
durability         --> check_disk ----+--> findings, each with a verdict
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

OLDEST = 7  # the oldest major version of Redis (or the one that Valkey reports) that the store is tested on
CLOCKS_APART = 1.0  # seconds


class Finding(msgspec.Struct, frozen=True):
    """One result. `verdict`: ok; note (a choice that can lose tasks, or something hidden); bad (tasks will be lost some
    day)."""

    verdict: Literal["ok", "note", "bad"]
    subject: str
    text: str


def check_server(facts: Mapping[str, Any]) -> list[Finding]:
    """Check a server. `facts` are those of INFO, with `config` (from CONFIG GET; empty if that is forbidden) and
    `ahead` (seconds)."""
    return [*_version(facts), *_persistence(facts), *_memory(facts), *_replication(facts), *_clock(facts)]


def check_disk(durability: str) -> list[Finding]:
    """Check a store on a disk of this machine."""
    if durability == "full":
        text = "each add and each outcome is on the disk before it is acknowledged: no acknowledged task is lost"
        return [Finding("ok", "disk", text)]
    text = "durability=relaxed: a power cut may lose the last seconds; a killed process loses nothing"
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
            yield Finding("bad", "persistence", "the last write of the append-only file failed: check its disk")
        elif sync == "always":
            yield Finding("ok", "persistence", "append-only file, fsync always: nothing acknowledged is lost")
        elif sync == "no":
            text = "append-only file, fsync no: a power cut may lose half a minute; set appendfsync always"
            yield Finding("note", "persistence", text)
        elif sync == "everysec":
            text = "append-only file, fsync everysec: a power cut may lose the last second; set appendfsync always"
            yield Finding("note", "persistence", text)
        else:
            text = "append-only file; its fsync setting is unknown, as CONFIG GET is forbidden"
            yield Finding("note", "persistence", text)
    elif facts["config"].get("save", "unknown"):
        text = "snapshots only: a crash of the server loses all changes since the last one; set appendonly yes"
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
        yield Finding("ok", "cluster", "the namespace is in one slot, so one master holds all of it")
    if facts.get("role") == "slave":
        yield Finding("bad", "replication", "this is a replica: give the URL of its master, or use Sentinel")
    elif replicas := facts.get("connected_slaves", 0):
        text = (
            f"{replicas} replicas, updated after the acknowledgement: a failover loses what was not replicated yet. "
            "replicas=1 in the URL waits until one has it (WAIT); min-replicas-to-write bounds how much is lost"
        )
        yield Finding("note", "replication", text)
    else:
        yield Finding("note", "replication", "no replica: while the server is down, the queue is down")


def _clock(facts: Mapping[str, Any]) -> Iterator[Finding]:
    ahead = facts["ahead"]
    if abs(ahead) < CLOCKS_APART:
        yield Finding("ok", "clock", f"the clocks of the server and this machine differ by {abs(ahead):.3f} s")
    else:
        text = (
            f"the server's clock is {ahead:+.1f} s off this machine's: harmless, as the queue uses the server's clock"
        )
        yield Finding("note", "clock", text)
