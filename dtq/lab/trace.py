"""Draw a counterexample: a lane for each process, time downwards, a dot for each step, and the broken promise at the
end.

A        B
o        |     1  selects t1
|        o     2  selects t1
X        |     3  crashes: its lane ends here
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from dtq.lab.explore import CRASHES, Exploration
from dtq.lab.figures import OKABE_ITO, show_figure, stamp

LANES = [OKABE_ITO[name] for name in ("blue", "green", "purple", "orange", "sky")]  # each lane also has its name
BROKEN = OKABE_ITO["vermilion"]
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # behind text, so that no line crosses it
LINE = 2.75  # the height of a step, in font sizes


def trace(found: Exploration, **facts: object) -> Axes | None:
    """Draw the counterexample and print it. If there is none, only print that. Facts go into the stamp. Return the
    axes, or None without a counterexample."""
    if found.broken is None:
        print(found)
        return None
    row = LINE * plt.rcParams["font.size"] / 72
    figure, axes = plt.subplots(figsize=(plt.rcParams["figure.figsize"][0], row * (len(found.steps) + 3)))
    lanes = {process: x for x, process in enumerate(found.processes)}
    for process in lanes:
        _draw_lane(axes, found, process, lanes[process])
    path = [lanes[step.process] for step in found.steps]
    axes.plot(path, range(1, len(path) + 1), color=OKABE_ITO["grey"], linewidth=1, linestyle=":", zorder=1)
    _write(axes, found.broken, len(path) + 1, len(lanes))
    steps = pd.DataFrame(
        [(n, *step) for n, step in enumerate(found.steps, 1)], columns=["step", "process", "what it does"]
    )
    show_figure(figure, describe(found), steps, stamp(states=found.states, **facts))
    print(found)
    return axes


def describe(found: Exploration) -> str:
    """Return the counterexample in words."""
    story = "; ".join(f"{n}. {process} {label}" for n, (process, label) in enumerate(found.steps, 1))
    return f"Space-time diagram of {', '.join(found.processes)}. {story}. Then the promise is broken: {found.broken}."


def _draw_lane(axes: Axes, found: Exploration, process: str, x: int) -> None:
    color = LANES[x % len(LANES)]
    crash = next((n for n, step in enumerate(found.steps, 1) if step == (process, CRASHES)), None)
    end = crash or len(found.steps) + 0.5
    axes.plot([x, x], [0.4, end], color=color, linewidth=2, zorder=1)
    axes.text(x, 0.2, process, color=color, fontweight="bold", ha="center", va="bottom")
    for n, (who, label) in enumerate(found.steps, 1):
        if who == process:
            marker, dot = ("X", "black") if n == crash else ("o", color)
            axes.plot(x, n, marker=marker, color=dot, markersize=10, linestyle="none", zorder=2)
            axes.text(x + 0.06, n, f"{n}  {label}", va="center", zorder=3, bbox=PAPER)


def _write(axes: Axes, broken: str, y: int, lanes: int) -> None:
    """Write the broken promise in red below all lanes."""
    axes.text(-0.1, y, f"broken: {broken}", color=BROKEN, fontweight="bold", va="center")
    axes.set(xlim=(-0.2, lanes - 0.1), ylim=(y + 0.5, -0.3), title="The shortest way to break the promise")
    axes.set_axis_off()
