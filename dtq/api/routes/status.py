"""The routes for the queue as a whole: its state, health, metrics, events and queues."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from dtq.api.problems import LATER, HTTPProblem
from dtq.api.responses import Health, QueueView, StatsView
from dtq.api.routing import Request
from dtq.api.state import MAX_STREAMS
from dtq.errors import StoreError
from dtq.monitor.prometheus import CONTENT_TYPE, exposition
from dtq.stores.protocol import Stats


async def get_stats(request: Request) -> StatsView:
    """Get the number of tasks by status, queue and type, the nodes, and since when the oldest task has waited."""
    return StatsView.of(await request.call(request.manager.stats))


async def is_live(request: Request) -> Health:
    """Return 200 while this process answers, for a supervisor that restarts processes which do not."""
    return Health(True, "this process answers")


async def is_ready(request: Request) -> Health:
    """Return 200 while the store can be read, so that tasks can be added, and 503 otherwise."""
    await _stats_or_503(request)
    return Health(True, "the store can be read")


async def is_healthy(request: Request) -> Health:
    """Return 200 while some node runs with a ready worker, so that tasks are run, and 503 otherwise."""
    stats = StatsView.of(await _stats_or_503(request))
    if not stats.workers.total:
        detail = "no node runs with a ready worker: tasks can be added, but none is run"
        raise HTTPProblem(503, detail, headers=LATER)
    nodes = [node for node in stats.nodes if node.alive]
    troubled = sum("trouble" in node.metrics for node in nodes)
    detail = f"{stats.workers.total} workers on {len(nodes)} nodes"
    return Health(True, f"{detail}, {troubled} of them in trouble" if troubled else detail)


async def _stats_or_503(request: Request) -> Stats:
    try:
        return await request.call(request.manager.stats)
    except StoreError:
        raise HTTPProblem(503, "the store cannot be read", headers=LATER) from None


async def get_metrics(request: Request) -> Response:
    """Get the state of the queue in Prometheus' text format."""
    text = await request.call(lambda: exposition(request.manager.stats()))
    return Response(text, media_type=CONTENT_TYPE)


async def get_events(request: Request) -> Response:
    """Stream server-sent events: `history` once, then `stats`, `nodes` and `finished` each second.

    `finished` has the tasks that have ended, up to 200 per second.
    """
    request.app_state.require_slot("events", MAX_STREAMS)
    return EventResponse(_events(request), headers={"X-Accel-Buffering": "no"})


async def _events(request: Request) -> AsyncIterator[bytes]:
    if request.method == "HEAD":
        return
    async with aclosing(request.app_state.events.read()) as messages:
        async for message in messages:
            yield message


class EventResponse(StreamingResponse):
    """Counts as a reader of the events until the client leaves or the server stops."""

    media_type = "text/event-stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with scope["state"]["app_state"].slot("events"):
            await super().__call__(scope, receive, send)


# --- queues ---------------------------------------------------------------------------------------------------------


async def list_queues(request: Request) -> list[QueueView]:
    """List the queues that have had tasks, and those that are paused."""
    return queues_of(await request.call(request.manager.stats))


async def pause_queue(request: Request, queue: str) -> QueueView:
    """Pause a queue: no node starts its tasks; those that run go on."""
    await request.call(request.manager.pause, queue)
    return await _view(request, queue, True)


async def resume_queue(request: Request, queue: str) -> QueueView:
    """Resume a queue: its tasks start again."""
    await request.call(request.manager.resume, queue)
    return await _view(request, queue, False)


async def _view(request: Request, queue: str, paused: bool) -> QueueView:
    stats = await request.call(request.manager.stats)
    return QueueView(queue, paused, stats.queues.get(queue, {}))


def queues_of(stats: Stats) -> list[QueueView]:
    paused = {limit.queue for limit in stats.limits if limit.paused and limit.type is None and limit.key is None}
    names = stats.queues.keys() | {name for name in paused if name is not None}
    return [QueueView(name, name in paused, stats.queues.get(name, {})) for name in sorted(names)]
