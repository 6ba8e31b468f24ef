"""The `dtq` command. Each family of commands is a file; this one assembles them.

    run               work as a node                              run.py, config.py, node.py
    serve             the REST API                                serve.py
    add               add tasks                                   add.py
    get, list, stats  show tasks and counts                       look.py, views.py
    top               show the queue live                         top.py, screen.py
    doctor            show what can be lost                       doctor.py, checks.py
    cancel, retry, purge, pause, resume                           change.py
    dead              list, show, redrive, purge                  dead.py
    flow              add, show, cancel, retry                    flow.py
    schedule          add, list, next, pause, resume, remove      schedule.py
    limit             set, list, remove                           limit.py
    demo, lab         learn                                       demo.py, and here
    chaos             inject faults, and check the promises       chaos.py

A slow import happens in the command that needs it, so that `dtq --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dtq import __version__
from dtq.cli import add, change, chaos, dead, doctor, flow, limit, look, run, schedule, serve, top
from dtq.cli.common import complain, say
from dtq.errors import DTQError, IllegalTransition, UnknownSchedule, UnknownTask

TOUR = Path(__file__).parents[2] / "notebooks" / "00-tour.ipynb"


class Commands(TyperGroup):
    """Ends every command: an error becomes one red line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return self._invoke(ctx)
        except BrokenPipeError:
            raise  # the reader of the output closed it: print nothing
        except (DTQError, OSError) as error:
            complain(f"dtq {ctx.invoked_subcommand}: {error}")
            raise typer.Exit(1 if isinstance(error, (UnknownTask, UnknownSchedule, IllegalTransition)) else 2) from None
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(130) from None

    def _invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        finally:
            sys.stdout.flush()  # notice a closed output here, not when Python exits


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dtq {__version__}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A distributed task queue, to run and to learn from.

    The queue is where --store says, else where DTQ_STORE in the
    environment says, else in the file queue.db in this directory.
    Results are printed on stdout; messages, progress and errors on
    stderr.

    Exit codes:
      0  done
      1  a part failed, such as an unknown id
      2  a wrong option, or a store that cannot be used
      3  the awaited task failed, or was cancelled
      4  the awaited task did not end in time
    130  interrupted
    """


def demo_command(
    tasks: Annotated[int, typer.Option(min=1, max=100_000, help="How many pictures to process.")] = 200,
    workers: Annotated[int, typer.Option(min=1, max=100, help="How many worker processes.")] = 4,
    store: Annotated[str, typer.Option(help="The URL of a store; by default a temporary SQLite file.")] = "",
    api: Annotated[
        bool, typer.Option("--api", help="Add the tasks over HTTP, and show the queue on a live page.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --api; 0 picks a free port.")] = 3000,
) -> None:
    """Process real pictures, with retries and a killed worker, and lose nothing.

    Exit codes: 0 every task ended as expected, 1 some did not, 2 the demo could not run, 130 interrupted.
    """
    from dtq.cli.demo import run as run_demo

    try:
        raise typer.Exit(0 if run_demo(tasks, workers, store, port if api else None) else 1)
    except KeyboardInterrupt:
        say("interrupted: the workers have ended")
        raise typer.Exit(130) from None


def lab(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ...]", help="Options for JupyterLab, as in -- --no-browser.")
    ] = None,
) -> None:
    """Open the tour of the workbook in JupyterLab."""
    if not TOUR.is_file():
        raise DTQError(f"there is no {TOUR}: the workbook is part of a checkout of dtq; run dtq lab from there")
    if find_spec("jupyterlab") is None:
        raise DTQError('JupyterLab is not installed: pip install -e ".[lab]"')
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", str(TOUR), *(arguments or ())])


FAMILIES: dict[str, dict[str, Callable[..., None]]] = {
    "Work": {"run": run.run, "serve": serve.serve, "add": add.add},
    "Look": {
        "get": look.get, "list": look.list_tasks, "stats": look.stats, "top": top.top, "doctor": doctor.doctor,
    },
    "Change": {
        "cancel": change.cancel, "retry": change.retry, "purge": change.purge,
        "pause": change.pause, "resume": change.resume,
    },
    "Learn": {"lab": lab, "demo": demo_command, "chaos": chaos.chaos},
}  # fmt: skip
for family, commands in FAMILIES.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=family)(command)
GROUPS = {"dead": dead.app, "flow": flow.app, "schedule": schedule.app, "limit": limit.app}
for name, commands_of_it in GROUPS.items():
    app.add_typer(commands_of_it, name=name, rich_help_panel="Groups")
