"""What the processes of a node use: memory now, processor time so far. From /proc; elsewhere this process alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
HAS_PROC = sys.platform == "linux"
PAGE, TICK = (os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")) if HAS_PROC else (1, 1)


class Use(NamedTuple):
    """Bytes of resident memory, and seconds of processor time."""

    memory: int
    cpu: float


def use_of(pid: int) -> Use:
    """What a process uses; nothing, where it is gone or cannot be looked at."""
    with suppress(OSError, ValueError, IndexError):
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        return Use(int(fields[21]) * PAGE, (int(fields[11]) + int(fields[12])) / TICK)
    return Use(0, 0.0)


class Usage:
    """This process and its workers, of which some come and go: what they have used stays counted."""

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}  # seconds of processor time, by the process of a worker
        self._gone = 0.0

    def read(self, workers: Iterable[int]) -> Use:
        """`workers` are the process ids of those that live now."""
        here = os.getpid()
        uses = {pid: use_of(pid) for pid in workers if pid != here} if HAS_PROC else {}
        self._gone += sum(cpu for pid, cpu in self._seen.items() if pid not in uses)
        self._seen = {pid: max(use.cpu, self._seen.get(pid, 0.0)) for pid, use in uses.items()}
        memory = use_of(here).memory + sum(use.memory for use in uses.values())
        return Use(memory, time.process_time() + self._gone + sum(self._seen.values()))
