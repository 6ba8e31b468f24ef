"""`dtq doctor`: report what can be lost where the queue is kept."""

from __future__ import annotations

from typing import Annotated

import typer

from dtq.cli import checks, common
from dtq.cli.common import ENVIRONMENT, JsonOption, existing, print_json, readable
from dtq.stores.protocol import Store

COLOURS = {"ok": "green", "note": "yellow", "bad": "red"}


def doctor(
    store: Annotated[
        str, typer.Argument(metavar="[URL]", envvar=ENVIRONMENT, help="The store of the queue.")
    ] = common.STORE,
    json: JsonOption = False,
) -> None:
    """Report what can be lost where the queue is kept, and what to do about it.

    Exit codes: 0 nothing, or only by choice; 1 tasks can be lost; 2 the store cannot be used.
    """
    with existing(store) as manager:
        findings = examine(manager.store)
    if json:
        print_json(findings)
    else:
        for finding in findings:
            verdict = typer.style(f"{finding.verdict:4}", fg=COLOURS[finding.verdict])
            typer.echo(f"{verdict}  {finding.subject:11}  {readable(finding.text)}")
    if any(finding.verdict == "bad" for finding in findings):
        raise typer.Exit(1)


def examine(store: Store) -> list[checks.Finding]:
    """Return the findings for this store."""
    if hasattr(store, "facts"):
        return checks.check_server(store.facts())
    return checks.check_disk(getattr(store, "durability", "full"))
