"""Draw a flow while it runs: its tasks in layers from left to right, each with a colour and a symbol for its status.

flow.tasks() --a few times a second, on a thread--> SVG in the page
                                                    (without a kernel, the first SVG)

Up to DOTS tasks are drawn one by one, with lines to their parents; in a larger flow each layer is a bar.
"""

from __future__ import annotations

import html
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from graphlib import TopologicalSorter

import ipywidgets as widgets
from IPython.display import display

from dtq.errors import DTQError
from dtq.lab.figures import OKABE_ITO
from dtq.queue.flow import Flow
from dtq.task.model import Status, Task

TICK = 0.2  # seconds between two drawings, at least
DOTS = 150  # tasks that are drawn one by one
STEP_X, STEP_Y, RADIUS, MARGIN = 90, 30, 10, 24  # units of the drawing
BAR = 160  # the length of the longest bar
LOOKS = {  # status -> colour, and a symbol for readers who cannot tell the colours apart
    Status.BLOCKED: ("#FFFFFF", ""),
    Status.PENDING: (OKABE_ITO["sky"], ""),
    Status.PROCESSING: (OKABE_ITO["blue"], "…"),
    Status.RETRYING: (OKABE_ITO["orange"], "↻"),
    Status.COMPLETED: (OKABE_ITO["green"], "✓"),
    Status.FAILED: (OKABE_ITO["vermilion"], "✕"),
    Status.CANCELLED: (OKABE_ITO["grey"], "-"),
}

Place = tuple[float, float]


