"""The plan of a chaos run: which faults happen, and in which order. Its seed decides both before the run begins.

A seed repeats the faults. It cannot repeat what each fault hits: that depends on the machine.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from dtq.testing.chaos.failpoints import ON_FILES, ON_STORES

Kind = Literal[
    "kill worker", "kill node", "kill zygote", "kill client", "failpoint",
    "freeze worker", "freeze node", "freeze node for long", "slow disk", "full disk", "clock step",
    "kill api", "freeze api", "kill server", "freeze server",
]  # fmt: skip
KILLS = ("kill worker", "kill node", "kill zygote", "kill client", "failpoint", "kill api", "kill server")
WEIGHTS: dict[Kind, int] = {
    "kill worker": 120, "kill node": 24, "kill zygote": 16, "kill client": 8, "failpoint": 32,
    "freeze worker": 16, "freeze node": 16, "freeze node for long": 2, "slow disk": 8, "full disk": 8, "clock step": 2,
    "kill api": 8, "freeze api": 4, "kill server": 8, "freeze server": 8,
}  # fmt: skip
ON_DISKS = ("slow disk", "full disk")  # of the nodes; a server has its own disk
ON_SERVERS = ("kill server", "freeze server")
ON_APIS = ("kill api", "freeze api")


class PlannedFault(Struct, frozen=True):
    """One fault. `target` (0 to 1) selects the process among those that run at that moment; `seconds` is how long it
    lasts."""

    kind: Kind
    target: float
    seconds: float = 0.0
    failpoint: str = ""  # the name of a failpoint, for a fault of that kind
    passes: int = 1


def kinds(url: str, *, has_server: bool, has_api: bool) -> list[Kind]:
    """Return the kinds of fault that can happen to a queue on this store."""
    is_remote = url.startswith(("redis", "valkey"))
    impossible = (*(ON_DISKS * is_remote), *(ON_SERVERS * (not has_server)), *(ON_APIS * (not has_api)))
    return [kind for kind in WEIGHTS if kind not in impossible]


def draw(seed: int, kills: int, lease: float, possible: Sequence[Kind], has_files: bool = False) -> list[PlannedFault]:
    """Draw faults until `kills` of them kill a process."""
    rng = random.Random(seed)
    failpoints = ON_STORES + ON_FILES if has_files else ON_STORES
    faults: list[PlannedFault] = []
    while kills:
        (kind,) = rng.choices(possible, [WEIGHTS[kind] for kind in possible])
        seconds = lease + 1.0 if kind == "freeze node for long" else rng.uniform(0.05, 0.4)
        faults.append(PlannedFault(kind, rng.random(), seconds, rng.choice(failpoints), rng.randint(1, 5)))
        kills -= kind in KILLS
    return faults
