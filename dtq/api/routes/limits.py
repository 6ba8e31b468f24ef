"""The routes for limits, which hold tasks back."""

from __future__ import annotations

import msgspec

from dtq.api.parameters import LimitQuery
from dtq.api.problems import HTTPProblem
from dtq.api.requests import NewLimit
from dtq.api.responses import Reason
from dtq.api.routing import Request
from dtq.policy.limits import Limit


async def list_limits(request: Request) -> list[Limit]:
    """List all limits and paused queues."""
    return await request.call(request.manager.limits)


async def put_limit(request: Request, body: NewLimit) -> Limit:
    """Limit the tasks of a queue, a type, a limit key, or a combination, over all nodes together."""
    if body.rate is body.burst is body.max_running is None:
        reason = "a limit needs a rate, max_running, or both"
        raise HTTPProblem(422, reason, [Reason("rate", reason)])
    return await request.call(request.manager.limit, **msgspec.structs.asdict(body))


async def remove_limit(request: Request, query: LimitQuery) -> None:
    """Remove the limit with exactly this queue, type and key. A pause stays. If there is no such limit, do nothing."""
    await request.call(request.manager.unlimit, **msgspec.to_builtins(query))