class Drawing:
    """The drawing of one flow. `widget` is the output in the page, `svg` its present content."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        tasks = flow.tasks(brief=True)
        self._layers = layers({task.id: task.after for task in tasks})
        self.svg = self._draw(tasks)
        self.widget = widgets.HTML(self.svg)
        self._over = threading.Event()
        self._error: DTQError | None = None
        self._thread = threading.Thread(target=self._run, name="dtq-flow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait(self, timeout: float = 60.0) -> None:
        """Return when all tasks have ended and the drawing shows it. Raise TimeoutError with the tasks left after
        `timeout` seconds, or the error if the store can no longer be read."""
        if not self._over.wait(timeout):
            raise TimeoutError(f"{_tell(self._flow.tasks(brief=True), len(self._layers))} after {timeout} s")
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while True:
                began = time.monotonic()
                tasks = self._flow.tasks(brief=True)
                self.svg = self.widget.value = self._draw(tasks)
                if all(task.is_terminal for task in tasks):
                    break
                time.sleep(max(TICK, 4 * (time.monotonic() - began)))  # a large flow takes a fifth of a core at most
        except DTQError as error:  # for example closed: the drawing stays as it is, and `wait` raises the error
            self._error = error
        self._over.set()

    def _draw(self, tasks: Sequence[Task]) -> str:
        draw = _dots if len(tasks) <= DOTS else _bars
        alt = _tell(tasks, len(self._layers))
        by_id = {task.id: task for task in tasks}
        width, height, shapes = draw(self._layers, by_id, self._flow)
        picture = (
            f'<svg role="img" aria-label="{html.escape(alt, quote=True)}" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" style="max-width:100%" xmlns="http://www.w3.org/2000/svg">'
            f"<title>{html.escape(alt)}</title>{''.join(shapes)}</svg>"
        )
        return f"<figure>{picture}<figcaption>{_legend(tasks)}</figcaption>{_table(self._layers, by_id)}</figure>"


def flow(flow: Flow) -> Drawing:
    """Show the flow and return at once. Call `wait` on the result to wait for the tasks."""
    drawing = Drawing(flow)
    bundle = {**drawing.widget._repr_mimebundle_(), "text/html": drawing.svg, "text/plain": repr(flow)}
    display(bundle, raw=True)
    drawing.start()
    return drawing


def layers(parents: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the tasks in layers, by the length of the longest path that leads to them. Parents outside the flow do not
    count."""
    inside = {task_id: [parent for parent in after if parent in parents] for task_id, after in parents.items()}
    depth: dict[str, int] = {}
    for task_id in TopologicalSorter(inside).static_order():
        depth[task_id] = 1 + max((depth[parent] for parent in inside[task_id]), default=-1)
    found: list[list[str]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for task_id in parents:
        found[depth[task_id]].append(task_id)
    return found


# --- shapes ----------------------------------------------------------------------------------------------------------

Drawn = tuple[float, float, list[str]]  # width, height, shapes


def _dots(layers: Sequence[Sequence[str]], tasks: Mapping[str, Task], flow: Flow) -> Drawn:
    highest = max(map(len, layers))
    places: dict[str, Place] = {}
    for column, layer in enumerate(layers):
        top = MARGIN + (highest - len(layer)) * STEP_Y / 2
        for row, task_id in enumerate(layer):
            places[task_id] = MARGIN + column * STEP_X, top + row * STEP_Y
    drawn = [task for task in tasks.values() if task.id in places]
    lines = [_line(places[parent], places[t.id]) for t in drawn for parent in t.after if parent in places]
    dots = [_dot(places[task.id], task, flow.name(task.id)) for task in drawn]
    return MARGIN * 2 + (len(layers) - 1) * STEP_X, MARGIN * 2 + (highest - 1) * STEP_Y, lines + dots


def _line(a: Place, b: Place) -> str:
    middle = (a[0] + b[0]) / 2
    return (
        f'<path d="M{a[0]:g} {a[1]:g} C{middle:g} {a[1]:g} {middle:g} {b[1]:g} {b[0]:g} {b[1]:g}" '
        'fill="none" stroke="#999999" stroke-width="1"/>'
    )


def _dot(place: Place, task: Task, name: str) -> str:
    x, y = place
    color, sign = LOOKS[task.status]
    title = html.escape(f"{name} ({task.type}): {task.status}")
    return (
        f'<g><title>{title}</title><circle cx="{x:g}" cy="{y:g}" r="{RADIUS}" fill="{color}" stroke="#333333"/>'
        f'<text x="{x:g}" y="{y + 4:g}" text-anchor="middle" font-size="12" fill="#FFFFFF">{sign}</text></g>'
    )


def _bars(layers: Sequence[Sequence[str]], tasks: Mapping[str, Task], flow: Flow) -> Drawn:
    """Draw a bar for each layer, as long as its number of tasks, divided by status. If there are many layers,
    neighbours share a bar."""
    share = -(-len(layers) // DOTS)
    rows = [[id for layer in layers[at : at + share] for id in layer] for at in range(0, len(layers), share)]
    most, shapes = max(map(len, rows)), []
    for number, row in enumerate(rows):
        x = float(MARGIN)
        for status, n in _counted(row, tasks):
            width = BAR * 3 * n / most
            shapes.append(
                f'<rect x="{x:g}" y="{MARGIN + number * 12}" width="{width:g}" height="10" stroke="#333333" '
                f'stroke-width="0.3" fill="{LOOKS[status][0]}"><title>{n:,} {status}</title></rect>'
            )
            x += width
    return MARGIN * 2 + BAR * 3, MARGIN * 2 + len(rows) * 12, shapes


def _counted(ids: Iterable[str], tasks: Mapping[str, Task]) -> list[tuple[Status, int]]:
    """Return the number of tasks by status; those that have ended come first."""
    counts = Counter(tasks[task_id].status for task_id in ids if task_id in tasks)
    return [(status, counts[status]) for status in reversed(Status) if counts[status]]


# --- words -----------------------------------------------------------------------------------------------------------


def _tell(tasks: Sequence[Task], layers: int) -> str:
    counts = Counter(task.status for task in tasks)
    told = ", ".join(f"{counts[status]:,} {status}" for status in Status if counts[status])
    return f"A flow of {len(tasks):,} tasks in {layers:,} layers: {told}."


def _legend(tasks: Sequence[Task]) -> str:
    counts = Counter(task.status for task in tasks)
    return " &nbsp; ".join(
        f'<span style="background:{color};border:1px solid #333;padding:0 .5em;color:#fff">{sign or "&nbsp;"}</span> '
        f"{counts[status]:,} {status}"
        for status, (color, sign) in LOOKS.items()
    )


def _table(layers: Sequence[Sequence[str]], tasks: Mapping[str, Task]) -> str:
    """Return a table with the counts of the first 25 layers."""
    rows = "".join(
        f"<tr><td>{number}</td><td>{len(layer):,}</td>"
        f"<td>{', '.join(f'{n:,} {status}' for status, n in _counted(layer, tasks))}</td></tr>"
        for number, layer in enumerate(layers[:25], start=1)
    )
    head = "<tr><th>layer</th><th>tasks</th><th>status</th></tr>"
    return f"<details><summary>The data as a table</summary><table>{head}{rows}</table></details>"
