"""The `dtq` command: one file for each family of commands, put together here.

    run               a node that works                           run.py, config.py, node.py
    serve             the REST API                                serve.py
    add               into the queue                              add.py
    get, list, stats  look                                        look.py, views.py
    top               look, live                                  top.py, screen.py
    doctor            what can be lost                            doctor.py
    cancel, retry, purge, pause, resume                           change.py
    dead              list, show, redrive, purge                  dead.py
    flow              add, show, cancel, retry                    flow.py
    schedule          add, list, next, pause, resume, remove      schedule.py
    limit             set, list, remove                           limit.py
    demo, lab         learn                                       here
    chaos             break it, and see whether it holds          chaos.py

What takes long to import is imported when a command needs it, so that `dtq --help` answers at once.
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
    """Where every command ends: an error becomes one red line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return self._invoke(ctx)
        except BrokenPipeError:
            raise  # who reads our output has seen enough: no word about it
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
            sys.stdout.flush()  # a reader that has gone is noticed here, not when Python ends


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dtq {__version__}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """A distributed task queue to run, and to learn from.

    --store says where the queue is, else DTQ_STORE in the environment;
    else it is the file queue.db in this directory.
    What was asked for comes on stdout; messages, progress and errors
    come on stderr.

    Exit codes:
      0  done
      1  a part of it could not be done: an unknown id, say
      2  a wrong option, or a store that cannot be used
      3  the task that was waited for failed, or was cancelled
      4  the task that was waited for did not end in time
    130  interrupted
    """


def demo_command(
    tasks: Annotated[int, typer.Option(min=1, max=100_000, help="How many pictures to work on.")] = 200,
    workers: Annotated[int, typer.Option(min=1, max=100, help="How many worker processes.")] = 4,
    store: Annotated[str, typer.Option(help="A store's URL; by default a SQLite file that is gone afterwards.")] = "",
    api: Annotated[bool, typer.Option("--api", help="Add the tasks over HTTP; a page shows the queue live.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --api; 0 is any that is free.")] = 3000,
) -> None:
    """The tour in a terminal: real pictures, retries, a worker killed on the way, and nothing lost.

    Exit codes: 0 every task ended as it should, 1 some did not, 2 it could not be done, 130 interrupted.
    """
    from dtq.cli.demo import run as run_demo

    try:
        raise typer.Exit(0 if run_demo(tasks, workers, store, port if api else None) else 1)
    except KeyboardInterrupt:
        say("interrupted: the workers have ended")
        raise typer.Exit(130) from None


def lab(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ...]", help="Passed on to JupyterLab, as in -- --no-browser.")
    ] = None,
) -> None:
    """Open the workbook at its tour, in JupyterLab."""
    if not TOUR.is_file():
        raise DTQError(f"there is no {TOUR}: the workbook is in a checkout of dtq; run it from there")
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
