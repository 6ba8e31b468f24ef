"""The routes for flows: graphs of tasks."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from litestar import Response, get, post

from dtq.api.requests import Asked, Body, NewFlow
from dtq.api.routes.common import NamePath, name_in, respond, state_of
from dtq.queue.flow import Flow, FlowState
from dtq.queue.manager import QueueManager

FLOW = Body(NewFlow)


@post("/flows", opt={"needs": "submit", "body": FLOW}, status_code=201)
async def add_flow(request: Asked) -> Response[FlowState]:
    """Add a graph of tasks, all of them or none. If the flow already exists, return it as it is.

    The id of each task is the flow's id, a dot, and the name of the step. 409 if `after` names a task that does not
    exist, or forms a cycle.
    """
    new: NewFlow = await FLOW.read(request)
    state = await state_of(request).call(_add_flow, state_of(request).manager, new)
    return respond(state, 201, Location=f"flows/{quote(state.id, safe='')}")


def _add_flow(manager: QueueManager, new: NewFlow) -> FlowState:
    return manager.flow({name: step.options() for name, step in new.steps.items()}, new.id).state()


@get("/flows/{flow_id:str}", opt={"needs": "read"})
async def get_flow(request: Asked, flow_id: NamePath) -> Response[FlowState]:
    """Get the progress of a flow and the status of each of its tasks."""
    return respond(await state_of(request).call(_flow, state_of(request).manager, name_in(flow_id)))


@post("/flows/{flow_id:str}/cancel", opt={"needs": "admin"}, status_code=200)
async def cancel_flow(request: Asked, flow_id: NamePath) -> Response[FlowState]:
    """Cancel all tasks of a flow that have not ended; running attempts are stopped."""
    return respond(await state_of(request).call(_flow, state_of(request).manager, name_in(flow_id), Flow.cancel))


@post("/flows/{flow_id:str}/retry", opt={"needs": "admin"}, status_code=200)
async def retry_flow(request: Asked, flow_id: NamePath) -> Response[FlowState]:
    """Start the failed and cancelled tasks of a flow again. Each waits for its parents again."""
    return respond(await state_of(request).call(_flow, state_of(request).manager, name_in(flow_id), Flow.retry))


def _flow(manager: QueueManager, flow_id: str, change: Any = None) -> FlowState:
    flow = manager.get_flow(flow_id)
    if change is not None:
        change(flow)
    return flow.state()


ROUTES = [add_flow, get_flow, cancel_flow, retry_flow]
