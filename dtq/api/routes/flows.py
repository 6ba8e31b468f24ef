"""The routes for flows: graphs of tasks."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from dtq.api.requests import NewFlow
from dtq.api.routes.common import location
from dtq.api.routing import JSONResponse, Request
from dtq.queue.flow import Flow, FlowState
from dtq.queue.manager import QueueManager


async def add_flow(request: Request, body: NewFlow) -> Response:
    """Add a graph of tasks, all of them or none. If the flow already exists, return it as it is.

    The id of each task is the flow's id, a dot, and the name of the step. 409 if `after` names a task that does not
    exist, or forms a cycle.
    """
    state = await request.call(_add_flow, request.manager, body)
    return JSONResponse(state, 201, location("flows", state.id))


def _add_flow(manager: QueueManager, new: NewFlow) -> FlowState:
    return manager.flow({name: step.options() for name, step in new.steps.items()}, new.id).state()


async def get_flow(request: Request, flow_id: str) -> FlowState:
    """Get the progress of a flow and the status of each of its tasks."""
    return await request.call(_flow, request.manager, flow_id)


async def cancel_flow(request: Request, flow_id: str) -> FlowState:
    """Cancel all tasks of a flow that have not ended; running attempts are stopped."""
    return await request.call(_flow, request.manager, flow_id, Flow.cancel)


async def retry_flow(request: Request, flow_id: str) -> FlowState:
    """Start the failed and cancelled tasks of a flow again. Each waits for its parents again."""
    return await request.call(_flow, request.manager, flow_id, Flow.retry)


def _flow(manager: QueueManager, flow_id: str, change: Any = None) -> FlowState:
    flow = manager.get_flow(flow_id)
    if change is not None:
        change(flow)
    return flow.state()
