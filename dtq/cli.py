"""The `dtq` command. What a command needs is imported when it runs, so that `dtq --help` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


def _say_version(wanted: bool) -> None:
    if wanted:
        from dtq import __version__

        typer.echo(f"dtq {__version__}")
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
    workers: Annotated[int, typer.Option(min=1, max=100, help="How many worker processes.")] = 4,
    store: Annotated[str, typer.Option(help="A store's URL; by default a SQLite file that is gone afterwards.")] = "",
) -> None:
    """The tour in a terminal: real pictures, retries, a worker killed on the way, and nothing lost.

    Exit codes: 0 every task ended as it should, 1 some did not, 2 it could not be done, 130 interrupted.
    """
    from dtq import demo as story
    from dtq.errors import DTQError

    try:
        raise typer.Exit(0 if story.run(tasks, workers, store) else 1)
    except DTQError as error:
        typer.secho(f"dtq demo: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.secho("interrupted: the workers have ended", err=True)
        raise typer.Exit(130) from None
