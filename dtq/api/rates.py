"""Rates: limits the requests per second of each token, over all processes of a server.

Each token bucket is stored as one number, as in policy/limits.py: the time at which the bucket is full again. The
numbers are in a file that all processes map into memory. Nothing locks it: two processes that read the same number at
the same moment may both let a request through. The limit protects the server from floods; it does not count exactly.
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
    """Token buckets for `slots` tokens.

    Args:
        rate: requests per second for each token; None: any number.
        slots: how many tokens there are.
        fd: the descriptor of the file that another process has made; None: make one.
    """

    def __init__(self, rate: float | None, slots: int, fd: int | None = None) -> None:
        self._rate = rate
        self._file = tempfile.TemporaryFile() if fd is None else os.fdopen(fd, "r+b")  # noqa: SIM115
        size = _SLOT.size * max(1, slots)
        os.ftruncate(self._file.fileno(), size)
        self._times = mmap.mmap(self._file.fileno(), size)

    def fileno(self) -> int:
        return self._file.fileno()

    def wait_for(self, slot: int) -> float:
        """Count a request of this token and return 0, or return the seconds until one is allowed."""
        if self._rate is None:
            return 0.0
        now, interval = time.monotonic(), 1 / self._rate  # all processes of a machine share this clock
        full_at = max(now, _SLOT.unpack_from(self._times, slot * _SLOT.size)[0])
        ahead = full_at + interval - now - max(BURST, interval)
        if ahead > 1e-9:
            return float(ahead)
        _SLOT.pack_into(self._times, slot * _SLOT.size, full_at + interval)
        return 0.0

    def close(self) -> None:
        self._times.close()
        self._file.close()
