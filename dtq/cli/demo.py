r"""What `dtq demo` shows: the tour, told in a terminal.

    pictures, corrupt files, flaky tasks --> TaskQueue --> bar, worker lines, messages --> table of what became of them
            \                                ^   ^
             `--api--POST /tasks--> APIServer    one busy worker is killed on the way

Its tasks are in a queue of their own, which only its workers serve, so that `--store` may name a store that is in use.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dtq.errors import DTQError, HandlerError
from dtq.queue.events import Event
from dtq.queue.task_queue import TaskQueue
from dtq.stores.open import open_store
from dtq.stores.protocol import Store
from dtq.task.model import WAITING, Task
from dtq.workers.backend import WorkerInfo
from dtq.workers.groups import Pool
from dtq.workers.registry import Handler

PICTURE, CORRUPT, FLAKY = "demo-picture", "demo-corrupt", "demo-flaky"  # the types
CORRUPTS, FLAKIES = 3, 10  # how many tasks there are of them
PAINTED = 100  # different pictures, at most: of more tasks, several work on the same one
HANDLER = Path(__file__).parents[2] / "handlers" / "process_image.py"
OPERATIONS = [{"op": "filter", "name": "sharpen"}, {"op": "fit", "width": 160, "height": 160}, {"op": "grayscale"}]
TICK, LINE = 0.05, 1.0  # seconds between looks, and between lines where no bar can move
STALL = 60.0  # seconds without an ending, after which the demo gives up
BATCH = 500  # tasks in a request
SHOWN = 16  # workers, at most, that have a line each


def flaky(payload: Any, context: Any) -> int:
    """A service that is out of order when it is asked for the first time."""
    time.sleep(0.1)
    if context.attempt == 1:
        raise ConnectionError("the service is out of order")
    return int(payload)


def run(tasks: int, workers: int, store: str, api_port: int | None = None) -> bool:
    """Tells the story, with the tasks added over HTTP where there is a port; whether every task ended as it should.
    Raises DTQError, saying what to do, where it cannot."""
    if not HANDLER.is_file():
        raise HandlerError(f'there is no {HANDLER}: run the demo from a checkout, after pip install -e ".[lab]"')
    console, lane = Console(), f"demo-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="dtq-demo-") as directory:
        home = Path(directory)
        with _opened(store or home / "queue.db", lane) as opened:
            console.print(f"{tasks} pictures, {CORRUPTS} corrupt files, {FLAKIES} flaky tasks; {workers} workers")
            work = _make_work(home, tasks)
            queue = _make_queue(opened, workers, lane)
            show = Show(console, queue, lane, len(work))
            with _files_below(home), queue, _counter(queue, api_port, console) as add:
                add([{**task, "queue": lane} for task in work])
                show.watch()
            return _report(console, opened, lane, _expected(tasks), show.complaints() + _missing(home / "out", tasks))


@contextmanager
def _opened(where: str | Path, lane: str) -> Iterator[Store]:
    """The store. What an interrupted demo leaves there would wait for ever, for its pictures are gone: it goes too."""
    with closing(open_store(where)) as store:
        try:
            yield store
        finally:
            for status in WAITING:
                store.delete([task.id for task in _tasks(store, lane, status)])


@contextmanager
def _files_below(home: Path) -> Iterator[None]:
    """Allow the workers that start within to touch the files of the demo, and no others."""
    before = os.environ.get("DTQ_FILES")
    os.environ["DTQ_FILES"] = str(home)
    try:
        yield
    finally:
        del os.environ["DTQ_FILES"]
        os.environ.update({} if before is None else {"DTQ_FILES": before})


def _tasks(store: Store, lane: str, status: str | None = None) -> Iterator[Task]:
    last = ""
    while page := store.find(queue=lane, status=status, after=last, limit=1000, brief=True):
        yield from page
        last = page[-1].id


def _make_queue(store: Store, workers: int, lane: str) -> TaskQueue:
    handlers: dict[str, Handler] = {PICTURE: HANDLER, CORRUPT: HANDLER, FLAKY: flaky}
    return TaskQueue(store, handlers, pools={"w": Pool(workers, queues=(lane,))}, auto_cleanup=False)


# --- how it comes in

Tasks = list[dict[str, Any]]


@contextmanager
def _counter(queue: TaskQueue, port: int | None, console: Console) -> Iterator[Callable[[Tasks], object]]:
    """Where tasks are handed in: at the queue itself, or over HTTP, as a program in any language would."""
    if port is None:
        yield queue.add_many
        return
    from dtq.api.server import APIServer

    with APIServer(queue, port=port) as api:
        console.print(f"{api.url} shows the queue while it works", soft_wrap=True)
        yield partial(_post, f"{api.url}tasks")


def _post(url: str, tasks: Tasks) -> None:
    for start in range(0, len(tasks), BATCH):
        body = json.dumps(tasks[start : start + BATCH]).encode()
        with urlopen(Request(url, body, {"Content-Type": "application/json"})) as answer:
            json.load(answer)


# --- the work


def _make_work(home: Path, n: int) -> list[dict[str, Any]]:
    """What to add: n pictures; before them some files that are none, and tasks that have to be tried twice.

    The retries of the flaky ones are spread over a second, so that even one picture leaves time to kill a worker.
    """
    sources = _paint(home / "in", min(n, PAINTED))
    corrupt = home / "in" / "corrupt.jpg"
    corrupt.write_bytes(sources[0].read_bytes()[:400])
    out = home / "out"
    out.mkdir()
    bad = [_image_task(CORRUPT, corrupt, home / f"corrupt-{k}.jpg") | {"max_attempts": 2} for k in range(CORRUPTS)]
    moody = [{"type": FLAKY, "payload": k, "retry_delay": 0.3 + 0.1 * k} for k in range(FLAKIES)]
    good = [_image_task(PICTURE, sources[k % len(sources)], out / f"{k:06}.jpg") for k in range(n)]
    return [*({**task, "priority": 1} for task in bad + moody), *good]


def _image_task(type: str, source: Path, target: Path) -> dict[str, Any]:
    payload = {"source": str(source), "target": str(target), "operations": OPERATIONS}
    return {"type": type, "payload": payload, "retry_delay": 0.3}


def _paint(directory: Path, n: int) -> list[Path]:
    """n JPEG files, each of two colours that run into each other."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise DTQError('the demo works on pictures and needs Pillow: pip install "dtq[lab]"') from None
    directory.mkdir()
    paths = [directory / f"picture-{k:02}.jpg" for k in range(n)]
    for k, path in enumerate(paths):
        corners = Image.new("RGB", (2, 2), (37 * k % 256, 91 * k % 256, 180))
        corners.putpixel((1, 1), (250, 200, 120))
        corners.resize((960, 640), Image.Resampling.BICUBIC).save(path)
    return paths


