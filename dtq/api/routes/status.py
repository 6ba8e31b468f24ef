"""The routes that are about the queue as a whole: its state, health, metrics, events, queues, and the pages."""

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

from dtq.api.bodies import Asked
from dtq.api.problems import LATER, HTTPProblem
from dtq.api.responses import Health, QueueView, StatsView
from dtq.api.routes.tasks import NamePath, answer, desk_of, name_in
from dtq.api.state import MAX_STREAMS, AppState
from dtq.errors import StoreError
from dtq.monitor.prometheus import CONTENT_TYPE, exposition
from dtq.stores.protocol import Stats

PAGES = Path(__file__).parents[1] / "pages"


@get("/stats", opt={"needs": "read"})
async def get_stats(request: Asked) -> Response[StatsView]:
    """How many tasks are where, who is at work, and since when the oldest task waits."""
    return answer(StatsView.of(await desk_of(request).ask(desk_of(request).manager.stats)))


@get("/health/live", opt={"needs": "nothing"})
async def is_live() -> Response[Health]:
    """200 while this process answers: for whoever would restart it otherwise."""
    return answer(Health(True, "this process answers"))


@get("/health/ready", opt={"needs": "nothing"})
async def is_ready(request: Asked) -> Response[Health]:
    """200 while the store can be read, so that tasks can be taken; else 503."""
    await _stats_or_503(desk_of(request))
    return answer(Health(True, "the store can be read"))


@get("/health", opt={"needs": "nothing"})
async def is_healthy(request: Asked) -> Response[Health]:
    """200 while some node runs with a ready worker, so that tasks are worked on; else 503."""
    stats = StatsView.of(await _stats_or_503(desk_of(request)))
    if not stats.workers.total:
        raise HTTPProblem(
            503, "no node runs with a ready worker: tasks are taken, but nobody works on them", headers=LATER
        )
    nodes = [node for node in stats.nodes if node.alive]
    troubled = sum("trouble" in node.metrics for node in nodes)
    detail = f"{stats.workers.total} workers on {len(nodes)} nodes"
    return answer(Health(True, f"{detail}, {troubled} of them in trouble" if troubled else detail))


async def _stats_or_503(desk: AppState) -> Stats:
    try:
        return await desk.ask(desk.manager.stats)
    except StoreError:
        raise HTTPProblem(503, "the store cannot be read", headers=LATER) from None


@get("/metrics", opt={"needs": "read"}, media_type=CONTENT_TYPE)
async def get_metrics(request: Asked) -> Response[str]:
    """The state of the queue in Prometheus' text format."""
    desk = desk_of(request)
    text = await desk.ask(lambda: exposition(desk.manager.stats()))
    return Response(text, media_type=CONTENT_TYPE)


@get("/events", opt={"needs": "read"}, media_type="text/event-stream")
async def get_events(request: Asked) -> Stream:
    """Server-sent events, while the connection lasts: `history` once, then `stats`, `nodes` and `finished` each second.

    `finished` has the tasks that have ended, up to 200 a second.
    """
    desk = desk_of(request)
    desk.require_place("events", MAX_STREAMS)

    async def events() -> AsyncIterator[bytes]:
        with desk.place("events"):
            async with aclosing(desk.feed.listen()) as messages:
                async for message in messages:
                    yield message

    return Stream(events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


# --- queues ---------------------------------------------------------------------------------------------------------


@get("/queues", opt={"needs": "read"})
async def list_queues(request: Asked) -> Response[list[QueueView]]:
    """The queues that have had tasks, or are paused."""
    return answer(queues_of(await desk_of(request).ask(desk_of(request).manager.stats)))


@post("/queues/{queue:str}/pause", opt={"needs": "admin"}, status_code=200)
async def pause_queue(request: Asked, queue: NamePath) -> Response[QueueView]:
    """Nothing of this queue starts any more, on any node; what runs goes on."""
    return await _set_paused(desk_of(request), name_in(queue), True)


@post("/queues/{queue:str}/resume", opt={"needs": "admin"}, status_code=200)
async def resume_queue(request: Asked, queue: NamePath) -> Response[QueueView]:
    """Tasks of this queue start again."""
    return await _set_paused(desk_of(request), name_in(queue), False)


async def _set_paused(desk: AppState, queue: str, paused: bool) -> Response[QueueView]:
    await desk.ask(desk.manager.pause if paused else desk.manager.resume, queue)
    stats = await desk.ask(desk.manager.stats)
    return answer(QueueView(queue, paused, stats.queues.get(queue, {})))


def queues_of(stats: Stats) -> list[QueueView]:
    paused = {limit.queue for limit in stats.limits if limit.paused and limit.type is None and limit.key is None}
    names = stats.queues.keys() | {name for name in paused if name is not None}
    return [QueueView(name, name in paused, stats.queues.get(name, {})) for name in sorted(names)]


# --- pages ----------------------------------------------------------------------------------------------------------


@cache
def page(name: str) -> tuple[bytes, str]:
    """A page of ours, and its policy: it may run its own script and ask its own server, and nothing else."""
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
