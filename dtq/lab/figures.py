"""Figures of a run, and what all figures share.

    figure --show_figure--> picture with a description for readers who cannot see it (alt text: the finding, in numbers)
                            stamp: where and how it was measured
                            the data, as a table, folded

Each function returns the axes, for assertions. Sizes of text and figures come from matplotlib's rcParams only.
"""

from __future__ import annotations

import base64
import html
import io
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import dtq
from dtq.lab.record import Recorder

OKABE_ITO = {  # a palette for readers with colour blindness; the only place that defines colours of figures
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "orange": "#E69F00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "grey": "#999999",  # added to their palette
}
COLORS = {
    "completed": OKABE_ITO["green"],
    "retried": OKABE_ITO["orange"],
    "worker killed": OKABE_ITO["purple"],
    "failed": OKABE_ITO["vermilion"],
    "cancelled": OKABE_ITO["grey"],
}
HATCHES = {
    "retried": "//",
    "failed": "xx",
    "worker killed": "\\\\",
    "cancelled": "..",
}  # outcomes differ without colour too
Mark = tuple[float, str]  # seconds, and what was done: "kill w2", "thaw"
MARKS = {"kill": ("v", "vermilion"), "freeze": ("s", "blue"), "thaw": ("^", "sky")}
OTHER_MARK = ("D", "grey")
NARROW = 0.002  # share of the time axis: below it, the edge of a bar gets the colour of the bar, to stay visible
RECORDED = "recorded"  # the attribute that marks the table of a recording, and the first word of its stamp
ROWS = 25  # the most rows in a table of data


# --- a run -----------------------------------------------------------------------------------------------------------


def gantt(recorder: Recorder, marks: Sequence[Mark] = (), **facts: object) -> Axes:
    """Draw a Gantt chart: a lane for each worker, a bar for each attempt, coloured by its outcome, and a cross where a
    worker was killed.

    Args:
        recorder: The recorder of the run.
        marks: Faults to show: `fault.marks(recorder.began)`.
        facts: What the stamp of the figure lists, by name.

    Returns:
        The axes of the figure.
    """
    frame = require_rows(recorder.frame(), "no attempt has ended")
    figure, axes = plt.subplots(layout="constrained")
    lanes = {worker: lane for lane, worker in enumerate(sorted(frame["worker"].unique(), key=_in_order))}
    end = max([frame["finished"].max(), *(seconds for seconds, _ in marks)])
    for outcome, rows in frame.groupby("outcome", sort=False):
        _draw_bars(axes, rows, rows["worker"].map(lanes), str(outcome), end)
    killed = frame[frame["outcome"] == "worker killed"]
    for worker, finished in zip(killed["worker"], killed["finished"], strict=True):
        axes.plot(finished, lanes[worker], marker="X", color="black", linestyle="none")
    for kind in dict.fromkeys(_kind(what) for _, what in marks):
        _draw_marks(axes, kind, [mark for mark in marks if _kind(mark[1]) == kind], lanes)
    axes.set_yticks(list(lanes.values()), list(lanes))
    axes.set_xlim(0, end * 1.01)
    axes.set(xlabel="time (s)", ylabel="worker", title="Who ran what")
    figure.legend(loc="outside lower center", ncols=5)
    alt = _tell_gantt(frame) + _tell_marks(marks)
    show_figure(figure, alt, _by_worker(frame, marks), stamp(**{**recorder.facts(), **facts}))
    return axes


def _draw_bars(axes: Axes, rows: pd.DataFrame, lanes: pd.Series, outcome: str, end: float) -> None:
    color = COLORS[outcome]
    axes.barh(
        lanes, rows["seconds"], left=rows["started"], height=0.8, color=color, linewidth=0.8,
        hatch=HATCHES.get(outcome),
        edgecolor=["white" if wide else color for wide in rows["seconds"] > end * NARROW],
        label=f"{outcome} ({len(rows)})",
    )  # fmt: skip


