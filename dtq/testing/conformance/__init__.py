"""Conformance: the behaviour that every Store must show, as small checks that need no test framework.

    from dtq import conformance
    conformance.run(MemoryStore)                              every check, each on a store of its own
    conformance.run(MemoryStore, conformance.group("leases"))

Each `check_*` function states its promise in its docstring and breaks it down into calls of `expect`. Time is made up:
it starts at NOW and moves when a check says so. A check that looks at the same data twice (another process, the time
after a crash) takes a Subject instead of a store; where a store cannot be looked at twice, it is skipped.
"""

from __future__ import annotations

from dtq.testing.conformance import (
    adding,
    claiming,
    dependencies,
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
    dependencies,
    leases,
    lanes,
    looking,
    fencing,
    needed,
    lasting,
)  # each module enters its checks

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
