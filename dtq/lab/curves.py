"""Figures of experiments: ecdf (how long do tasks wait?), scaling (what do more workers bring?), predict (was I
right?).

frame: a row for each run --> medians with intervals, fitted laws --> axes, and the finding in words

Frames come from `Experiment.frame`, or from anywhere else if they have the named columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from dtq.lab.figures import OKABE_ITO, number, require_rows, show_figure, stamp
from dtq.lab.fit import Law, fit_amdahl, fit_usl, summarise
from dtq.lab.guess import veil

Labels = Mapping[str, str]
Expected = Mapping[Any, Any] | Callable[[Any], Any]  # a number by arm

LABELS = {  # column -> label of its axis
    "arm": "arm",
    "latency": "latency (s)",
    "late": "added late by (s)",
    "seconds": "time (s)",
    "throughput": "throughput (tasks/s)",
    "workers": "workers (number)",
}
STYLES = [("blue", "o", "-"), ("vermilion", "s", "--"), ("green", "^", "-."), ("purple", "D", ":"), ("sky", "v", "-")]
FITS: dict[str, tuple[str, Callable[..., Law]]] = {"usl": ("USL", fit_usl), "amdahl": ("Amdahl", fit_amdahl)}


# --- ecdf ------------------------------------------------------------------------------------------------------------


def ecdf(
    frame: pd.DataFrame, value: str, by: str | None = None, *, log: bool = False, labels: Labels | None = None,
    **facts: object,
) -> Axes:  # fmt: skip
    """Draw the cumulative distribution: for each value, the share of values at or below it. There are no bins to
    choose, and the tail stays visible.

    Args:
        frame: A row for each run or task.
        value: The column with the values. A cell may have a list, for example one value for each task of a run.
        by: Draw a line for each group in this column.
        log: Use a logarithmic axis for the values.
        labels: Column -> label of its axis.
        facts: What the stamp of the figure lists, by name.

    Returns:
        The axes of the figure.
    """
    known = require_rows(frame.explode(value).dropna(subset=[value]), f"column {value!r} is empty")
    figure, axes = plt.subplots(layout="constrained")
    groups = {name: rows[value].to_numpy(float) for name, rows in _groups(known, by)}
    for (name, values), (color, _, line) in _styled(groups):
        axes.ecdf(values, label=name or value, color=OKABE_ITO[color], linestyle=line)
    for share in (0.5, 0.99):  # the shares in the description
        axes.axhline(share, color=OKABE_ITO["grey"], linewidth=0.8, zorder=0)
    label = _label(value, labels)
    axes.set(xlabel=label, ylabel="share at or below", title=f"Distribution of {label}")
    axes.set(xscale="log" if log else "linear", yticks=(0, 0.25, 0.5, 0.75, 0.99))
    if by is not None:
        axes.legend(title=by)
    counted = by if "repeat" in frame else None
    show_figure(figure, _tell_ecdf(groups, label), _quantiles(groups, by), stamp(frame, counted, **facts))
    return axes


def _tell_ecdf(groups: Mapping[str, Any], label: str) -> str:
    found = [
        f"{name or 'all'}: half at or below {number(np.quantile(values, 0.5))}, "
        f"99 % at or below {number(np.quantile(values, 0.99))} (of {len(values)})"
        for name, values in groups.items()
    ]
    return f"Cumulative distribution of {label}. {'; '.join(found)}."


def _quantiles(groups: Mapping[str, Any], by: str | None) -> pd.DataFrame:
    shares = {"smallest": 0.0, "50 %": 0.5, "90 %": 0.9, "99 %": 0.99, "largest": 1.0}
    rows = [
        {by or "": name or "all", "n": len(values)} | {word: np.quantile(values, q) for word, q in shares.items()}
        for name, values in groups.items()
    ]
    return pd.DataFrame(rows)


# --- scaling ---------------------------------------------------------------------------------------------------------


def scaling(
    frame: pd.DataFrame, x: str = "workers", y: str = "throughput", *, fit: Literal["usl", "amdahl"] = "usl",
    by: str | None = None, labels: Labels | None = None, **facts: object,
) -> Axes:  # fmt: skip
    """Draw throughput against the number of workers: medians with 95 % intervals, the law fitted to all runs, and the
    ideal line of workers that share nothing.

    Args:
        frame: A row for each run, with the columns `x` and `y`.
        x: The column with the number of workers.
        y: The column with the throughput.
        fit: The law: Gunther's Universal Scalability Law, or Amdahl's.
        by: Draw a curve for each group in this column.
        labels: Column -> label of its axis.
        facts: What the stamp of the figure lists, by name.

    Returns:
        The axes of the figure.
    """
    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}; allowed: {', '.join(FITS)}")
    groups = dict(_groups(require_rows(frame, "no run has ended"), by))
    law_name, fit_law = FITS[fit]
    laws = {name: fit_law(rows[x], rows[y]) for name, rows in groups.items()}
    figure, axes = plt.subplots(layout="constrained")
    for (name, law), style in _styled(laws):
        _draw_medians(axes, summarise(groups[name], x, y), x, style, f"{name} measured".strip())
        _draw_law(axes, law, frame[x].max(), style, f"{name} {law_name}".strip())
    axes.set(xlabel=_label(x, labels), ylabel=_label(y, labels), title="What more workers bring")
    axes.set(xlim=(0, None), ylim=(0, 1.5 * frame[y].max()))  # the ideal line would leave little room for the others
    axes.set_xticks(sorted(frame[x].unique()))
    figure.legend(loc="outside right upper")
    columns = [x] if by is None else [by, x]
    table = pd.concat([_with_law(rows, laws[name], columns, x, y) for name, rows in groups.items()])
    show_figure(figure, _tell_scaling(groups, laws, x, y, law_name), table, stamp(frame, columns, **facts))
    return axes


def _draw_medians(axes: Axes, medians: pd.DataFrame, x: str, style: tuple[str, str, str], label: str) -> None:
    color, marker, _ = style
    below, above = medians["median"] - medians["low"], medians["high"] - medians["median"]
    axes.errorbar(
        medians[x], medians["median"], yerr=[below, above], color=OKABE_ITO[color], marker=marker, linestyle="none",
        capsize=4, label=label, zorder=3,
    )  # fmt: skip


def _draw_law(axes: Axes, law: Law, most: float, style: tuple[str, str, str], label: str) -> None:
    n = np.linspace(1, most * 1.1, 200)
    axes.plot(n, law(n), color=OKABE_ITO[style[0]], linestyle=style[2], label=label)
    axes.plot(n, law.rate * n, color=OKABE_ITO[style[0]], linestyle=(0, (1, 3)), label=f"{label}, ideal")


def _with_law(rows: pd.DataFrame, law: Law, columns: list[str], x: str, y: str) -> pd.DataFrame:
    medians = summarise(rows, columns, y)
    return medians.assign(fitted=law(medians[x]), ideal=law.rate * medians[x])


def _tell_scaling(groups: Mapping[str, pd.DataFrame], laws: Mapping[str, Law], x: str, y: str, fit: str) -> str:
    found = "; ".join(f"{name or 'measured'}: {_tell_law(groups[name], laws[name], x, y)}" for name in groups)
    return f"{y.capitalize()} against {x}, with {fit} fit. {found}."


def _tell_law(rows: pd.DataFrame, law: Law, x: str, y: str) -> str:
    medians = summarise(rows, x, y)
    first, last = medians.iloc[0], medians.iloc[-1]
    peak = f"highest at {x} {law.peak:.1f}" if np.isfinite(law.peak) else "no highest point"
    return (
        f"from {number(first['median'])} ({x} {first[x]:g}) to {number(last['median'])} ({x} {last[x]:g}), "
        f"{last['median'] / (law.rate * last[x]):.0%} of ideal; {law}; {peak}"
    )


# --- predict ---------------------------------------------------------------------------------------------------------


def predict(
    guess: Expected | None, theory: Expected | None, measured: pd.DataFrame, x: str = "arm", y: str = "value", *,
    log: bool = False, labels: Labels | None = None, **facts: object,
) -> Axes:  # fmt: skip
    """Draw your guess, the theory and the measurement, with intervals, and show what the theory leaves unexplained.

    Args:
        guess: Values by arm, or a function of the arm; None, or Ellipsis for a value, if there is none yet. If it comes
            from `lab.guess` and is not locked in, the figure is folded away.
        theory: The same for the theory.
        measured: A row for each run, with the columns `x` and `y`.
        x: The column with the arm.
        y: The column with the measured value.
        log: Use a logarithmic axis for the values.
        labels: Column -> label of its axis.
        facts: What the stamp of the figure lists, by name.

    Returns:
        The axes of the figure.
    """
    table = left_over(guess, theory, measured, x, y)
    figure, axes = plt.subplots(layout="constrained")
    ordered = pd.api.types.is_numeric_dtype(table[x])  # a line between names would mean nothing
    arms = table[x] if ordered else table[x].astype(str)
    for name, color, marker, line in (("guess", "vermilion", "D", ":"), ("theory", "green", "s", "--")):
        if table[name].notna().any():
            axes.plot(
                arms, table[name], color=OKABE_ITO[color], marker=marker, markerfacecolor="none",
                linestyle=line if ordered else "none", label=name,
            )  # fmt: skip
    _draw_medians(axes, table.assign(**{x: arms}), x, ("blue", "o", ""), "measured")
    axes.set(xlabel=_label(x, labels), ylabel=_label(y, labels), title="Guess, theory, measurement")
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0)
    axes.set_xticks(arms)
    figure.legend(loc="outside right upper")
    text = _tell_left_over(table, x)
    alt = f"{y.capitalize()} by {x}. {text}"
    show_figure(figure, alt, table, stamp(measured, x, **facts), told=text, veil=veil(guess))
    return axes


def left_over(
    guess: Expected | None, theory: Expected | None, measured: pd.DataFrame, x: str = "arm", y: str = "value"
) -> pd.DataFrame:
    """Return a row for each arm: guess, theory, median with interval, and `left`, the part that theory does not
    explain."""
    table = summarise(require_rows(measured, "no run has ended"), x, y)
    table.insert(1, "guess", [_expected(guess, arm) for arm in table[x]])
    table.insert(2, "theory", [_expected(theory, arm) for arm in table[x]])
    return table.assign(left=table["median"] - table["theory"])


def _expected(expected: Expected | None, arm: Any) -> float:
    """Return the expected value; NaN if there is none yet."""
    value = expected(arm) if callable(expected) else (expected or {}).get(arm)
    return np.nan if value is None or value is ... else float(value)


def _tell_left_over(table: pd.DataFrame, x: str) -> str:
    return " ".join(
        [_tell_error(table, "guess", "Your guess"), _tell_error(table, "theory", "Theory"), *_tell_most(table, x)]
    )


def _tell_error(table: pd.DataFrame, column: str, who: str) -> str:
    known = table[table[column].notna()]
    if known.empty:
        return f"{who}: none yet."
    off = (known[column] / known["median"] - 1).abs().median()
    within = known[column].between(known["low"], known["high"]).sum()
    return f"{who} is typically off by {off:.0%}, and within the interval for {within} of {len(known)}."


def _tell_most(table: pd.DataFrame, x: str) -> Iterator[str]:
    """Yield a sentence on the arm where theory is off most."""
    share = (table["left"] / table["theory"]).abs()
    if share.notna().any():
        row = table.loc[share.idxmax()]
        yield (
            f"Most is left over at {x} {table.at[share.idxmax(), x]}: measured {number(row['median'])} "
            f"({number(row['low'])} to {number(row['high'])}), which is {number(abs(row['left']))} "
            f"{'more' if row['left'] > 0 else 'less'} than the {number(row['theory'])} of theory."
        )


# --- shared ----------------------------------------------------------------------------------------------------------


def _groups(frame: pd.DataFrame, by: str | None) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the name and rows of each group; "" and all rows if `by` is None."""
    if by is None:
        yield "", frame
    else:
        yield from ((str(name), rows) for name, rows in frame.groupby(by))


def _styled(groups: Mapping[str, Any]) -> Iterator[tuple[tuple[str, Any], tuple[str, str, str]]]:
    """Pair each group with its colour, marker and line style: the groups differ without colour too."""
    return zip(groups.items(), itertools.cycle(STYLES))


def _label(column: str, labels: Labels | None) -> str:
    return {**LABELS, **(labels or {})}.get(column, column)