# --- what is seen while it is done


class Counts(NamedTuple):
    """How far the demo's own tasks are."""

    done: int
    failed: int
    retrying: int

    def __str__(self) -> str:
        return f"{self.done} done, {self.failed} failed, {self.retrying} retrying"


class Show:
    """Shows the work being done, tells what happens to workers and tasks, and kills a worker when a third is done."""

    def __init__(self, console: Console, queue: TaskQueue, lane: str, total: int) -> None:
        self._console = console
        self._queue = queue
        self._lane = lane
        self._total = total
        self._began = time.monotonic()
        self._killed = ""  # the worker that was
        self._died = self._replaced = False
        queue.on("worker:exited", self._tell_of_exit)
        queue.on("worker:started", self._tell_of_start)
        queue.on("task:retrying", self._tell_of_retry)
        queue.on("task:failed", self._tell_of_failure)

    def watch(self) -> None:
        """Returns when all tasks have ended, or when none has for STALL seconds."""
        self._began = time.monotonic()
        if not self._console.is_terminal:
            self._follow(LINE, lambda counts: self._say(f"{counts}, {self._rate(counts):.0f} tasks/s"))
        else:
            with Live(console=self._console, auto_refresh=False) as live:
                self._follow(TICK, lambda counts: live.update(self._frame(counts), refresh=True))

    def complaints(self) -> list[str]:
        """What did not happen to the workers; to be asked when the queue has shut down, and all events were heard."""
        return [] if self._replaced else ["no busy worker was killed and replaced"]

    def _follow(self, every: float, draw: Callable[[Counts], None]) -> None:
        counts = self._counts()
        changed_at = drawn_at = time.monotonic()
        while counts.done + counts.failed < self._total and (now := time.monotonic()) < changed_at + STALL:
            if now >= drawn_at + every:
                drawn_at = now
                draw(counts)
            if not self._killed and 3 * counts.done >= self._total:
                self._kill_one()
            time.sleep(TICK)
            before, counts = counts, self._counts()
            changed_at = changed_at if counts == before else time.monotonic()
        draw(counts)

    def _counts(self) -> Counts:
        counts = self._queue.stats().queues.get(self._lane, {})
        return Counts(*(counts.get(status, 0) for status in ("completed", "failed", "retrying")))

    def _rate(self, counts: Counts) -> float:
        return (counts.done + counts.failed) / (time.monotonic() - self._began)

    def _frame(self, counts: Counts) -> Table:
        ended = counts.done + counts.failed
        frame = Table.grid()
        frame.add_row(Text(f"{ended} of {self._total} ended: {counts}; {self._rate(counts):.0f} tasks/s"))
        frame.add_row(ProgressBar(self._total, ended, width=60))
        frame.add_row(self._lines())
        return frame

    def _lines(self) -> Table:
        """A line for each worker. `done` counts the calls that it has answered, whatever the answer."""
        lines = Table.grid(padding=(0, 2))
        workers = self._queue.workers()
        for worker in workers[:SHOWN]:
            lines.add_row(worker.id, str(worker.pid), f"{worker.done} done", self._doing(worker))
        if len(workers) > SHOWN:
            lines.add_row("...", "", "", f"and {len(workers) - SHOWN} more")
        return lines

    def _doing(self, worker: WorkerInfo) -> Text:
        if worker.task_id is None:
            return Text(worker.state, style="dim")
        task = self._queue.get(worker.task_id)
        return Text(f"{task.type}  {task.note}", no_wrap=True, overflow="ellipsis")

    def _kill_one(self) -> None:
        for worker in self._queue.workers():
            if worker.task_id:
                self._killed = worker.id
                self._say(f"kill -9 {worker.pid}: worker {worker.id}, in the middle of a task", "bold")
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
                return

    # --- events; on the thread of the listeners

    def _tell_of_exit(self, event: Event) -> None:
        if event.data["signal"]:
            self._died = True
            self._say(f"worker {_short(event.worker)} died of signal {event.data['signal']}", "yellow")

    def _tell_of_start(self, event: Event) -> None:
        if self._died and not self._replaced:
            self._replaced = True
            self._say(f"worker {_short(event.worker)} is back, as process {event.data['pid']}", "green")

    def _tell_of_retry(self, event: Event) -> None:
        if event.task and event.task.error and event.task.error.signal:
            self._say(f"its task, a {event.task.type}, is tried again in {event.task.retry_delay:g} s", "green")

    def _tell_of_failure(self, event: Event) -> None:
        if event.task:
            self._say(f"{event.task.type} failed for good after {event.task.attempts} attempts", "yellow")

    def _say(self, line: str, style: str = "") -> None:
        self._console.print(Text(line, style), soft_wrap=True)


