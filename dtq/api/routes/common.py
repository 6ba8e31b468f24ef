"""What the routes share: pages of tasks, and the address of what was added."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from urllib.parse import quote, urlencode

import msgspec

from dtq.api.parameters import DeadQuery, TaskQuery
from dtq.api.responses import TaskPage, TaskSummary
from dtq.api.routing import JSONResponse, Request
from dtq.task.model import Task

TASKS_PER_READ = 100  # brief tasks
PAGE_BYTES = 1 << 20  # of JSON, for the tasks of one page


def location(path: str, name: str) -> dict[str, str]:
    """Return the header with the address of what was added, relative to the API."""
    return {"Location": f"{path}/{quote(name, safe='')}"}


async def page_of(
    request: Request, path: str, find: Callable[..., list[Task]], query: TaskQuery | DeadQuery
) -> JSONResponse:
    """Return a page of what `find` finds, with the address of the next page."""
    filters = query.filters()
    tasks, has_more = await request.call(_summaries, partial(find, **filters), query.after, query.limit)
    if not has_more:
        return JSONResponse(TaskPage(tasks, None))
    following = f"{path}?{urlencode({**filters, 'limit': query.limit, 'after': tasks[-1].id})}"
    return JSONResponse(TaskPage(tasks, following), headers={"Link": f'<{following}>; rel="next"'})


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
