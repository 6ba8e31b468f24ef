"""Gantt charts by priority: why it helps to reserve a worker for urgent tasks.

The picture in docs/tasks.md is a real run: python -c "from dtq.lab.pools import main; main('docs/pools.svg')"
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dtq import Pool, Task, TaskQueue
from dtq.lab.figures import OKABE_ITO, number, require_rows, show_figure, stamp

LONG, SHORT = 0.3, 0.05  # seconds that a task of the demonstration takes


def by_priority(runs: Mapping[str, Sequence[Task]], urgent: int, **facts: object) -> Sequence[Axes]:
    """Draw a Gantt chart for each run (title -> tasks that have ended): a lane for each worker, a bar for each task, in
    another colour if its priority is at least `urgent`. Facts go into the stamp. Return the axes of each chart."""
    frames = {title: _frame(tasks, urgent) for title, tasks in runs.items()}
    figure, panels = _draw(frames)
    table = pd.concat({title: _waits(frame) for title, frame in frames.items()}, names=["run"]).reset_index()
    show_figure(figure, _tell(frames), table, stamp(**facts))
    return panels


def _draw(frames: Mapping[str, pd.DataFrame]) -> tuple[Figure, Sequence[Axes]]:
    figure, panels = plt.subplots(len(frames), layout="constrained", sharex=True, squeeze=False)
    for axes, (title, frame) in zip(panels[:, 0], frames.items(), strict=True):
        lanes = {worker: lane for lane, worker in enumerate(sorted(frame["worker"].unique()))}
        for kind, color, hatch in (("other", "sky", ""), ("urgent", "vermilion", "//")):
            rows = frame[frame["kind"] == kind]
            axes.barh(
                rows["worker"].map(lanes), rows["seconds"], left=rows["started"], height=0.8, color=OKABE_ITO[color],
                edgecolor="white", linewidth=0.5, hatch=hatch, label=kind,
            )  # fmt: skip
        axes.set_yticks(list(lanes.values()), list(lanes))
        axes.set_title(f"{title}: urgent tasks wait {_wait(frame):.2f} s", fontsize="medium")
    panels[-1, 0].set(xlabel="time (s)", xlim=(0, None))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure, list(panels[:, 0])


def _frame(tasks: Sequence[Task], urgent: int) -> pd.DataFrame:
    """Return a row for each task that ran; times count from the first `add`."""
    ran = [task for task in tasks if task.started_at is not None and task.finished_at is not None]
    began = min((task.created_at for task in ran), default=0.0)
    rows = [
        {
            "worker": (task.worker or "").rpartition("/")[2],
            "kind": "urgent" if task.priority >= urgent else "other",
            "waited": max(0.0, (task.started_at or 0.0) - task.run_at),
            "started": (task.started_at or 0.0) - began,
            "seconds": (task.finished_at or 0.0) - (task.started_at or 0.0),
        }
        for task in ran
    ]
    return require_rows(pd.DataFrame(rows), "no task has run")


def _waits(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the seconds from due to started, by kind."""
    return frame.groupby("kind")["waited"].agg(["count", "median", "max"]).reset_index()


def _wait(frame: pd.DataFrame) -> float:
    """Return the median wait of the urgent tasks, in seconds."""
    return float(frame[frame["kind"] == "urgent"]["waited"].median())


def _tell(frames: Mapping[str, pd.DataFrame]) -> str:
    told = "; ".join(
        f"{title}: {len(frame)} tasks on {frame['worker'].nunique()} workers, urgent ones wait "
        f"{number(_wait(frame))} s in the median"
        for title, frame in frames.items()
    )
    return f"Gantt charts. {told}."


# --- the demonstration ------------------------------------------------------------------------------------------------


def rest(seconds: float, context: Any) -> None:
    time.sleep(seconds)


def demonstrate(pools: Mapping[str, Pool], urgent: int = 9, n: int = 24, every: float = 0.2) -> list[Task]:
    """Return the tasks of a real run: `n` long ones at once, and meanwhile a short urgent one each `every` seconds."""
    handlers = {"long": "dtq.lab.pools:rest", "short": "dtq.lab.pools:rest"}
    with tempfile.TemporaryDirectory() as folder, TaskQueue(f"{folder}/queue.db", handlers, pools=pools) as queue:
        for type, seconds in (("long", LONG), ("short", SHORT)):  # so that the queue knows how long they take
            queue.add_many({"type": type, "payload": seconds, "priority": urgent} for _ in range(4))
        queue.join(60)
        known = {task.id for task in queue.find()}
        queue.add_many({"type": "long", "payload": LONG} for _ in range(n))
        while queue.stats().counts["pending"] > 4:
            queue.add("short", SHORT, priority=urgent)
            threading.Event().wait(every)
        queue.join(60)
        return [task for task in queue.find(limit=1000) if task.id not in known]


def main(path: str) -> None:
    """Write the picture of docs/tasks.md."""
    kept = {"urgent": Pool(1, min_priority=5), "any": Pool(3)}
    runs = {
        "4 workers for everything": demonstrate({"any": Pool(4)}),
        "1 kept for priority 5 and more, 3 for everything": demonstrate(kept),
    }
    frames = {title: _frame(tasks, 5) for title, tasks in runs.items()}
    plt.rcParams["svg.hashsalt"] = "dtq"
    figure, _ = _draw(frames)
    figure.set_size_inches(8, 4.5)
    figure.savefig(path, metadata={"Date": None})
    print(_tell(frames))
