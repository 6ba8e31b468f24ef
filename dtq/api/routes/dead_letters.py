"""The routes for dead letters: tasks that failed for good."""

from __future__ import annotations

from starlette.responses import Response

from dtq.api.parameters import DeadQuery, ErrorsQuery
from dtq.api.problems import HTTPProblem
from dtq.api.requests import Purge, Redrive, Selection
from dtq.api.responses import Reason, Redriven, Removed
from dtq.api.routes.common import page_of
from dtq.api.routing import Request
from dtq.task.model import Task


async def list_dead(request: Request, query: DeadQuery) -> Response:
    """List the tasks that failed for good, in the order of their ids. Pages and `next` are those of GET /tasks."""
    return await page_of(request, "dead", request.manager.dead.find, query)


async def count_errors(request: Request, query: ErrorsQuery) -> dict[str, int]:
    """Count the failed tasks by the type of their last error, most frequent first."""
    return await request.call(request.manager.dead.errors, **query.filters())


async def get_dead(request: Request, task_id: str) -> Task:
    """Get a failed task with all of its attempts. 404 if the task has not failed."""
    return await request.call(request.manager.dead.get, task_id)


async def redrive(request: Request, body: Redrive) -> Redriven:
    """Start failed tasks again, with their full number of attempts: at once, or at a rate."""
    _require_choice(body)
    options = {"rate": body.rate, "limit": body.limit, **body.filters()}
    return Redriven(await request.call(request.manager.dead.redrive, *body.ids, **options))


async def purge(request: Request, body: Purge) -> Removed:
    """Remove failed tasks for good."""
    _require_choice(body, body.age > 0)
    return Removed(await request.call(request.manager.dead.purge, *body.ids, age=body.age, **body.filters()))


def _require_choice(wanted: Selection, is_narrowed: bool = False) -> None:
    """Raise HTTPProblem for a request without any condition: an empty body must not mean all dead letters."""
    if not (wanted.ids or wanted.filters() or wanted.all or is_narrowed):
        reason = 'select dead letters: by ids, by queue, type, error or since, or {"all": true}'
        raise HTTPProblem(422, reason, [Reason("body", reason)])
