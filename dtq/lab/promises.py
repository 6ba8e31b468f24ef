"""Conformance tables: which promises a store keeps; and for those that it breaks, what was expected and what came, and
the calls that show it.

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

WORDS = {"passed": "right", "failed": "wrong", "skipped": "not yet"}  # whose colours they have
EXPLAINED = 3  # failures that are shown with their calls
CALLS = 12  # before a failure that are shown
LEFT = 'style="text-align:left;vertical-align:top"'
FEW = 12  # promises that were kept: more of them are folded away
HANGS = 3  # then the other checks are not asked


class Findings(list[Result]):
    """The results of the checks. They were shown when they came, so a cell that ends with them shows nothing more."""

    @property
    def kept(self) -> bool:
        """Whether no promise was broken (what was skipped was not asked)."""
        return all(result.status != "failed" for result in self)

    def _ipython_display_(self) -> None:
        pass


class Finding(NamedTuple):
    """A result, and the calls that led to it: how many, and as lines."""

    result: Result
    n: int = 0
    calls: Sequence[str] = ()
    hung: bool = False


def promises(make: Make, checks: Iterable[Check] = CHECKS, seconds: float = 10.0) -> Findings:
    """Asks a store for what it promises, a new one from `make` for each check, and shows what came; gives the results.

    `make` is the class itself, or a function that gives an empty store, or its `conformance.Subject`. `checks` are a
    lesson's part, such as `conformance.group("add", "claim")`. A check that takes longer than `seconds` has failed;
    after three of those the others are skipped.
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
    """The first failures, of those that the fewest calls show."""
    failed = [finding for finding in findings if finding.result.status == "failed"]
    return sorted(failed, key=lambda finding: finding.n)[:EXPLAINED]


def _evidence(finding: Finding) -> str:
    """What was expected and what came, and below it the calls."""
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
