"""The routes for dead letters: tasks that failed for good."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, get, post
from litestar.params import QueryParameter

from dtq.api.problems import HTTPProblem
from dtq.api.requests import Asked, Body, Purge, Redrive, Selection
from dtq.api.responses import Reason, Redriven, Removed, TaskPage
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
from dtq.task.model import Task

REDRIVE, PURGE = Body(Redrive), Body(Purge)
FILTERS = {"queue", "type", "error", "since"}
Since = Annotated[
    float | None, QueryParameter(ge=0, le=1e11, description="Only tasks that failed after this time; UTC seconds.")
]
ErrorQuery = Annotated[
    str, QueryParameter(max_length=200, description="The type of the last error, for example Timeout.")
]


@get("/dead", opt={"needs": "read", "query": {*FILTERS, "after", "limit"}})
async def list_dead(
    request: Asked,
    queue: NameQuery = "",
    type: NameQuery = "",
    error: ErrorQuery = "",
    since: Since = None,
    after: AfterQuery = "",
    limit: LimitQuery = 100,
) -> Response[TaskPage]:
    """List the tasks that failed for good, in the order of their ids. Pages and `next` are those of GET /tasks."""
    filters = given(queue=queue, type=type, error=error, since=since)
    return await page_of(request, "dead", state_of(request).manager.dead.find, after, limit, filters)


@get("/dead/errors", opt={"needs": "read", "query": FILTERS})
async def count_errors(
    request: Asked, queue: NameQuery = "", type: NameQuery = "", error: ErrorQuery = "", since: Since = None
) -> Response[dict[str, int]]:
    """Count the failed tasks by the type of their last error, most frequent first."""
    filters = given(queue=queue, type=type, error=error, since=since)
    return respond(await state_of(request).call(state_of(request).manager.dead.errors, **filters))


@get("/dead/{task_id:str}", opt={"needs": "read"})
async def get_dead(request: Asked, task_id: NamePath) -> Response[Task]:
    """Get a failed task with all of its attempts. 404 if the task has not failed."""
    return respond(await state_of(request).call(state_of(request).manager.dead.get, name_in(task_id)))


@post("/dead/redrive", opt={"needs": "admin", "body": REDRIVE}, status_code=200)
async def redrive(request: Asked) -> Response[Redriven]:
    """Start failed tasks again, with their full number of attempts: at once, or at a rate."""
    wanted: Redrive = await REDRIVE.read(request)
    _require_choice(wanted)
    state = state_of(request)
    options = {"rate": wanted.rate, "limit": wanted.limit, **wanted.filters()}
    return respond(Redriven(await state.call(state.manager.dead.redrive, *wanted.ids, **options)))


@post("/dead/purge", opt={"needs": "admin", "body": PURGE}, status_code=200)
async def purge(request: Asked) -> Response[Removed]:
    """Remove failed tasks for good."""
    wanted: Purge = await PURGE.read(request)
    _require_choice(wanted, wanted.age > 0)
    state = state_of(request)
    removed = await state.call(state.manager.dead.purge, *wanted.ids, age=wanted.age, **wanted.filters())
    return respond(Removed(removed))


def _require_choice(wanted: Selection, is_narrowed: bool = False) -> None:
    """Raise HTTPProblem for a request without any condition: an empty body must not mean all dead letters."""
    if not (wanted.ids or wanted.filters() or wanted.all or is_narrowed):
        reason = 'select dead letters: by ids, by queue, type, error or since, or {"all": true}'
        raise HTTPProblem(422, reason, [Reason("body", reason)])


ROUTES = [list_dead, count_errors, get_dead, redrive, purge]
