"""Summaries of chaos runs, each a line of a JSON-lines file, so that runs add up; and tables made from such files."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from dtq.task.model import Status
from dtq.testing.chaos.harness import ChaosResult
from dtq.testing.chaos.plan import KILLS

BARS = " ▁▂▃▄▅▆▇█"  # from empty to full
NAMES = {"sqlite": "SQLite", "file": "`file:`", "memory": "simulated", "redis": "Valkey"}


class RunSummary(msgspec.Struct, frozen=True):
    """One run: where it ran, what was done, what was found.

    `repeats` are runs of an attempt beyond its first; `parked` are tasks that failed because three nodes died under
    them.
    """

    store: str
    seed: int
    tasks: int
    kills: int
    other_faults: int
    lost: int
    stale: int
    broken: int
    repeats: int
    parked: int
    seconds: float
    at: str
    commit: str
    machine: str
    python: str


def of(store: str, result: ChaosResult) -> RunSummary:
    """Return the summary of this run on a store of this kind."""
    run, broken = result.record, result.broken
    kills = sum(result.faults.get(kind, 0) for kind in KILLS)
    return RunSummary(
        store, result.seed, len(run.tasks), kills, sum(result.faults.values()) - kills,
        sum(len(broken.get(name, ())) for name in ("nothing_acknowledged_is_lost", "every_task_ends")),
        len(broken.get("no_stale_write_is_accepted", ())), sum(map(len, broken.values())), run.repeats(),
        sum(task.status == Status.FAILED for task in run.tasks.values()), round(result.seconds, 1),
        time.strftime("%Y-%m-%d", time.gmtime()), commit(), machine(), platform.python_version(),
    )  # fmt: skip


def commit() -> str:
    """Return the commit of the checkout that this code runs from, or "unknown"."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=10", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def append(path: Path, record: RunSummary) -> None:
    with open(path, "ab") as file:
        file.write(msgspec.json.encode(record) + b"\n")


def read(path: Path) -> list[RunSummary]:
    return [msgspec.json.decode(line, type=RunSummary) for line in path.read_bytes().splitlines() if line.strip()]


def markdown(records: Iterable[RunSummary]) -> str:
    """Return a table for docs/proofs.md that adds up the runs of each store, and a line about where they ran."""
    by_store: dict[str, list[RunSummary]] = {}
    for record in records:
        by_store.setdefault(record.store, []).append(record)
    columns = (
        "store",
        "tasks",
        "kills",
        "other faults",
        "lost",
        "stale writes",
        "promises broken",
        "repeats",
        "parked",
    )
    lines = [_line((*columns, "seeds")), "|---" * (len(columns) + 1) + "|"]
    lines += [_row(store, runs) for store, runs in by_store.items()]
    all_runs = [run for runs in by_store.values() for run in runs]
    places = dict.fromkeys(f"{run.machine}, Python {run.python}" for run in all_runs)
    days = sorted({run.at for run in all_runs})
    commits = dict.fromkeys(run.commit for run in all_runs)
    when = " to ".join(dict.fromkeys([days[0], days[-1]]))
    return "\n".join([*lines, "", f"{'; '.join(places)}, {when}; commits {', '.join(commits)}."])


def _row(store: str, runs: list[RunSummary]) -> str:
    names = ("tasks", "kills", "other_faults", "lost", "stale", "broken", "repeats", "parked")
    sums = (f"{sum(getattr(run, name) for run in runs):,}" for name in names)
    return _line((NAMES.get(store, store), *sums, _ranges(run.seed for run in runs)))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ranges(numbers: Iterable[int]) -> str:
    """Return numbers as ranges: 1-3, 7"""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return ", ".join("-".join(map(str, ends)) for ends in ranges)


def figure(ended: list[int]) -> str:
    """Return the number of tasks that ended in each second, as bars. A fault shows as a dent."""
    each = [later - earlier for earlier, later in zip([0, *ended], ended, strict=False)]
    most = max([*each, 1])
    return "".join(BARS[-(-n * (len(BARS) - 1) // most)] for n in each)


if __name__ == "__main__":
    print(markdown(read(Path(sys.argv[1]))))
