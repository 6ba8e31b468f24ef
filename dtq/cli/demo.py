r"""`dtq demo`: the tour of the workbook in a terminal.

    pictures, corrupt files, flaky tasks --> TaskQueue --> progress, worker lines, messages --> a table of the outcomes
            \                                ^   ^
             `--api--POST /tasks--> APIServer    one busy worker is killed on the way

The tasks are in a queue of their own, which only the demo's workers serve, so `--store` may name a store in use.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dtq.cli.common import counted
from dtq.cli.demo_display import DemoDisplay
from dtq.errors import DTQError, HandlerError
from dtq.queue.task_queue import TaskQueue
from dtq.stores.open import open_store
from dtq.stores.protocol import Store
from dtq.task.model import WAITING, Task
from dtq.workers.groups import Pool
from dtq.workers.handler_registry import Handler

PICTURE, CORRUPT, FLAKY = "demo-picture", "demo-corrupt", "demo-flaky"  # the types
CORRUPTS, FLAKIES = 3, 10  # how many tasks there are of them
PAINTED = 100  # different pictures, at most; with more tasks, several use the same picture
HANDLER = Path(__file__).parents[2] / "handlers" / "process_image.py"
OPERATIONS = [{"op": "filter", "name": "sharpen"}, {"op": "fit", "width": 160, "height": 160}, {"op": "grayscale"}]
BATCH = 500  # tasks in a request


def flaky(payload: Any, context: Any) -> int:
    """Stand in for a service that fails when it is called for the first time."""
    time.sleep(0.1)
    if context.attempt == 1:
        raise ConnectionError("the service is out of order")
    return int(payload)


def run(tasks: int, workers: int, store: str, api_port: int | None = None) -> bool:
    """Run the demo; with a port, add the tasks over HTTP. Return True if every task ended as expected.

    Raises DTQError, with what to do, if the demo cannot run.
    """
    if not HANDLER.is_file():
        raise HandlerError(f'there is no {HANDLER}: run the demo from a checkout, after pip install -e ".[lab]"')
    console, queue_name = Console(), f"demo-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="dtq-demo-") as directory:
        home = Path(directory)
        with _opened(store or home / "queue.db", queue_name) as opened:
            console.print(
                f"{counted(tasks, 'picture')}, {CORRUPTS} corrupt files, {FLAKIES} flaky tasks; "
                f"{counted(workers, 'worker')}"
            )
            work = _make_work(home, tasks)
            queue = _make_queue(opened, workers, queue_name)
            show = DemoDisplay(console, queue, queue_name, len(work))
            with _files_below(home), queue, _adder(queue, api_port, console) as add:
                add([{**task, "queue": queue_name} for task in work])
                show.watch()
            complaints = show.complaints() + _missing(home / "out", tasks)
            return _report(console, opened, queue_name, _expected(tasks), complaints)


@contextmanager
def _opened(where: str | Path, queue_name: str) -> Iterator[Store]:
    """Open the store. At the end, remove tasks that an interrupted demo left: their pictures are gone."""
    with closing(open_store(where)) as store:
        try:
            yield store
        finally:
            for status in WAITING:
                store.delete([task.id for task in _tasks(store, queue_name, status)])


@contextmanager
def _files_below(home: Path) -> Iterator[None]:
    """Let workers that start within touch the files of the demo, and no others."""
    before = os.environ.get("DTQ_FILES")
    os.environ["DTQ_FILES"] = str(home)
    try:
        yield
    finally:
        del os.environ["DTQ_FILES"]
        os.environ.update({} if before is None else {"DTQ_FILES": before})


def _tasks(store: Store, queue_name: str, status: str | None = None) -> Iterator[Task]:
    last = ""
    while page := store.find(queue=queue_name, status=status, after=last, limit=1000, brief=True):
        yield from page
        last = page[-1].id


def _make_queue(store: Store, workers: int, queue_name: str) -> TaskQueue:
    handlers: dict[str, Handler] = {PICTURE: HANDLER, CORRUPT: HANDLER, FLAKY: flaky}
    return TaskQueue(store, handlers, pools={"w": Pool(workers, queues=(queue_name,))}, auto_cleanup=False)


# --- adding the tasks

Tasks = list[dict[str, Any]]


@contextmanager
def _adder(queue: TaskQueue, port: int | None, console: Console) -> Iterator[Callable[[Tasks], object]]:
    """Yield a function that adds tasks: to the queue directly or, with a port, over HTTP."""
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


# --- making the tasks


def _make_work(home: Path, n: int) -> list[dict[str, Any]]:
    """Return the tasks to add: n pictures, and before them some corrupt files, and tasks whose first attempt fails.

    The retries of the flaky tasks are spread over a second, so that even a demo of one picture has time to kill a
    worker.
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
    """Write n JPEG files, each a gradient between two colours."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise DTQError('the demo processes pictures and needs Pillow: pip install "dtq[lab]"') from None
    directory.mkdir()
    paths = [directory / f"picture-{k:02}.jpg" for k in range(n)]
    for k, path in enumerate(paths):
        corners = Image.new("RGB", (2, 2), (37 * k % 256, 91 * k % 256, 180))
        corners.putpixel((1, 1), (250, 200, 120))
        corners.resize((960, 640), Image.Resampling.BICUBIC).save(path)
    return paths


# --- the outcomes

Ends = Counter[tuple[str, str]]  # (type, status) -> tasks


def _expected(pictures: int) -> Ends:
    return Counter({(CORRUPT, "failed"): CORRUPTS, (FLAKY, "completed"): FLAKIES, (PICTURE, "completed"): pictures})


def _missing(out: Path, pictures: int) -> list[str]:
    """Compare the files on disk with the number of pictures: they do not depend on the queue."""
    written = sum(1 for _ in out.glob("*.jpg"))
    return [] if written == pictures else [f"{written} small pictures were written, expected {pictures}"]


def _report(console: Console, store: Store, queue_name: str, expected: Ends, complaints: list[str]) -> bool:
    """Print the table, and what differs from what was expected. Return True if nothing does."""
    ends, attempts = Ends(), Counter[str]()
    for task in _tasks(store, queue_name):
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
        console.print(f"Nothing was lost: {ends.total()} tasks were added, and each ended as expected.")
    return not differences


def _table(ends: Ends, attempts: Counter[str]) -> Table:
    table = Table("type")
    for heading in ("completed", "failed", "attempts"):
        table.add_column(heading, justify="right")
    for type in (PICTURE, CORRUPT, FLAKY):
        table.add_row(type, str(ends[type, "completed"]), str(ends[type, "failed"]), str(attempts[type]))
    return table
