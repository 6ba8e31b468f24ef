"""Measure memory and processor time of a node's processes. Needs /proc; other systems measure only this process."""

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
PAGE_SIZE, TICKS_PER_SECOND = (os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")) if HAS_PROC else (1, 1)


class Use(NamedTuple):
    """`memory`: resident bytes. `cpu`: seconds of processor time."""

    memory: int
    cpu: float


def use_of(pid: int) -> Use:
    """Return the use of a process; zero if it is gone or cannot be read."""
    with suppress(OSError, ValueError, IndexError):
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        return Use(int(fields[21]) * PAGE_SIZE, (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND)
    return Use(0, 0.0)


class Usage:
    """The use of this process and its workers. The processor time of workers that are gone stays counted."""

    def __init__(self) -> None:
        self._cpu_of: dict[int, float] = {}  # seconds of processor time, by process id of a worker
        self._cpu_of_gone = 0.0

    def read(self, workers: Iterable[int]) -> Use:
        """Return the total use. `workers` are the process ids of the current workers."""
        here = os.getpid()
        uses = {pid: use_of(pid) for pid in workers if pid != here} if HAS_PROC else {}
        self._cpu_of_gone += sum(cpu for pid, cpu in self._cpu_of.items() if pid not in uses)
        self._cpu_of = {pid: max(use.cpu, self._cpu_of.get(pid, 0.0)) for pid, use in uses.items()}
        memory = use_of(here).memory + sum(use.memory for use in uses.values())
        return Use(memory, time.process_time() + self._cpu_of_gone + sum(self._cpu_of.values()))
