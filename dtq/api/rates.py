"""Rates: how many requests a second each token has, over all processes of a server.

A token bucket that is a single time, as in policy/limits.py: the time at which the bucket is full again. The times are
in a file that the processes share in memory. Two of them that look at the same moment may both let a request through:
a limit is there to keep a client from flooding the server, not to count.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time

BURST = 1.0  # seconds' worth of requests that may come at once
_SLOT = struct.Struct("d")


class Rates:
    """For `slots` tokens; `rate` is in requests a second, None for any number. `fd` is the file of another process."""

    def __init__(self, rate: float | None, slots: int, fd: int | None = None) -> None:
        self._rate = rate
        self._file = tempfile.TemporaryFile() if fd is None else os.fdopen(fd, "r+b")  # noqa: SIM115
        size = _SLOT.size * max(1, slots)
        os.ftruncate(self._file.fileno(), size)
        self._times = mmap.mmap(self._file.fileno(), size)

    def fileno(self) -> int:
        return self._file.fileno()

    def wait_for(self, slot: int) -> float:
        """0 where the request may go on, and is counted; else the seconds until one may."""
        if self._rate is None:
            return 0.0
        now, interval = time.monotonic(), 1 / self._rate  # one clock for all processes of a machine
        full_at = max(now, _SLOT.unpack_from(self._times, slot * _SLOT.size)[0])
        ahead = full_at + interval - now - max(BURST, interval)
        if ahead > 1e-9:
            return float(ahead)
        _SLOT.pack_into(self._times, slot * _SLOT.size, full_at + interval)
        return 0.0

    def close(self) -> None:
        self._times.close()
        self._file.close()
