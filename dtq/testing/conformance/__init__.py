"""Conformance: the behaviour that every Store must show, as small checks that need no test framework.

    from dtq.testing import conformance
    conformance.run(MemoryStore)                              every check, each on a new store
    conformance.run(MemoryStore, conformance.group("leases"))

The docstring of each `check_*` function states its promise; calls of `expect` check it in parts. Time is simulated: it
starts at NOW, and only a check moves it. A check that opens the same data twice (as another process would, or after a
crash) takes a Subject instead of a store. It is skipped for a store that cannot be opened twice.
"""

from __future__ import annotations

from dtq.testing.conformance import (
    adding,
    claiming,
    dependencies,
    exchanging,
    fencing,
    lanes,
    lasting,
    leases,
    looking,
    needed,
    updating,
)
from dtq.testing.conformance.kit import (
    CHECKS,
    Body,
    Broken,
    Check,
    Make,
    Result,
    Skipped,
    Subject,
    expect,
    group,
    promise,
    run,
)

GROUPS = (
    adding,
    claiming,
    updating,
    exchanging,
    dependencies,
    leases,
    lanes,
    looking,
    fencing,
    needed,
    lasting,
)  # each module registers its checks

__all__ = [
    "CHECKS",
    "GROUPS",
    "Body",
    "Broken",
    "Check",
    "Make",
    "Result",
    "Skipped",
    "Subject",
    "expect",
    "group",
    "promise",
    "run",
]
