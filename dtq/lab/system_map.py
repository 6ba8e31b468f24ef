"""The map of the system, with the subject of a chapter highlighted: "you are here".

     API          schedules, limits       retries         monitor
      |                   |                  |               |
     you ---tasks--->   store ---tasks--->  loop ---tasks---> workers
      |                   |                  |               |
 flows, webhooks     dead letters       waiting line    more machines

draw(chapter) --> an SVG in an <img>, which untrusted notebooks show too; the same as text; and a description
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from typing import NamedTuple

from dtq.lab.source import Page

PARTS = {  # chapter -> its subject: the label on the map, and the description
    0: ("all of it", "the whole system at once"),
    1: ("tasks", "the task, on every arrow"),
    2: ("store", "the store, where tasks live"),
    3: ("workers", "the workers, where handlers run"),
    4: ("loop", "the loop, which claims, dispatches and commits"),
    5: ("retries", "retries: what follows an attempt that failed"),
    6: ("API", "the API, through which other programs use the queue"),
    7: ("monitor", "the monitor, which watches and warns"),
    8: ("waiting line", "the waiting line, and what load does to it"),
    9: ("dead letters", "dead letters: tasks that failed permanently"),
    10: ("schedules, limits", "schedules and limits: when tasks may run"),
    11: ("flows, webhooks", "flows and webhooks: what follows a task that ended"),
    12: ("more machines", "more machines on one store"),
}
ROWS = (
    ("API", "schedules, limits", "retries", "monitor"),
    ("you", "store", "loop", "workers"),
    ("flows, webhooks", "dead letters", "waiting line", "more machines"),
)
NUMBERS = {name: number for number, (name, _) in PARTS.items()}
WIDE, HIGH = 184, 52  # of a box
LEFT, TOP, RIGHT_BY, DOWN_BY = 12, 12, 241, 92  # the position of the first box, and the distance to the next
WIDTH, HEIGHT = 2 * LEFT + 3 * RIGHT_BY + WIDE, 2 * TOP + 2 * DOWN_BY + HIGH
CELL, ARROW = 17, " -tasks-> "  # of the text
STYLE = (
    "text{font-family:system-ui,'DejaVu Sans',sans-serif;font-size:16px;text-anchor:middle;fill:#222}"
    ".box rect{fill:#fff;stroke:#767676;stroke-width:1.5}.box .number,.small{font-size:12px;fill:#555}"
    ".lit rect{fill:#0072B2;stroke:#003A5C;stroke-width:4}.lit text{fill:#fff;font-weight:bold}"
    ".lit .number{fill:#fff;font-weight:normal}"
    "line{stroke:#767676;stroke-width:2}.side{stroke-width:1.2;stroke-dasharray:2 4}.head{fill:#767676}"
)


class Box(NamedTuple):
    """A part on the map: its name, and its place by column and row."""

    name: str
    column: int
    row: int

    @property
    def x(self) -> int:
        return LEFT + self.column * RIGHT_BY

    @property
    def y(self) -> int:
        return TOP + self.row * DOWN_BY


BOXES = [Box(name, column, row) for row, names in enumerate(ROWS) for column, name in enumerate(names)]


def draw(chapter: int) -> Page:
    """Return the map as an output of a cell. Raise ValueError if there is no such chapter."""
    if chapter not in PARTS:
        raise ValueError(f"chapter is {chapter!r}; allowed: a whole number from 0 to {max(PARTS)}")
    source = base64.b64encode(_svg(chapter).encode()).decode()
    alt = html.escape(describe(chapter), quote=True)
    style = f"width:100%;max-width:{WIDTH}px;height:auto"
    picture = f'<img alt="{alt}" width="{WIDTH}" style="{style}" src="data:image/svg+xml;base64,{source}">'
    return Page(f"<figure>{picture}<figcaption>{_caption(chapter)}</figcaption></figure>", _text(chapter))


def describe(chapter: int) -> str:
    """Return a description of the map and of the highlighted part."""
    return (
        f"Map of the system. You are here: {PARTS[chapter][1]} (chapter {chapter:02}). In the middle, tasks go from "
        "you to the store, to the loop, to the workers, and back as outcomes. Above are API, schedules and limits, "
        "retries, monitor; below are flows and webhooks, dead letters, the waiting line, more machines."
    )


def _caption(chapter: int) -> str:
    return f"You are here: {PARTS[chapter][1]}."


def _is_lit(name: str, chapter: int) -> bool:
    return chapter == 0 or name == PARTS[chapter][0]


# --- picture ---------------------------------------------------------------------------------------------------------


def _svg(chapter: int) -> str:
    parts = [*_lines(), *(_arrow(column, chapter) for column in range(3)), *(_box(box, chapter) for box in BOXES)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f'<style>{STYLE}</style><rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#fff"/>{"".join(parts)}</svg>'
    )


def _lines() -> Iterator[str]:
    """Draw lines from the parts above and below to those in the middle."""
    for box in BOXES:
        if box.row < 2:
            x = box.x + WIDE // 2
            yield f'<line class="side" x1="{x}" y1="{box.y + HIGH}" x2="{x}" y2="{box.y + DOWN_BY}"/>'


def _box(box: Box, chapter: int) -> str:
    kind = "box lit" if _is_lit(box.name, chapter) else "box"
    middle, number = box.x + WIDE // 2, NUMBERS.get(box.name)
    below = "your code" if number is None else "you are here" if number == chapter else f"chapter {number:02}"
    return (
        f'<g class="{kind}"><rect x="{box.x}" y="{box.y}" width="{WIDE}" height="{HIGH}" rx="6"/>'
        f'<text x="{middle}" y="{box.y + 23}">{box.name}</text>'
        f'<text class="number" x="{middle}" y="{box.y + 41}">{below}</text></g>'
    )


def _arrow(column: int, chapter: int) -> str:
    """Draw an arrow from a middle box to the next, with the tasks on it, and one for their outcomes on the way back."""
    start, end = LEFT + column * RIGHT_BY + WIDE, LEFT + (column + 1) * RIGHT_BY
    y, middle = TOP + DOWN_BY + HIGH // 2, (start + end) // 2
    head = f"M{end - 10},{y - 5} L{end - 1},{y} L{end - 10},{y + 5} Z"
    back = f"M{start + 10},{y + 13} L{start + 1},{y + 18} L{start + 10},{y + 23} Z"
    kind = "box lit" if _is_lit("tasks", chapter) else "box"
    return (
        f'<line x1="{start}" y1="{y}" x2="{end - 8}" y2="{y}"/><path class="head" d="{head}"/>'
        f'<line x1="{start + 8}" y1="{y + 18}" x2="{end}" y2="{y + 18}"/><path class="head" d="{back}"/>'
        f'<g class="{kind}"><rect x="{middle - 22}" y="{y - 24}" width="44" height="20" rx="10"/>'
        f'<text class="number" x="{middle}" y="{y - 10}">task</text></g>'
    )


# --- text ------------------------------------------------------------------------------------------------------------


def _text(chapter: int) -> str:
    arrow = ARROW.replace("tasks", _marked("tasks", chapter))
    gaps = (" " * len(arrow), arrow, " " * len(arrow))
    lines = [
        gap.join(_marked(name, chapter).center(CELL) for name in names) for gap, names in zip(gaps, ROWS, strict=True)
    ]
    bars = (" " * len(arrow)).join("|".center(CELL) for _ in ROWS[0])
    drawn = f"\n{bars}\n".join(lines)
    return f"{_trimmed(drawn)}\n\n{_caption(chapter)}"


def _marked(name: str, chapter: int) -> str:
    return f"[{name.upper()}]" if chapter and _is_lit(name, chapter) else name


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())
