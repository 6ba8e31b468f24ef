"""`dtq chaos`: inject faults into a queue, real or simulated, and report which promises were kept."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dtq.cli.common import complain, counted, say
from dtq.errors import DTQError
from dtq.stores.address import redacted

if TYPE_CHECKING:  # rich takes long to import
    from rich.progress import Progress


def chaos(
    store: Annotated[
        str, typer.Argument(metavar="STORE_URL", help="An empty store for the run; memory: runs a simulation.")
    ],
    profile: Annotated[
        Literal["small", "release"], typer.Option(help="600 tasks and 20 kills, or 20,000 and 200.")
    ] = "small",
    seed: Annotated[int, typer.Option(help="Seed of the faults, or of the first schedule.")] = 0,
    tasks: Annotated[int | None, typer.Option(min=1, help="In place of the profile's number.")] = None,
    kills: Annotated[int | None, typer.Option(min=0, help="In place of the profile's number.")] = None,
    schedules: Annotated[int, typer.Option(min=1, help="How many schedules memory: simulates.")] = 1000,
    server: Annotated[
        str, typer.Option(metavar="COMMAND", help="The command that starts the store's server; faults then hit it too.")
    ] = "",
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append the figures to this file, as a line of JSON.")
    ] = None,
) -> None:
    """Inject faults into a queue, and check that nothing is lost.

    Real processes work on the store while they are killed, frozen and
    starved. What they recorded outside of the store is then compared with
    what the store holds. With --server, faults also hit the server of the
    store:

    dtq chaos redis://127.0.0.1:7000 --server "valkey-server --port 7000 --appendonly yes --appendfsync always"

    With memory: the same promises are checked in simulated schedules,
    thousands a minute; --schedules 1 prints one of them step by step.

    Exit codes: 0 every promise was kept, 1 some were broken, 2 the run was not possible, 130 interrupted.
    """
    if store == "memory:":
        raise typer.Exit(_simulate(seed, schedules))
    if find_spec("psutil") is None:
        raise DTQError('dtq chaos needs psutil to inject faults: pip install "dtq[chaos]"')
    raise typer.Exit(_run(store, profile, seed, {"tasks": tasks, "kills": kills}, server, record))


# --- simulated -------------------------------------------------------------------------------------------------------


def _simulate(seed: int, schedules: int) -> int:
    from dtq.testing.chaos.simulation import simulate

    began = time.monotonic()
    with _progress() as progress:
        bar = progress.add_task("schedules", total=schedules)
        for number in range(seed, seed + schedules):
            schedule = simulate(number)
            progress.advance(bar)
            if schedule.broken or schedules == 1:
                break
    if schedules == 1 or schedule.broken:
        typer.echo(str(schedule))
    if schedule.broken:
        complain(
            f"seed {number} breaks {', '.join(schedule.broken)}; to repeat it: "
            f"dtq chaos memory: --seed {number} --schedules 1"
        )
        return 1
    say(f"{counted(schedules, 'schedule')} in {time.monotonic() - began:.1f} s: every promise was kept")
    return 0


# --- real ------------------------------------------------------------------------------------------------------------


def _run(
    url: str, name: str, seed: int, wanted: dict[str, int | None], server: str, path: Path | None
) -> int:  # fmt: skip
    import msgspec

    from dtq.testing.chaos import harness, record

    given = {option: value for option, value in wanted.items() if value is not None}
    profile = msgspec.structs.replace(harness.PROFILES[name], **given)
    with _progress() as progress:
        bar = progress.add_task("tasks ended", total=profile.tasks)
        result = harness.run(url, seed, profile, lambda ended, _: progress.update(bar, completed=ended), server)
    kind = url.partition(":")[0] if ":" in url else "sqlite"
    line = record.of(kind, result)
    _show(result, line, record.figure(result.ended))
    if path:
        record.append(path, line)
    for promise, sentences in result.broken.items():
        complain(f"{promise}: {'; '.join(sentences[:5])}{' ...' if len(sentences) > 5 else ''}")
    if result.broken:
        again = f"dtq chaos {redacted(url)} --seed {seed} --tasks {profile.tasks} --kills {profile.kills}"
        complain(f"to repeat it, on an empty store: {again}{f' --server {quote(server)}' if server else ''}")
    return 1 if result.broken else 0


def _show(result: Any, line: Any, figure: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("fault", "times", title=f"seed {result.seed}, {line.seconds:.0f} s")
    for kind, n in sorted(result.faults.items(), key=lambda item: -item[1]):
        table.add_row(kind, f"{n:,}")
    table.add_section()
    for what in ("tasks", "kills", "repeats", "parked", "lost", "stale", "broken"):
        table.add_row(what, f"{getattr(line, what):,}")
    console = Console()
    console.print(table)
    console.print("tasks that ended in each second:", figure, sep="\n")


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))