def _draw_marks(axes: Axes, kind: str, marks: Sequence[Mark], lanes: Mapping[str, int]) -> None:
    """Draw a line through all lanes at each time, and a marker above the lane of the worker that was hit, or above all
    lanes."""
    sign, color = MARKS.get(kind, OTHER_MARK)
    places = [lanes.get(_target(what), len(lanes) - 1) + 0.45 for _, what in marks]
    times = [seconds for seconds, _ in marks]
    axes.vlines(times, -0.5, len(lanes) - 0.5, color=OKABE_ITO[color], linewidth=0.8, linestyle=":")
    axes.plot(
        times, places, marker=sign, color=OKABE_ITO[color], markeredgecolor="black", linestyle="none",
        label=f"{kind} ({len(marks)})", clip_on=False, zorder=3,
    )  # fmt: skip


def _kind(what: str) -> str:
    return what.partition(" ")[0]


def _target(what: str) -> str:
    """Return the worker that a fault names; "" if it names none."""
    return what.partition(" ")[2]


def _by_worker(frame: pd.DataFrame, marks: Sequence[Mark]) -> pd.DataFrame:
    """Return a row for each worker: the number of attempts by outcome, its busy seconds, and the faults that hit it. If
    a fault hit no worker in particular, there is a row "all"."""
    table = frame.groupby(["worker", "outcome"]).size().unstack(fill_value=0)
    table["busy (s)"] = frame.groupby("worker")["seconds"].sum()
    table = table.loc[sorted(table.index, key=_in_order)]
    hits: dict[str, list[str]] = {}
    for seconds, what in marks:
        row, told = (_target(what), _kind(what)) if _target(what) in table.index else ("all", what)
        hits.setdefault(row, []).append(f"{told} at {number(seconds)} s")
    if hits:
        table = table.reindex([*table.index, *({"all"} & hits.keys())])
        table["faults"] = [", ".join(hits.get(row, ())) for row in table.index]
    return table.rename_axis(columns=None).rename_axis("worker").reset_index()


def _tell_marks(marks: Sequence[Mark]) -> str:
    told = ", ".join(f"{what} at {number(seconds)} s" for seconds, what in marks)
    return f" Faults: {told}." if told else ""


def _tell_gantt(frame: pd.DataFrame) -> str:
    outcomes = ", ".join(f"{n} {outcome}" for outcome, n in frame["outcome"].value_counts().items())
    span = frame["finished"].max() - frame["started"].min()
    lanes = frame["worker"].nunique()
    busy = frame["seconds"].sum() / (lanes * span) if span else 1.0
    return (
        f"Gantt chart: {len(frame)} attempts on {lanes} workers ({outcomes}) within {span:.1f} s; "
        f"the workers are busy {busy:.0%} of that time."
    )


def _in_order(worker: str) -> tuple[int, str]:
    """Return a sort key that puts w2 before w10."""
    return len(worker), worker


def depth(recorder: Recorder, **facts: object) -> Axes:
    """Draw how many tasks wait, run and have ended, over time. Facts go into the stamp. Return the axes."""
    frame = require_rows(recorder.depth(), "no task was added")
    figure, axes = plt.subplots(layout="constrained")
    for name, color, line in (("waiting", "blue", "-"), ("running", "orange", "-"), ("ended", "green", "--")):
        axes.step(frame["seconds"], frame[name], where="post", color=OKABE_ITO[color], linestyle=line, label=name)
    axes.set(xlabel="time (s)", ylabel="tasks", title="Tasks that wait, run, and have ended")
    axes.legend()
    show_figure(figure, _tell_depth(frame), _thinned(frame), stamp(**{**recorder.facts(), **facts}))
    return axes


