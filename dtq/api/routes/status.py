"""The routes for the queue as a whole: its state, health, metrics, events, queues, and the HTML pages."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import cache
from pathlib import Path

from litestar import MediaType, Response, get, post
from litestar.response import Stream

from dtq.api.problems import LATER, HTTPProblem
from dtq.api.requests import Asked
from dtq.api.responses import Health, QueueView, StatsView
from dtq.api.routes.common import NamePath, name_in, respond, state_of
from dtq.api.state import MAX_STREAMS, AppState
from dtq.errors import StoreError
from dtq.monitor.prometheus import CONTENT_TYPE, exposition
from dtq.stores.protocol import Stats

PAGES = Path(__file__).parents[1] / "pages"


@get("/stats", opt={"needs": "read"})
async def get_stats(request: Asked) -> Response[StatsView]:
    """Get the number of tasks by status, queue and type, the nodes, and since when the oldest task has waited."""
    return respond(StatsView.of(await state_of(request).call(state_of(request).manager.stats)))


@get("/health/live", opt={"needs": "nothing"})
async def is_live() -> Response[Health]:
    """Return 200 while this process answers, for a supervisor that restarts processes which do not."""
    return respond(Health(True, "this process answers"))


@get("/health/ready", opt={"needs": "nothing"})
async def is_ready(request: Asked) -> Response[Health]:
    """Return 200 while the store can be read, so that tasks can be added, and 503 otherwise."""
    await _stats_or_503(state_of(request))
    return respond(Health(True, "the store can be read"))


@get("/health", opt={"needs": "nothing"})
async def is_healthy(request: Asked) -> Response[Health]:
    """Return 200 while some node runs with a ready worker, so that tasks are run, and 503 otherwise."""
    stats = StatsView.of(await _stats_or_503(state_of(request)))
    if not stats.workers.total:
        detail = "no node runs with a ready worker: tasks can be added, but none is run"
        raise HTTPProblem(503, detail, headers=LATER)
    nodes = [node for node in stats.nodes if node.alive]
    troubled = sum("trouble" in node.metrics for node in nodes)
    detail = f"{stats.workers.total} workers on {len(nodes)} nodes"
    return respond(Health(True, f"{detail}, {troubled} of them in trouble" if troubled else detail))


async def _stats_or_503(state: AppState) -> Stats:
    try:
        return await state.call(state.manager.stats)
    except StoreError:
        raise HTTPProblem(503, "the store cannot be read", headers=LATER) from None


@get("/metrics", opt={"needs": "read"}, media_type=CONTENT_TYPE)
async def get_metrics(request: Asked) -> Response[str]:
    """Get the state of the queue in Prometheus' text format."""
    state = state_of(request)
    text = await state.call(lambda: exposition(state.manager.stats()))
    return Response(text, media_type=CONTENT_TYPE)


@get("/events", opt={"needs": "read"}, media_type="text/event-stream")
async def get_events(request: Asked) -> Stream:
    """Stream server-sent events: `history` once, then `stats`, `nodes` and `finished` each second.

    `finished` has the tasks that have ended, up to 200 per second.
    """
    state = state_of(request)
    state.require_slot("events", MAX_STREAMS)

    async def events() -> AsyncIterator[bytes]:
        with state.slot("events"):
            async with aclosing(state.events.read()) as messages:
                async for message in messages:
                    yield message

    return Stream(events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


# --- queues ---------------------------------------------------------------------------------------------------------


@get("/queues", opt={"needs": "read"})
async def list_queues(request: Asked) -> Response[list[QueueView]]:
    """List the queues that have had tasks, and those that are paused."""
    return respond(queues_of(await state_of(request).call(state_of(request).manager.stats)))


@post("/queues/{queue:str}/pause", opt={"needs": "admin"}, status_code=200)
async def pause_queue(request: Asked, queue: NamePath) -> Response[QueueView]:
    """Pause a queue: no node starts its tasks; those that run go on."""
    return await _set_paused(state_of(request), name_in(queue), True)


@post("/queues/{queue:str}/resume", opt={"needs": "admin"}, status_code=200)
async def resume_queue(request: Asked, queue: NamePath) -> Response[QueueView]:
    """Resume a queue: its tasks start again."""
    return await _set_paused(state_of(request), name_in(queue), False)


async def _set_paused(state: AppState, queue: str, paused: bool) -> Response[QueueView]:
    await state.call(state.manager.pause if paused else state.manager.resume, queue)
    stats = await state.call(state.manager.stats)
    return respond(QueueView(queue, paused, stats.queues.get(queue, {})))


def queues_of(stats: Stats) -> list[QueueView]:
    paused = {limit.queue for limit in stats.limits if limit.paused and limit.type is None and limit.key is None}
    names = stats.queues.keys() | {name for name in paused if name is not None}
    return [QueueView(name, name in paused, stats.queues.get(name, {})) for name in sorted(names)]


# --- pages ----------------------------------------------------------------------------------------------------------


@cache
def page(name: str) -> tuple[bytes, str]:
    """Return an HTML page and its Content-Security-Policy: it may run its own script and call its own server only."""
    text = (PAGES / name).read_text()
    script, style = (" ".join(_hashes(tag, text)) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    return text.encode(), policy


def _hashes(tag: str, text: str) -> list[str]:
    contents = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in contents]


def _show(name: str) -> Response[bytes]:
    content, policy = page(name)
    return Response(content, media_type=MediaType.HTML, headers={"Content-Security-Policy": policy})


@get("/", opt={"needs": "nothing"}, include_in_schema=False, sync_to_thread=False)
def dashboard() -> Response[bytes]:
    return _show("dashboard.html")


@get("/docs", opt={"needs": "nothing"}, include_in_schema=False, sync_to_thread=False)
def docs() -> Response[bytes]:
    return _show("docs.html")


@get("/openapi.json", opt={"needs": "nothing"}, include_in_schema=False, sync_to_thread=False)
def openapi_document(request: Asked) -> Response[bytes]:
    document: bytes = request.app.state.document
    return Response(document, media_type="application/json")


ROUTES = [
    get_stats, is_live, is_ready, is_healthy, get_metrics, get_events, list_queues, pause_queue, resume_queue,
    dashboard, docs, openapi_document,
]  # fmt: skip
