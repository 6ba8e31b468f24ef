"""Plan: which faults a run has, in which order, drawn from its seed before anything begins.

What the faults meet depends on the machine, and no seed can repeat that; the faults themselves it does repeat.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from dtq.testing.chaos.failpoints import EVERYWHERE, ON_FILES

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
ON_DISKS = ("slow disk", "full disk")  # of the nodes; a server has its own
ON_SERVERS = ("kill server", "freeze server")
ON_APIS = ("kill api", "freeze api")


class Fault(Struct, frozen=True):
    """`whom` (0 to 1) chooses among those who are there at that moment; `seconds` is how long it lasts."""

    kind: Kind
    whom: float
    seconds: float = 0.0
    place: str = ""  # of a failpoint
    passes: int = 1


def kinds(url: str, *, has_server: bool, has_api: bool) -> list[Kind]:
    """What can happen to a queue on this store, whose server is one's own."""
    is_remote = url.startswith(("redis", "valkey"))
    impossible = (*(ON_DISKS * is_remote), *(ON_SERVERS * (not has_server)), *(ON_APIS * (not has_api)))
    return [kind for kind in WEIGHTS if kind not in impossible]


def draw(seed: int, kills: int, lease: float, among: Sequence[Kind], has_files: bool = False) -> list[Fault]:
    """So many kills, and between them what else can happen."""
    chance = random.Random(seed)
    places = EVERYWHERE + ON_FILES if has_files else EVERYWHERE
    faults: list[Fault] = []
    while kills:
        (kind,) = chance.choices(among, [WEIGHTS[kind] for kind in among])
        seconds = lease + 1.0 if kind == "freeze node for long" else chance.uniform(0.05, 0.4)
        faults.append(Fault(kind, chance.random(), seconds, chance.choice(places), chance.randint(1, 5)))
        kills -= kind in KILLS
    return faults
