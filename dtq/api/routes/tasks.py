"""The routes that are about tasks: add, look, change, wait. Each is a few lines over the manager.

To add routes: write them as these, with `needs=` the scope that they need, and list them in app.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import msgspec
from litestar import Response, delete, get, post
from litestar.params import PathParameter, QueryParameter

from dtq.api.auth import SLASH
from dtq.api.bodies import JSON, Asked, Body
from dtq.api.problems import HTTPProblem
from dtq.api.requests import NAME, NewTask, OneOrMany, is_same, to_task
from dtq.api.responses import Accepted, Reason, TaskPage, TaskSummary
from dtq.api.state import MAX_WAITS, AppState
from dtq.errors import IllegalTransition, InvalidTask
from dtq.queue.manager import QueueManager
from dtq.task import names
from dtq.task.model import Status, Task

KEY = re.compile("[!-~]{1,200}")
READ_AT_ONCE = 100  # brief tasks
PAGE_BYTES = 1 << 20  # of JSON, for the tasks of one page
MAX_WAIT = 60.0  # seconds

NamePath = Annotated[str, PathParameter(max_length=200, description="A slash in it is written %2F.")]
NameQuery = Annotated[str, QueryParameter(max_length=200, pattern=f"^({NAME[1:-1]})?$")]


def desk_of(request: Asked) -> AppState:
    desk: AppState = request.app.state.desk
    return desk


def name_in(segment: str) -> str:
    """What a segment of the path names."""
    return segment.replace(SLASH, "/")


def answer(value: Any, status: int = 200, **headers: str) -> Response[Any]:
    return Response(msgspec.json.encode(value), status_code=status, media_type=JSON, headers=headers)


# --- add ------------------------------------------------------------------------------------------------------------


ONE_OR_MANY = Body(OneOrMany)


@post("/tasks", opt={"needs": "submit", "body": ONE_OR_MANY}, status_code=201)
async def add_tasks(request: Asked) -> Response[Accepted | list[Accepted]]:
    """Add one task, or an array of them of which all are added or none.

    Answers when they are on the disk. With an Idempotency-Key (or a `key` in the task) the request may be sent again:
    what is there already is given, with 200. The same Idempotency-Key with another body is refused.
    """
    new: NewTask | list[NewTask] = await ONE_OR_MANY.of(request)
    many = new if isinstance(new, list) else [new]
    tasks = _tasks(many, desk_of(request).manager.clock(), _idempotency(request))
    ids = await desk_of(request).add(tasks)
    accepted = [Accepted(id, id == task.id) for id, task in zip(ids, tasks, strict=True)]
    status = 201
    if taken := {one.id: task for one, task in zip(accepted, tasks, strict=True) if not one.created}:
        await _require_same(request, taken)
        status = 201 if any(one.created for one in accepted) else 200
    if isinstance(new, list):
        return answer(accepted, status)
    return answer(accepted[0], status, Location=f"tasks/{quote(ids[0], safe='')}")


def _tasks(many: Sequence[NewTask], now: float, key: str | None) -> list[Task]:
    """The tasks that these describe. Raises HTTPProblem, naming the one and its field."""
    tasks = []
    for number, new in enumerate(many):
        where = f"[{number}]." if len(many) > 1 else ""
        if key and new.key:
            reason = "give a key, or the header Idempotency-Key, not both"
            raise HTTPProblem(409, f"{where}key: {reason}", [Reason(f"{where}key", reason)])
        try:
            names.refuse_reserved(new)
            tasks.append(to_task(new, now, f"{key}/{number}" if key else None))
        except InvalidTask as error:
            raise _refuse_field(where + str(error).partition(" ")[0], str(error)) from None
    return tasks


def _refuse_field(field: str, reason: str) -> HTTPProblem:
    return HTTPProblem(422, f"{field}: {reason}", [Reason(field, reason)])


def _idempotency(request: Asked) -> str | None:
    """The key that the header makes: each token has its own, so that nobody hits upon somebody else's."""
    given = request.headers.get("idempotency-key")
    if given is None:
        return None
    if not KEY.fullmatch(given):
        raise _refuse_field("Idempotency-Key", "1 to 200 printable ASCII characters, and no space")
    client = request.scope["state"].get("client", 0)
    return f"idempotency/{hashlib.sha256(f'{client}/{given}'.encode()).hexdigest()}"


async def _require_same(request: Asked, taken: dict[str, Task]) -> None:
    """Of a request that was sent again: the tasks must be those that it added the first time."""
    if "idempotency-key" not in request.headers:
        return
    desk = desk_of(request)
    for stored in await desk.ask(desk.manager.store.get, list(taken)):
        if stored.key == taken[stored.id].key and not is_same(taken[stored.id], stored):
            reason = "this Idempotency-Key was used with another body; nothing was added"
            raise HTTPProblem(409, reason, [Reason("Idempotency-Key", reason)])


# --- look -----------------------------------------------------------------------------------------------------------


