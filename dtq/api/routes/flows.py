"""The routes that are about many tasks at once: flows, and the dead letters."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from litestar import Response, get, post
from litestar.params import QueryParameter

from dtq.api.bodies import Asked, Body
from dtq.api.problems import HTTPProblem
from dtq.api.requests import NewFlow, Purge, Redrive, Selection
from dtq.api.responses import Reason, Redriven, Removed, TaskPage
from dtq.api.routes.tasks import NamePath, NameQuery, answer, desk_of, name_in, page_of
from dtq.queue.flow import Flow, FlowState
from dtq.queue.manager import QueueManager
from dtq.task.model import Task

# --- flows ----------------------------------------------------------------------------------------------------------

FLOW = Body(NewFlow)


@post("/flows", opt={"needs": "submit", "body": FLOW}, status_code=201)
async def add_flow(request: Asked) -> Response[FlowState]:
    """Add a graph of tasks, of which all are added or none; a flow that is there already is given as it is.

    The id of a task is that of the flow, a dot, and its name. 409 where `after` names what is not there, or goes in a
    circle.
    """
    new: NewFlow = await FLOW.of(request)
    state = await desk_of(request).ask(_add_flow, desk_of(request).manager, new)
    return answer(state, 201, Location=f"flows/{quote(state.id, safe='')}")


def _add_flow(manager: QueueManager, new: NewFlow) -> FlowState:
    return manager.flow({name: step.options() for name, step in new.steps.items()}, new.id).state()


@get("/flows/{flow_id:str}", opt={"needs": "read"})
async def get_flow(request: Asked, flow_id: NamePath) -> Response[FlowState]:
    """How far a flow is, and each of its tasks."""
    return answer(await desk_of(request).ask(_flow, desk_of(request).manager, name_in(flow_id)))


@post("/flows/{flow_id:str}/cancel", opt={"needs": "admin"}, status_code=200)
async def cancel_flow(request: Asked, flow_id: NamePath) -> Response[FlowState]:
    """End all of a flow that has not ended; of what runs, the attempt is stopped."""
    return answer(await desk_of(request).ask(_flow, desk_of(request).manager, name_in(flow_id), Flow.cancel))


@post("/flows/{flow_id:str}/retry", opt={"needs": "admin"}, status_code=200)
async def retry_flow(request: Asked, flow_id: NamePath) -> Response[FlowState]:
    """Start afresh what failed or was cancelled in a flow; each task waits for its parents again."""
    return answer(await desk_of(request).ask(_flow, desk_of(request).manager, name_in(flow_id), Flow.retry))


def _flow(manager: QueueManager, flow_id: str, change: Any = None) -> FlowState:
    flow = manager.get_flow(flow_id)
    if change is not None:
        change(flow)
    return flow.state()


# --- dead letters ---------------------------------------------------------------------------------------------------

REDRIVE, PURGE = Body(Redrive), Body(Purge)
FILTERS = {"queue", "type", "error", "since"}
Since = Annotated[float | None, QueryParameter(ge=0, le=1e11, description="Only what failed later; UTC seconds.")]
ErrorQuery = Annotated[str, QueryParameter(max_length=200, description="The type of the last error, as in Timeout.")]


@get("/dead", opt={"needs": "read", "query": {*FILTERS, "after", "limit"}})
async def list_dead(
    request: Asked,
    queue: NameQuery = "",
    type: NameQuery = "",
    error: ErrorQuery = "",
    since: Since = None,
    after: Annotated[str, QueryParameter(max_length=200, description="Only what comes behind this id.")] = "",
    limit: Annotated[int, QueryParameter(ge=1, le=1000, description="How many a page has, at most.")] = 100,
) -> Response[TaskPage]:
    """What has failed for good, in the order of ids; `next` as in the list of tasks."""
    filters = _given(queue=queue, type=type, error=error, since=since)
    return await page_of(request, "dead", desk_of(request).manager.dead.find, after, limit, filters)


@get("/dead/errors", opt={"needs": "read", "query": FILTERS})
async def count_errors(
    request: Asked, queue: NameQuery = "", type: NameQuery = "", error: ErrorQuery = "", since: Since = None
) -> Response[dict[str, int]]:
    """How many have failed by each type of error, most first."""
    filters = _given(queue=queue, type=type, error=error, since=since)
    return answer(await desk_of(request).ask(desk_of(request).manager.dead.errors, **filters))


@get("/dead/{task_id:str}", opt={"needs": "read"})
async def get_dead(request: Asked, task_id: NamePath) -> Response[Task]:
    """One of them, with all of its attempts; 404 for a task that has not failed."""
    return answer(await desk_of(request).ask(desk_of(request).manager.dead.get, name_in(task_id)))


@post("/dead/redrive", opt={"needs": "admin", "body": REDRIVE}, status_code=200)
async def redrive(request: Asked) -> Response[Redriven]:
    """Start failed tasks afresh, with all their attempts: at once, or so many a second."""
    wanted: Redrive = await REDRIVE.of(request)
    _require_choice(wanted)
    more = {"rate": wanted.rate, "limit": wanted.limit}
    redriven = await desk_of(request).ask(
        desk_of(request).manager.dead.redrive, *wanted.ids, **wanted.filters(), **more
    )
    return answer(Redriven(redriven))


@post("/dead/purge", opt={"needs": "admin", "body": PURGE}, status_code=200)
async def purge(request: Asked) -> Response[Removed]:
    """Remove failed tasks for good."""
    wanted: Purge = await PURGE.of(request)
    _require_choice(wanted, wanted.age > 0)
    return answer(
        Removed(
            await desk_of(request).ask(
                desk_of(request).manager.dead.purge, *wanted.ids, age=wanted.age, **wanted.filters()
            )
        )
    )


def _require_choice(wanted: Selection, is_narrowed: bool = False) -> None:
    """Nobody means all of them by saying nothing."""
    if not (wanted.ids or wanted.filters() or wanted.all or is_narrowed):
        reason = 'say which: by ids, by queue, type, error or since, or {"all": true}'
        raise HTTPProblem(422, reason, [Reason("body", reason)])


def _given(**filters: Any) -> dict[str, Any]:
    return {name: value for name, value in filters.items() if value not in ("", None)}


ROUTES = [add_flow, get_flow, cancel_flow, retry_flow, list_dead, count_errors, get_dead, redrive, purge]