def _short(worker: str | None) -> str:
    """w2 of host-1234-ab12/w2."""
    return (worker or "").rpartition("/")[2]


# --- what became of it

Ends = Counter[tuple[str, str]]  # (type, status) -> tasks


def _expected(pictures: int) -> Ends:
    return Counter({(CORRUPT, "failed"): CORRUPTS, (FLAKY, "completed"): FLAKIES, (PICTURE, "completed"): pictures})


def _missing(out: Path, pictures: int) -> list[str]:
    """The disk is a witness outside the queue."""
    written = sum(1 for _ in out.glob("*.jpg"))
    return [] if written == pictures else [f"{written} small pictures were written, expected {pictures}"]


def _report(console: Console, store: Store, lane: str, expected: Ends, complaints: list[str]) -> bool:
    """Prints the table, and what differs from what was expected; whether nothing does."""
    ends, attempts = Ends(), Counter[str]()
    for task in _tasks(store, lane):
        ends[task.type, task.status.value] += 1
        attempts[task.type] += task.attempts
    console.print(_table(ends, attempts))
    differences = complaints + [
        f"{type}: {ends[type, status]} {status}, expected {expected[type, status]}"
        for type, status in sorted(ends | expected)
        if ends[type, status] != expected[type, status]
    ]
    for line in differences:
        console.print(Text(line, "red"), soft_wrap=True)
    if not differences:
        console.print(f"Nothing was lost: {ends.total()} tasks were added, and each has ended as it should.")
    return not differences


def _table(ends: Ends, attempts: Counter[str]) -> Table:
    table = Table("type")
    for heading in ("completed", "failed", "attempts"):
        table.add_column(heading, justify="right")
    for type in (PICTURE, CORRUPT, FLAKY):
        table.add_row(type, str(ends[type, "completed"]), str(ends[type, "failed"]), str(attempts[type]))
    return table