def _tell_depth(frame: pd.DataFrame) -> str:
    ended, seconds = frame["ended"].max(), frame["seconds"].max()
    rate = f", {ended / seconds:.1f} a second" if seconds else ""
    return (
        f"Line chart: up to {frame['waiting'].max()} tasks wait and up to {frame['running'].max()} run; "
        f"{ended} have ended after {seconds:.1f} s{rate}."
    )


def _thinned(frame: pd.DataFrame) -> pd.DataFrame:
    """Return at most ROWS rows at equal distances, with the last."""
    step = max(1, -(-len(frame) // ROWS))
    return frame.iloc[(len(frame) - 1) % step :: step]


# --- pictures --------------------------------------------------------------------------------------------------------


def show(*pictures: str | Path, width: int = 210) -> None:
    """Show pictures side by side, `width` pixels wide, each with its path and its size in pixels."""
    display(HTML("".join(_captioned(Path(path), width) for path in pictures)))


def _captioned(path: Path, width: int) -> str:
    with Image.open(path) as picture:
        caption = f"{path.parent.name}/{path.name}, {picture.width} x {picture.height}"
        shown = _img(_png(picture, width), f"The picture {caption} pixels")
    style = "display:inline-block;margin:4px"
    return f'<figure style="{style}">{shown}<figcaption>{html.escape(caption)}</figcaption></figure>'


def _png(picture: Image.Image, width: int) -> bytes:
    small = picture.convert("RGB")
    small.thumbnail((width, width))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return buffer.getvalue()


# --- what all figures share ------------------------------------------------------------------------------------------


def show_figure(
    figure: Figure, alt: str, data: pd.DataFrame | None = None, stamp: str = "", *, told: str = "", veil: str = ""
) -> None:
    """Show the picture, with `alt` for readers who cannot see it, the stamp, and the data in a folded table.

    `told` is the finding, below the picture. With a `veil`, all of it is folded behind that text. If the stamp begins
    with "recorded", so does the picture.
    """
    if stamp.startswith(RECORDED):
        figure.text(0.99, 0.99, RECORDED, color=OKABE_ITO["vermilion"], fontweight="bold", ha="right", va="top")
        alt = f"{alt} This is a recording, not a live run."
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    words = f"<p>{html.escape(told)}</p>" if told else ""
    parts = [_img(buffer.getvalue(), alt), words, _small(stamp), "" if data is None else _folded(data)]
    page = f"<details><summary>{html.escape(veil)}</summary>{''.join(parts)}</details>" if veil else "".join(parts)
    display({"text/html": page, "text/plain": alt}, raw=True)


def stamp(frame: pd.DataFrame | None = None, by: str | list[str] | None = None, /, **facts: object) -> str:
    """Return where and how a figure was measured: the machine, the facts, and how many runs each group `by` has. For a
    recording, it is the machine that made it.

    There is no date: the notebook's history has it, and outputs should change only if the measurements did.
    """
    words = [machine() if frame is None else frame.attrs.get(RECORDED, machine())]
    words += [f"{name} {value}" for name, value in facts.items()]
    if frame is not None and by is not None:
        runs = frame.groupby(by).size()
        words.append(f"{runs.min()} runs each" if runs.nunique() == 1 else f"{runs.min()} to {runs.max()} runs each")
    return ", ".join(words)


def machine() -> str:
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, dtq {dtq.__version__}"


def require_rows(frame: pd.DataFrame, why: str) -> pd.DataFrame:
    if frame.empty:
        raise ValueError(f"there is nothing to draw: {why}")
    return frame


def number(value: float) -> str:
    """Return three significant digits, and never an exponent for a number from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _small(text: str) -> str:
    return f"<p><small>{html.escape(text)}</small></p>" if text else ""


def _folded(data: pd.DataFrame) -> str:
    table = data.to_html(index=False, border=0, float_format=number, na_rep="")
    return f"<details><summary>The data as a table</summary>{table}</details>"


def _img(png: bytes, alt: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<img alt="{html.escape(alt, quote=True)}" src="{source}">'
