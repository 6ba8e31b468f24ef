"""Figures of a run. Each is shown with a description for those who cannot see it, and gives its axes for assertions."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dtq.lab.record import Recorder

# Okabe and Ito's palette: told apart by everybody
COLORS = {
    "completed": "#009E73",
    "retried": "#E69F00",
    "worker killed": "#CC79A7",
    "failed": "#D55E00",
    "cancelled": "#999999",
}
NARROW = 0.002  # of the time shown: a bar narrower than this gets an edge of its own colour, or nobody would see it


def gantt(recorder: Recorder) -> Axes:
    """Who ran what and when: a lane for each worker, a bar for each attempt, coloured by how it ended."""
    frame = recorder.frame()
    figure, axes = plt.subplots()
    lanes = {worker: lane for lane, worker in enumerate(sorted(frame["worker"].unique(), key=_in_order))}
    end = frame["finished"].max()
    for outcome, rows in frame.groupby("outcome", sort=False):
        color = COLORS[str(outcome)]
        axes.barh(
            rows["worker"].map(lanes), rows["seconds"], left=rows["started"], height=0.8, color=color,
            edgecolor=["white" if wide else color for wide in rows["seconds"] > end * NARROW],
            linewidth=0.8, label=f"{outcome} ({len(rows)})",
        )  # fmt: skip
    for _, row in frame[frame["outcome"] == "worker killed"].iterrows():
        axes.plot(row["finished"], lanes[row["worker"]], marker="X", color="black", markersize=9, linestyle="none")
    axes.set_yticks(list(lanes.values()), list(lanes))
    axes.set_xlim(0, end * 1.01)
    axes.set(xlabel="time (s)", ylabel="worker", title="Who ran what")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=5)
    outcomes = ", ".join(f"{n} {outcome}" for outcome, n in frame["outcome"].value_counts().items())
    _show_figure(figure, f"Gantt chart: {len(frame)} attempts on {len(lanes)} workers ({outcomes}).")
    return axes


def depth(recorder: Recorder) -> Axes:
    """How many tasks wait and how many run, over time."""
    frame = recorder.depth()
    figure, axes = plt.subplots()
    axes.step(frame["seconds"], frame["waiting"], where="post", color="#0072B2", label="waiting")
    axes.step(frame["seconds"], frame["running"], where="post", color="#E69F00", label="running")
    axes.step(frame["seconds"], frame["ended"], where="post", color="#009E73", linestyle="--", label="ended")
    axes.set(xlabel="time (s)", ylabel="tasks", title="Tasks that wait, run, and have ended")
    axes.legend()
    peak, end = frame["waiting"].max(), frame["seconds"].max()
    _show_figure(
        figure, f"Line chart: up to {peak} tasks wait, and {frame['ended'].max()} have ended after {end:.1f} s."
    )
    return axes


def _in_order(worker: str) -> tuple[int, str]:
    """w2 before w10."""
    return len(worker), worker


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


def _show_figure(figure: Figure, alt: str) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    display(HTML(_img(buffer.getvalue(), alt)))


def _img(png: bytes, alt: str) -> str:
    return f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
