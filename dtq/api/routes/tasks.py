"""The routes for tasks: add, read, wait, change. Each is a few lines over the manager.

To add routes, write them like these, with `needs=` the scope that they need, and list their module in app.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import quote

from litestar import Response, delete, get, post
from litestar.params import QueryParameter

from dtq.api.problems import HTTPProblem
from dtq.api.requests import Asked, Body, NewTask, OneOrMany, is_same, to_task
from dtq.api.responses import Accepted, Reason, TaskPage
from dtq.api.routes.common import (
    AfterQuery,
    LimitQuery,
    NamePath,
    NameQuery,
    given,
    name_in,
    page_of,
    respond,
    state_of,
)
from dtq.api.state import MAX_WAITS
from dtq.errors import IllegalTransition, InvalidTask
from dtq.queue.manager import QueueManager
from dtq.task import names
from dtq.task.model import Status, Task

IDEMPOTENCY_KEY = re.compile("[!-~]{1,200}")
MAX_WAIT = 60.0  # seconds

# --- add ------------------------------------------------------------------------------------------------------------

ONE_OR_MANY = Body(OneOrMany)


@post("/tasks", opt={"needs": "submit", "body": ONE_OR_MANY}, status_code=201)
async def add_tasks(request: Asked) -> Response[Accepted | list[Accepted]]:
    """Add one task, or an array of tasks, all of them or none.

    The response is sent when the tasks are on the disk. With an Idempotency-Key (or a `key` in the task) the request
    can be repeated: it then returns the tasks that already exist, with status 200. The same Idempotency-Key with
    another body is refused.
    """
    new: NewTask | list[NewTask] = await ONE_OR_MANY.read(request)
    many = new if isinstance(new, list) else [new]
    tasks = _tasks(many, state_of(request).manager.clock(), _idempotency_key(request))
    ids = await state_of(request).add(tasks)
    accepted = [Accepted(id, id == task.id) for id, task in zip(ids, tasks, strict=True)]
    status = 201
    if existing := {one.id: task for one, task in zip(accepted, tasks, strict=True) if not one.created}:
        await _require_same(request, existing)
        status = 201 if any(one.created for one in accepted) else 200
    if isinstance(new, list):
        return respond(accepted, status)
    return respond(accepted[0], status, Location=f"tasks/{quote(ids[0], safe='')}")


def _tasks(many: Sequence[NewTask], now: float, key: str | None) -> list[Task]:
    """Return the tasks that the body describes. Raises HTTPProblem, which names the task and its field."""
    tasks = []
    for number, new in enumerate(many):
        where = f"[{number}]." if len(many) > 1 else ""
        if key and new.key:
            raise HTTPProblem.of_field(409, f"{where}key", "give a key or the header Idempotency-Key, not both")
        try:
            names.refuse_reserved(new)
            tasks.append(to_task(new, now, f"{key}/{number}" if key else None))
        except InvalidTask as error:
            raise HTTPProblem.of_field(422, where + str(error).partition(" ")[0], str(error)) from None
    return tasks


def _idempotency_key(request: Asked) -> str | None:
    """Return the key that the header makes. It depends on the token, so that clients never see each other's tasks."""
    header = request.headers.get("idempotency-key")
    if header is None:
        return None
    if not IDEMPOTENCY_KEY.fullmatch(header):
        raise HTTPProblem.of_field(422, "Idempotency-Key", "1 to 200 printable ASCII characters without spaces")
    client = request.scope["state"].get("client", 0)
    return f"idempotency/{hashlib.sha256(f'{client}/{header}'.encode()).hexdigest()}"


async def _require_same(request: Asked, existing: dict[str, Task]) -> None:
    """Raise HTTPProblem if a repeated request describes other tasks than the first one added."""
    if "idempotency-key" not in request.headers:
        return
    state = state_of(request)
    for stored in await state.call(state.manager.store.get, list(existing)):
        if stored.key == existing[stored.id].key and not is_same(existing[stored.id], stored):
            reason = "this Idempotency-Key was used with another body; nothing was added"
            raise HTTPProblem(409, reason, [Reason("Idempotency-Key", reason)])


# --- read -----------------------------------------------------------------------------------------------------------


@get("/tasks/{task_id:str}", opt={"needs": "read"})
async def get_task(request: Asked, task_id: NamePath) -> Response[Task]:
    """Get all fields of a task: its options, status and progress, its result, error, attempts and log."""
    return respond(await state_of(request).call(state_of(request).manager.get, name_in(task_id)))


LIST = {"status", "queue", "type", "finished_after", "after", "limit"}


@get("/tasks", opt={"needs": "read", "query": LIST})
async def list_tasks(
    request: Asked,
    status: Annotated[Status | None, QueryParameter()] = None,
    queue: NameQuery = "",
    type: NameQuery = "",
    finished_after: Annotated[
        float | None, QueryParameter(ge=0, le=1e11, description="Only tasks that ended after this time; UTC seconds.")
    ] = None,
    after: AfterQuery = "",
    limit: LimitQuery = 100,
) -> Response[TaskPage]:
    """List tasks in the order of their ids, oldest first. The pages stay stable while tasks come and go.

    A page ends after `limit` tasks, or earlier when it has 1 MiB. `next` is the address of the next page, relative to
    this one; it is null on the last page.
    """
    filters = given(status=status, queue=queue, type=type, finished_after=finished_after)
    return await page_of(request, "tasks", state_of(request).manager.find, after, limit, filters)


@get("/tasks/{task_id:str}/wait", opt={"needs": "read", "query": {"timeout"}})
async def wait_for_task(
    request: Asked,
    task_id: NamePath,
    timeout: Annotated[float, QueryParameter(ge=0, le=MAX_WAIT, description="Seconds.")] = 30.0,
) -> Response[Task]:
    """Wait until the task has ended (200), or until the timeout has passed (202, with the task as it is then)."""
    state = state_of(request)
    state.require_slot("wait", MAX_WAITS)
    with state.slot("wait"):
        disconnected = asyncio.ensure_future(_disconnected(request))
        try:
            task = await state.wait_for_end(name_in(task_id), timeout, disconnected)
        finally:
            disconnected.cancel()
    return respond(task, 200 if task.is_terminal else 202)


async def _disconnected(request: Asked) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- change ---------------------------------------------------------------------------------------------------------


@delete("/tasks/{task_id:str}", opt={"needs": "admin"}, status_code=200)
async def delete_task(request: Asked, task_id: NamePath) -> Response[Task | None]:
    """Delete a task that waits or has ended (204), or cancel a task that runs (200, with the task as it is then)."""
    cancelled = await state_of(request).call(_delete_or_cancel, state_of(request).manager, name_in(task_id))
    if cancelled is None:
        return Response(None, status_code=204, media_type=None)
    return respond(cancelled)


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
    """Cancel a task that waits or runs; a running attempt is stopped. 409 if the task has already ended."""
    return respond(await state_of(request).call(state_of(request).manager.cancel, name_in(task_id)))


@post("/tasks/{task_id:str}/retry", opt={"needs": "admin"}, status_code=200)
async def retry_task(request: Asked, task_id: NamePath) -> Response[Task]:
    """Start a failed or cancelled task again, with its full number of attempts. 409 if it is neither."""
    return respond(await state_of(request).call(state_of(request).manager.retry, name_in(task_id)))


ROUTES = [add_tasks, list_tasks, get_task, wait_for_task, delete_task, cancel_task, retry_task]
