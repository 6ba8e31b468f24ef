"""The `dtq` command. What a command needs is imported when it runs, so that `dtq --help` answers at once."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=True, help="A distributed task queue to run, and to learn from.")


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dtq {version('dtq')}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """A distributed task queue to run, and to learn from."""


@app.command()
def demo(
    tasks: Annotated[int, typer.Option(min=1, max=100_000, help="How many pictures to work on.")] = 200,
    workers: Annotated[int, typer.Option(min=1, max=100, help="How many worker processes.")] = 2,
    store: Annotated[str, typer.Option(help="A store's URL; by default a new SQLite file that is removed.")] = "",
) -> None:
    """The tour in a terminal: real pictures, retries, a worker killed on the way, and nothing lost.

    Exit codes: 0 all went as it should, 1 something is missing, 2 it could not be done, 130 interrupted.
    """
    from dtq import demo as story
    from dtq.errors import DTQError

    try:
        raise typer.Exit(0 if story.run(tasks, workers, store) else 1)
    except (DTQError, FileNotFoundError, ModuleNotFoundError) as error:
        typer.secho(f"dtq demo: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.secho("interrupted: the workers have ended", err=True)
        raise typer.Exit(130) from None
