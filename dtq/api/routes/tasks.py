"""The routes for tasks: add, read, wait, change. Each is a few lines over the manager.

To add a route, write a function like these, and a line in operations.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.responses import Response

from dtq.api.idempotency import IdempotencyKey
from dtq.api.parameters import AddHeaders, TaskQuery, WaitQuery
from dtq.api.problems import HTTPProblem
from dtq.api.requests import NewTask, to_task
from dtq.api.responses import Accepted
from dtq.api.routes.common import location, page_of
from dtq.api.routing import JSONResponse, Request
from dtq.api.state import MAX_WAITS
from dtq.errors import IllegalTransition, InvalidTask
from dtq.queue.manager import QueueManager
from dtq.task import names
from dtq.task.model import Status, Task, new_id

# --- add ------------------------------------------------------------------------------------------------------------


async def add_tasks(request: Request, headers: AddHeaders, body: NewTask | list[NewTask]) -> Response:
    """Add one task, or an array of tasks, all of them or none.

    The response is sent when the tasks are on the disk. With an Idempotency-Key (or a `key` in the task) the request
    can be repeated: it then returns the tasks that already exist, with status 200. The same Idempotency-Key with
    another body is refused.
    """
    many = body if isinstance(body, list) else [body]
    header = headers.idempotency_key
    once = IdempotencyKey(request.token, header, await request.body()) if header else None
    tasks = _tasks(many, request.manager.clock(), once)
    known: set[str] = set()
    if any(new.id for new in many) or (once and len(many) > 1):
        known = await request.call(_look_up, request.manager, once, list(zip(many, tasks, strict=True)))
    ids = await request.app_state.add(tasks)
    accepted = [Accepted(id, id == task.id and id not in known) for id, task in zip(ids, tasks, strict=True)]
    created = [one.id for one in accepted if one.created]
    if once and len(created) < len(accepted):
        await request.call(_look_again, request.manager, once, list(zip(many, tasks, strict=True)), created)
    if isinstance(body, list):
        return JSONResponse(accepted, 201 if created else 200)
    return JSONResponse(accepted[0], 201 if created else 200, location("tasks", ids[0]))


def _tasks(many: Sequence[NewTask], now: float, once: IdempotencyKey | None) -> list[Task]:
    """Return the tasks that the body describes. Raises HTTPProblem, which names the task and its field."""
    tasks = []
    for number, new in enumerate(many):
        where = f"[{number}]." if len(many) > 1 else ""
        if once and new.key:
            raise HTTPProblem.of_field(409, f"{where}key", "give a key or the header Idempotency-Key, not both")
        try:
            names.refuse_reserved(new)
            key, id = (once.key(number), once.new_id(now)) if once else (new.key, new_id(now))
            tasks.append(to_task(new, now, key, new.id or id))
        except InvalidTask as error:
            raise HTTPProblem.of_field(422, where + str(error).partition(" ")[0], str(error)) from None
    return tasks


def _look_up(manager: QueueManager, once: IdempotencyKey | None, wanted: Sequence[tuple[NewTask, Task]]) -> set[str]:
    """Return the ids that the client names and that exist. Raises HTTPProblem if the Idempotency-Key was used with
    another body."""
    if once:
        once.require_same_body(manager, wanted)
    named = [new.id for new, _ in wanted if new.id]
    return {task.id for task in manager.store.get(named, brief=True)} if named else set()


def _look_again(
    manager: QueueManager, once: IdempotencyKey, wanted: Sequence[tuple[NewTask, Task]], created: Sequence[str]
) -> None:
    """Raise HTTPProblem if another body was added under the same key in the meantime, and remove what was created."""
    try:
        once.require_same_body(manager, wanted)
    except HTTPProblem:
        manager.delete(*created)
        raise


# --- read -----------------------------------------------------------------------------------------------------------


async def get_task(request: Request, task_id: str) -> Task:
    """Get all fields of a task: its options, status and progress, its result, error, attempts and log."""
    return await request.call(request.manager.get, task_id)


async def list_tasks(request: Request, query: TaskQuery) -> Response:
    """List tasks in the order of their ids, oldest first. The pages stay stable while tasks come and go.

    A page ends after `limit` tasks, or earlier when it has 1 MiB. `next` is the address of the next page, relative to
    this one; it is null on the last page.
    """
    return await page_of(request, "tasks", request.manager.find, query)


async def wait_for_task(request: Request, task_id: str, query: WaitQuery) -> Response:
    """Wait until the task has ended (200), or until the timeout has passed (202, with the task as it is then)."""
    state = request.app_state
    state.require_slot("wait", MAX_WAITS)
    with state.slot("wait"):
        disconnected = asyncio.ensure_future(_disconnected(request))
        try:
            task = await state.wait_for_end(task_id, query.timeout, disconnected)
        finally:
            disconnected.cancel()
    return JSONResponse(task, 200 if task.is_terminal else 202)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- change ---------------------------------------------------------------------------------------------------------


async def delete_task(request: Request, task_id: str) -> Response | None:
    """Delete a task that waits or has ended (204), or cancel a task that runs (200, with the task as it is then)."""
    cancelled = await request.call(_delete_or_cancel, request.manager, task_id)
    return None if cancelled is None else JSONResponse(cancelled)


def _delete_or_cancel(manager: QueueManager, task_id: str) -> Task | None:
    while not manager.delete(task_id):
        if manager.get(task_id).status == Status.PROCESSING:
            try:
                return manager.cancel(task_id)
            except IllegalTransition:
                continue  # it has just ended
    return None


async def cancel_task(request: Request, task_id: str) -> Task:
    """Cancel a task that waits or runs; a running attempt is stopped. 409 if the task has already ended."""
    return await request.call(request.manager.cancel, task_id)


async def retry_task(request: Request, task_id: str) -> Task:
    """Start a failed or cancelled task again, with its full number of attempts. 409 if it is neither."""
    return await request.call(request.manager.retry, task_id)
