"""What `dtq demo` shows: the tour, told in a terminal.

pictures, broken files, moody tasks --> queue with worker processes --> live bars --> a table of what became of them
                                              ^ one worker is killed on the way
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dtq.events import Event
from dtq.handle import Handle
from dtq.queue import TaskQueue
from dtq.registry import Handler
from dtq.stores import Stats
from dtq.task import Task

BROKEN, MOODY = 3, 10  # files that are no pictures, tasks that fail at their first attempt
HANDLER = Path(__file__).parent.parent / "handlers" / "process_image.py"
OPERATIONS = [{"op": "filter", "name": "sharpen"}, {"op": "fit", "width": 320, "height": 320}, {"op": "grayscale"}]
TICK = 0.1  # seconds between looks
LIMIT = 600.0  # seconds that the whole may take


def moody(payload: Any, context: Any) -> int:
    if context.attempt < 2:
        raise RuntimeError("not in the mood yet")
    return int(payload["n"])


def run(tasks: int, workers: int, store: str) -> bool:
    """Tells the story; whether every task ended as it should. Raises FileNotFoundError or ModuleNotFoundError, saying
    what to do, where the pictures cannot be made or the handler is not there."""
    if not HANDLER.exists():
        raise FileNotFoundError(f'{HANDLER} is missing: run it in a checkout, installed with pip install -e ".[lab]"')
    console = Console()
    with tempfile.TemporaryDirectory(prefix="dtq-demo-") as name:
        directory = Path(name)
        console.print(f"Painting {tasks} pictures ...")
        work = _make_work(directory, tasks)
        handlers: dict[str, Handler] = {"image": HANDLER, "moody": moody}
        with TaskQueue(store or directory / "queue.db", handlers, workers) as queue:
            handles = _watch(console, queue, work)
            return _report(console, [handle.task for handle in handles], tasks)


def _make_work(directory: Path, n: int) -> list[dict[str, Any]]:
    """The tasks: n pictures, a few files that are none, and some tasks that have to be asked twice."""
    _paint(directory / "in", n)
    for number in range(BROKEN):
        (directory / "in" / f"broken-{number}.jpg").write_bytes(b"this is no picture")
    (directory / "out").mkdir()
    images = [_image_task(path, directory / "out") for path in sorted((directory / "in").iterdir())]
    return images + [{"type": "moody", "payload": {"n": n}, "retry_delay": 0.2} for n in range(MOODY)]


def _image_task(path: Path, out: Path) -> dict[str, Any]:
    payload = {"source": str(path), "target": str(out / path.name), "operations": OPERATIONS}
    return {"type": "image", "payload": payload, "max_attempts": 2, "retry_delay": 0.2}


def _paint(directory: Path, n: int) -> None:
    """n JPEG files of two colours that run into each other."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ModuleNotFoundError('the demo works on pictures and needs Pillow: pip install "dtq[lab]"') from None
    directory.mkdir()
    for number in range(n):
        corner = Image.new("RGB", (2, 2), (37 * number % 256, 91 * number % 256, 180))
        corner.putpixel((1, 1), (250, 200, 120))
        corner.resize((800, 600), Image.Resampling.BICUBIC).save(directory / f"picture-{number:06}.jpg")


def _watch(console: Console, queue: TaskQueue, work: Sequence[dict[str, Any]]) -> list[Handle]:
    """Adds the work and shows it being done, killing a worker when a third of it is; the handles of the tasks."""
    retries: Counter[str] = Counter()
    queue.on("task:retrying", lambda event: retries.update([event.task.type if event.task else ""]))
    queue.on("worker:exited", lambda event: _tell_of_death(console, event))
    columns = (
        "{task.description:<10}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[more]}"),
    )
    with Progress(*(TextColumn(c) if isinstance(c, str) else c for c in columns), console=console) as bars:
        bar = bars.add_task("tasks", total=len(work), more="")
        before = _ended(queue.stats())
        handles = queue.add_many(work)
        killed, ended, ticks = False, 0, threading.Event()
        while ended < len(work):
            ticks.wait(TICK)
            stats = queue.stats()
            ended = _ended(stats) - before
            more = f"{stats.counts['failed']} failed, {sum(retries.values())} tried again"
            bars.update(bar, completed=ended, more=more)
            if not killed and ended >= len(work) // 3:
                killed = _kill_one(console, queue)
    queue.join(LIMIT)
    return handles


def _ended(stats: Stats) -> int:
    return stats.total - stats.unfinished


def _kill_one(console: Console, queue: TaskQueue) -> bool:
    """Kills a worker that is at work; whether there was one."""
    for worker in queue.workers():
        if worker.task_id:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
            console.print(
                f"[bold]kill -9[/] {worker.pid}: worker {worker.id}, in the middle of task {worker.task_id[-8:]}"
            )
            return True
    return False


def _tell_of_death(console: Console, event: Event) -> None:
    if event.data["signal"]:
        console.print(
            f"worker {(event.worker or '').rpartition('/')[2]} died of signal {event.data['signal']}; it is replaced"
        )


def _report(console: Console, tasks: Sequence[Task], pictures: int) -> bool:
    table = Table(title="What became of them")
    for heading in ("type", "completed", "failed", "attempts"):
        table.add_column(heading, justify="left" if heading == "type" else "right")
    ended = Counter((task.type, str(task.status)) for task in tasks)
    for type in ("image", "moody"):
        attempts = sum(task.attempts for task in tasks if task.type == type)
        table.add_row(type, str(ended[type, "completed"]), str(ended[type, "failed"]), str(attempts))
    console.print(table)
    expected = {("image", "completed"): pictures, ("image", "failed"): BROKEN, ("moody", "completed"): MOODY}
    if ended != expected:
        console.print(f"[red]not as it should be: expected {expected}, got {dict(ended)}")
        return False
    console.print(f"Nothing was lost: {len(tasks)} tasks, and each ended as it should.")
    return True
