"""The routes for limits, which hold tasks back."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, delete, get, put
from litestar.params import QueryParameter

from dtq.api.problems import HTTPProblem
from dtq.api.requests import NAME, Asked, Body, NewLimit
from dtq.api.responses import Reason
from dtq.api.routes.common import respond, state_of
from dtq.policy.limits import Limit
from dtq.queue.manager import QueueManager

LIMIT = Body(NewLimit)
MEANING = "As in the limit; if left out, the limit for any."
SelectorQuery = Annotated[str | None, QueryParameter(max_length=200, pattern=NAME, description=MEANING)]
KeyQuery = Annotated[str | None, QueryParameter(max_length=200, description=MEANING)]


@get("/limits", opt={"needs": "read"})
async def list_limits(request: Asked) -> Response[list[Limit]]:
    """List all limits and paused queues."""
    return respond(await state_of(request).call(state_of(request).manager.limits))


@put("/limits", opt={"needs": "admin", "body": LIMIT}, status_code=200)
async def put_limit(request: Asked) -> Response[Limit]:
    """Limit the tasks of a queue, a type, a limit key, or a combination, over all nodes together."""
    new: NewLimit = await LIMIT.read(request)
    if new.rate is new.burst is new.max_running is None:
        reason = "a limit needs a rate, max_running, or both"
        raise HTTPProblem(422, reason, [Reason("rate", reason)])
    return respond(await state_of(request).call(_put_limit, state_of(request).manager, new))


def _put_limit(manager: QueueManager, new: NewLimit) -> Limit:
    return manager.limit(
        new.queue, new.type, new.key, rate=new.rate, burst=new.burst, max_running=new.max_running
    )  # fmt: skip


@delete("/limits", opt={"needs": "admin", "query": {"queue", "type", "key"}}, status_code=204)
async def remove_limit(
    request: Asked, queue: SelectorQuery = None, type: SelectorQuery = None, key: KeyQuery = None
) -> None:
    """Remove the limit with exactly this queue, type and key. A pause stays. If there is no such limit, do nothing."""
    await state_of(request).call(state_of(request).manager.unlimit, queue, type, key)


ROUTES = [list_limits, put_limit, remove_limit]
