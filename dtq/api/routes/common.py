"""What the routes share: the application's state, names in paths, responses, and pages of tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from litestar import Response
from litestar.params import PathParameter, QueryParameter

from dtq.api.auth import SLASH
from dtq.api.requests import JSON, NAME, Asked
from dtq.api.responses import TaskPage, TaskSummary
from dtq.api.state import AppState
from dtq.task.model import Task

TASKS_PER_READ = 100  # brief tasks
PAGE_BYTES = 1 << 20  # of JSON, for the tasks of one page

NamePath = Annotated[str, PathParameter(max_length=200, description="Write a slash in it as %2F.")]
NameQuery = Annotated[str, QueryParameter(max_length=200, pattern=f"^({NAME[1:-1]})?$")]
AfterQuery = Annotated[str, QueryParameter(max_length=200, description="Only tasks whose id comes after this one.")]
LimitQuery = Annotated[int, QueryParameter(ge=1, le=1000, description="The largest number of tasks on a page.")]


def state_of(request: Asked) -> AppState:
    state: AppState = request.app.state.app_state
    return state


def name_in(segment: str) -> str:
    """Return the name that a segment of the path stands for."""
    return segment.replace(SLASH, "/")


def respond(value: Any, status: int = 200, **headers: str) -> Response[Any]:
    """Return a response with this value as JSON."""
    return Response(msgspec.json.encode(value), status_code=status, media_type=JSON, headers=headers)


def given(**filters: Any) -> dict[str, Any]:
    """Return the filters that the request has."""
    return {name: value for name, value in filters.items() if value not in ("", None)}


async def page_of(
    request: Asked, path: str, find: Callable[..., list[Task]], after: str, limit: int, filters: dict[str, Any]
) -> Response[TaskPage]:
    """Return a page of what `find` finds, with the address of the next page."""
    tasks, has_more = await state_of(request).call(_summaries, partial(find, **filters), after, limit)
    if not has_more:
        return respond(TaskPage(tasks, None))
    following = f"{path}?{urlencode({**filters, 'limit': limit, 'after': tasks[-1].id})}"
    return respond(TaskPage(tasks, following), Link=f'<{following}>; rel="next"')


def _summaries(find: Callable[..., list[Task]], after: str, limit: int) -> tuple[list[TaskSummary], bool]:
    """Read up to `limit` tasks, and at least one, but no more than have PAGE_BYTES as JSON. Return them, and True where
    more follow."""
    tasks: list[TaskSummary] = []
    size = 0
    while found := find(after=after, limit=min(TASKS_PER_READ, limit + 1 - len(tasks)), brief=True):
        for summary in map(TaskSummary.of, found):
            size += len(msgspec.json.encode(summary))
            if tasks and (len(tasks) == limit or size > PAGE_BYTES):
                return tasks, True
            tasks.append(summary)
        after = found[-1].id
    return tasks, False