@get("/tasks/{task_id:str}", opt={"needs": "read"})
async def get_task(request: Asked, task_id: NamePath) -> Response[Task]:
    """All that is known of a task: what it is, how far it is, its result, error, attempts and log."""
    return answer(await desk_of(request).ask(desk_of(request).manager.get, name_in(task_id)))


LIST = {"status", "queue", "type", "finished_after", "after", "limit"}


@get("/tasks", opt={"needs": "read", "query": LIST})
async def list_tasks(
    request: Asked,
    status: Annotated[Status | None, QueryParameter()] = None,
    queue: NameQuery = "",
    type: NameQuery = "",
    finished_after: Annotated[
        float | None, QueryParameter(ge=0, le=1e11, description="Only what ended after this time; UTC seconds.")
    ] = None,
    after: Annotated[str, QueryParameter(max_length=200, description="Only what comes behind this id.")] = "",
    limit: Annotated[int, QueryParameter(ge=1, le=1000, description="How many tasks a page has, at most.")] = 100,
) -> Response[TaskPage]:
    """Tasks in the order of their ids, oldest first: pages that stay stable while tasks come and go.

    A page ends after `limit` tasks, or sooner, where it has 1 MiB. `next` is the address of what comes behind, relative
    to this one; null on the last page.
    """
    wanted = {"status": status, "queue": queue, "type": type, "finished_after": finished_after}
    given = {name: value for name, value in wanted.items() if value not in (None, "")}
    return await page_of(request, "tasks", desk_of(request).manager.find, after, limit, given)


async def page_of(
    request: Asked, path: str, find: Callable[..., list[Task]], after: str, limit: int, filters: dict[str, Any]
) -> Response[TaskPage]:
    """Return a page of what `find` finds, with the address of the next page."""
    tasks, has_more = await desk_of(request).ask(_summaries, partial(find, **filters), after, limit)
    if not has_more:
        return answer(TaskPage(tasks, None))
    following = f"{path}?{urlencode({**filters, 'limit': limit, 'after': tasks[-1].id})}"
    return answer(TaskPage(tasks, following), Link=f'<{following}>; rel="next"')


def _summaries(find: Callable[..., list[Task]], after: str, limit: int) -> tuple[list[TaskSummary], bool]:
    """Read up to `limit` tasks, and at least one, but no more than have PAGE_BYTES as JSON. Return them, and True where
    more follow."""
    tasks: list[TaskSummary] = []
    size = 0
    while found := find(after=after, limit=min(READ_AT_ONCE, limit + 1 - len(tasks)), brief=True):
        for summary in map(TaskSummary.of, found):
            size += len(msgspec.json.encode(summary))
            if tasks and (len(tasks) == limit or size > PAGE_BYTES):
                return tasks, True
            tasks.append(summary)
        after = found[-1].id
    return tasks, False


@get("/tasks/{task_id:str}/wait", opt={"needs": "read", "query": {"timeout"}})
async def wait_for_task(
    request: Asked,
    task_id: NamePath,
    timeout: Annotated[float, QueryParameter(ge=0, le=MAX_WAIT, description="Seconds.")] = 30.0,
) -> Response[Task]:
    """The task when it has ended: 200. Or, when the time is over, as it is by then: 202, ask again."""
    desk = desk_of(request)
    desk.require_place("wait", MAX_WAITS)
    with desk.place("wait"):
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            task = await desk.ended(name_in(task_id), timeout, gone)
        finally:
            gone.cancel()
    return answer(task, 200 if task.is_terminal else 202)


async def _disconnected(request: Asked) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- change ---------------------------------------------------------------------------------------------------------


@delete("/tasks/{task_id:str}", opt={"needs": "admin"}, status_code=200)
async def delete_task(request: Asked, task_id: NamePath) -> Response[Task | None]:
    """Remove a task that waits or has ended (204), or cancel one that runs (200, with the task as it is then)."""
    cancelled = await desk_of(request).ask(_delete_or_cancel, desk_of(request).manager, name_in(task_id))
    if cancelled is None:
        return Response(None, status_code=204, media_type=None)
    return answer(cancelled)


def _delete_or_cancel(manager: QueueManager, task_id: str) -> Task | None:
    while not manager.delete(task_id):
        if manager.get(task_id).status == Status.PROCESSING:
            try:
                return manager.cancel(task_id)
            except IllegalTransition:
                continue  # it has just ended
    return None


@post("/tasks/{task_id:str}/cancel", opt={"needs": "admin"}, status_code=200)
async def cancel_task(request: Asked, task_id: NamePath) -> Response[Task]:
    """End a task that waits or runs; of one that runs, the attempt is stopped. 409 if it has ended already."""
    return answer(await desk_of(request).ask(desk_of(request).manager.cancel, name_in(task_id)))


@post("/tasks/{task_id:str}/retry", opt={"needs": "admin"}, status_code=200)
async def retry_task(request: Asked, task_id: NamePath) -> Response[Task]:
    """Start a failed or cancelled task afresh, with all its attempts. 409 if it is neither."""
    return answer(await desk_of(request).ask(desk_of(request).manager.retry, name_in(task_id)))


ROUTES = [add_tasks, list_tasks, get_task, wait_for_task, delete_task, cancel_task, retry_task]
