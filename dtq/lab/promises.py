"""Conformance tables: which promises a store keeps; and for a broken one, the expected and the actual value, and the
calls that led to it.

    checks of dtq.testing.conformance ---> Recorded(the reader's store) ---> a table of promises
                                      |
                                      +--- the calls up to the first expectation that fails
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from textwrap import indent
from typing import Literal, NamedTuple

from IPython.display import display

from dtq.lab.calls import Log, recorded
from dtq.lab.source import Page
from dtq.lab.trial import difference, in_time, in_words
from dtq.lab.verdict import COLORS
from dtq.testing import conformance
from dtq.testing.conformance import CHECKS, Check, Make, Result

WORDS = {"passed": "right", "failed": "wrong", "skipped": "not yet"}  # result -> the verdict whose colour it has
EXPLAINED = 3  # failures that are shown with their calls
CALLS = 12  # calls that are shown before a failure
LEFT = 'style="text-align:left;vertical-align:top"'
FEW = 12  # kept promises; more of them are folded
HANGS = 3  # checks that took too long; after them, the others are skipped


class Findings(list[Result]):
    """The results of the checks. `promises` has shown them already, so a cell that ends with them shows nothing
    more."""

    @property
    def kept(self) -> bool:
        """Whether no promise was broken. Skipped checks do not count."""
        return all(result.status != "failed" for result in self)

    def _ipython_display_(self) -> None:
        pass


class Finding(NamedTuple):
    """A result, and the calls that led to it: their number, and their lines."""

    result: Result
    n: int = 0
    calls: Sequence[str] = ()
    hung: bool = False


def promises(make: Make, checks: Iterable[Check] = CHECKS, seconds: float = 10.0) -> Findings:
    """Check the promises of a store, with a new store for each check, and show the results.

    Args:
        make: The class, or a function that returns an empty store, or its `conformance.Subject`.
        checks: All of them, or a part such as `conformance.group("add", "claim")`.
        seconds: How long a check may take; one that takes longer has failed. After three of those the others are
            skipped.

    Returns:
        The results.

    Raises:
        ValueError: There are no checks.
    """
    if not (asked := list(checks)):
        raise ValueError(f"there are no checks to ask; groups: {', '.join(sorted({c.group for c in CHECKS}))}")
    findings = list(_find(make, asked, seconds))
    display(Page(_html(findings), _text(findings)))
    return Findings(finding.result for finding in findings)


def _find(make: Make, checks: Sequence[Check], seconds: float) -> Iterator[Finding]:
    hung = 0
    for check in checks:
        if hung < HANGS:
            finding = _ask(make, check, seconds)
            hung += finding.hung
            yield finding
        else:
            yield Finding(_result(check, "skipped", f"not asked: {HANGS} checks before took too long"))


def _ask(make: Make, check: Check, seconds: float) -> Finding:
    log = Log()
    results, error = in_time(seconds, lambda: conformance.run(recorded(make, log), [check]))
    if results:
        return Finding(results[0], len(log), log.lines())
    hung = isinstance(error, TimeoutError)
    detail = str(error) if hung else f"raised {in_words(error)}"
    return Finding(_result(check, "failed", detail), len(log), log.lines(), hung)


def _result(check: Check, status: Literal["failed", "skipped"], detail: str) -> Result:
    return Result(check.name, check.group, check.promise, status, detail)


def _summary(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.result.status for finding in findings)
    skipped = f", {counts['skipped']} not asked" if counts["skipped"] else ""
    return f"{counts['passed']} of {len(findings)} promises kept, {counts['failed']} broken{skipped}."


def _explained(findings: Sequence[Finding]) -> list[Finding]:
    """Return the failures with the fewest calls."""
    failed = [finding for finding in findings if finding.result.status == "failed"]
    return sorted(failed, key=lambda finding: finding.n)[:EXPLAINED]


def _evidence(finding: Finding) -> str:
    """Return the expected and the actual value, and below them the calls."""
    calls, left_out = finding.calls[-CALLS:], len(finding.calls) - CALLS
    before = [f"... {left_out} before these"] if left_out > 0 else []
    steps = ["after these calls on a new store:", *(f"  {call}" for call in [*before, *calls])] if calls else []
    return "\n".join([difference(finding.result.detail), *steps])


def _text(findings: Sequence[Finding]) -> str:
    rows = [f"  {result.status:8} {result.promise}{_reason(result)}" for result, *_ in findings]
    told = [f"\nBroken: {f.result.promise}\n{indent(_evidence(f), '  ')}" for f in _explained(findings)]
    return "\n".join([_summary(findings), *rows, *told])


def _reason(result: Result) -> str:
    return f" ({result.detail})" if result.status == "skipped" else ""


def _html(findings: Sequence[Finding]) -> str:
    kept = [finding.result for finding in findings if finding.result.status == "passed"]
    others = [finding.result for finding in findings if finding.result.status != "passed"]
    shown, folded = (others, kept) if len(kept) > FEW else ([finding.result for finding in findings], [])
    told = "".join(
        f"<p><strong>Broken: {html.escape(finding.result.promise)}</strong></p>"
        f"<pre>{html.escape(_evidence(finding))}</pre>"
        for finding in _explained(findings)
    )
    more = f"<details><summary>The promises that are kept</summary>{_table(folded)}</details>" if folded else ""
    return f"<p>{_summary(findings)}</p>{_table(shown) if shown else ''}{told}{more}"


def _table(results: Sequence[Result]) -> str:
    head = f"<tr><th scope='col' {LEFT}>result</th><th scope='col' {LEFT}>promise</th></tr>"
    return f"<table>{head}{''.join(map(_row, results))}</table>"


def _row(result: Result) -> str:
    status = f'<strong style="color:{COLORS[WORDS[result.status]]}">{result.status}</strong>'
    return f"<tr><td {LEFT}>{status}</td><td {LEFT}>{_with_code(result.promise + _reason(result))}</td></tr>"


def _with_code(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text))
