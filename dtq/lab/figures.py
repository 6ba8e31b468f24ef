"""Figures of a run, and what all figures share.

    figure --show_figure--> picture with words for those who cannot see it (alt text: the finding, in numbers)
                            stamp: where and how it was measured
                            the data, as a table, folded

Each gives its axes, for assertions. Sizes of type and figures come from matplotlib's rcParams, never from here.
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

OKABE_ITO = {  # a palette that everybody can tell apart; the only place where colours of figures are written down
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "orange": "#E69F00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "grey": "#999999",  # not theirs
}
COLORS = {
    "completed": OKABE_ITO["green"],
    "retried": OKABE_ITO["orange"],
    "worker killed": OKABE_ITO["purple"],
    "failed": OKABE_ITO["vermilion"],
    "cancelled": OKABE_ITO["grey"],
}
HATCHES = {"retried": "//", "failed": "xx", "worker killed": "\\\\", "cancelled": ".."}  # told apart without colour too
Mark = tuple[float, str]  # seconds, and what was done: "kill w2", "thaw"
MARKS = {"kill": ("v", "vermilion"), "freeze": ("s", "blue"), "thaw": ("^", "sky")}
OTHER_MARK = ("D", "grey")
NARROW = 0.002  # of the time shown: a bar narrower than this gets an edge of its own colour, or nobody would see it
RECORDED = "recorded"  # what the table of a recording has among its attributes, and its stamp begins with
ROWS = 25  # of a table of data, at most


# --- a run -----------------------------------------------------------------------------------------------------------


def gantt(recorder: Recorder, marks: Sequence[Mark] = (), **facts: object) -> Axes:
    """Who ran what and when: a lane for each worker, a bar for each attempt, coloured by how it ended, and a cross
    where a worker was killed. `marks` are the faults to show, `fault.marks(recorder.began)`. Facts go into the
    stamp."""
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
    """A line through all lanes at each time, and a sign above the lane that was hit (or above all of them)."""
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
    """The worker that a fault names, if it names one."""
    return what.partition(" ")[2]


def _by_worker(frame: pd.DataFrame, marks: Sequence[Mark]) -> pd.DataFrame:
    """A row for each worker: how many attempts ended how, for how many seconds it was busy, and the faults that hit it;
    a row for all of them, where a fault hit none in particular."""
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
    """w2 before w10."""
    return len(worker), worker


def depth(recorder: Recorder, **facts: object) -> Axes:
    """How many tasks wait, run and have ended, over time. Facts go into the stamp."""
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
    """Every so many rows of it, and the last."""
    step = max(1, -(-len(frame) // ROWS))
    return frame.iloc[(len(frame) - 1) % step :: step]


# --- pictures --------------------------------------------------------------------------------------------------------


def show(*pictures: str | Path, width: int = 210) -> None:
    """Pictures side by side, each with its place and its size in pixels below; `width` is how wide they are shown."""
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
    """The picture, with words in its place for those who cannot see it, the stamp, and the data in a folded table.

    `told` is the finding, below the picture. With a `veil` all of it is folded away behind these words.

    One whose stamp begins with "recorded" says so in the picture too."""
    if stamp.startswith(RECORDED):
        figure.text(0.99, 0.99, RECORDED, color=OKABE_ITO["vermilion"], fontweight="bold", ha="right", va="top")
        alt = f"{alt} This was recorded, it is not live."
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    words = f"<p>{html.escape(told)}</p>" if told else ""
    parts = [_img(buffer.getvalue(), alt), words, _small(stamp), "" if data is None else _folded(data)]
    page = f"<details><summary>{html.escape(veil)}</summary>{''.join(parts)}</details>" if veil else "".join(parts)
    display({"text/html": page, "text/plain": alt}, raw=True)


def stamp(frame: pd.DataFrame | None = None, by: str | list[str] | None = None, /, **facts: object) -> str:
    """Where and how the figure was measured: this machine, the facts as they are given, and how many runs each
    group `by` has. Of a table that was recorded it is the machine of then.

    No date: the notebook's history has it, and outputs should change only where what was measured did.
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
    """Three digits that matter, and never an exponent for what people count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _small(text: str) -> str:
    return f"<p><small>{html.escape(text)}</small></p>" if text else ""


def _folded(data: pd.DataFrame) -> str:
    table = data.to_html(index=False, border=0, float_format=number, na_rep="")
    return f"<details><summary>The data as a table</summary>{table}</details>"


def _img(png: bytes, alt: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<img alt="{html.escape(alt, quote=True)}" src="{source}">'
