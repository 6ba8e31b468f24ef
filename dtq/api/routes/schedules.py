"""The routes that are about what is to come: schedules, which add tasks, and limits, which hold them back."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, delete, get, post, put
from litestar.params import QueryParameter

from dtq.api.bodies import Asked, Body
from dtq.api.problems import HTTPProblem
from dtq.api.requests import NAME, NewLimit, NewSchedule
from dtq.api.responses import Reason, ScheduleView
from dtq.api.routes.tasks import NamePath, answer, desk_of, name_in
from dtq.policy.cron import Schedule
from dtq.policy.limits import Limit
from dtq.queue.manager import QueueManager

# --- schedules ------------------------------------------------------------------------------------------------------

SCHEDULE = Body(NewSchedule)


@get("/schedules", opt={"needs": "read"})
async def list_schedules(request: Asked) -> Response[list[Schedule]]:
    """All schedules; `next_at` is when each comes next."""
    return answer(await desk_of(request).ask(list, desk_of(request).manager.schedules))


@get("/schedules/{name:str}", opt={"needs": "read"})
async def get_schedule(request: Asked, name: NamePath) -> Response[ScheduleView]:
    """One schedule, and its next five ticks."""
    return answer(await desk_of(request).ask(_view, desk_of(request).manager, name_in(name)))


def _view(manager: QueueManager, name: str) -> ScheduleView:
    return ScheduleView(manager.schedules.get(name), [at.timestamp() for at in manager.schedules.upcoming(name)])


@put("/schedules/{name:str}", opt={"needs": "admin", "body": SCHEDULE}, status_code=200)
async def put_schedule(request: Asked, name: NamePath) -> Response[Schedule]:
    """Add a schedule, or edit the one of this name: one that is paused stays so."""
    new: NewSchedule = await SCHEDULE.of(request)
    schedule = Schedule(name_in(name), new.task.options(), new.cron, new.every, new.tz, new.misfire)
    return answer(await desk_of(request).ask(desk_of(request).manager.schedules.put, schedule))


@delete("/schedules/{name:str}", opt={"needs": "admin"}, status_code=204)
async def remove_schedule(request: Asked, name: NamePath) -> None:
    """No more ticks; what they have added so far stays."""
    await desk_of(request).ask(desk_of(request).manager.schedules.remove, name_in(name))


@post("/schedules/{name:str}/pause", opt={"needs": "admin"}, status_code=200)
async def pause_schedule(request: Asked, name: NamePath) -> Response[Schedule]:
    """No more ticks until it is resumed."""
    return answer(await desk_of(request).ask(desk_of(request).manager.schedules.pause, name_in(name)))


@post("/schedules/{name:str}/resume", opt={"needs": "admin"}, status_code=200)
async def resume_schedule(request: Asked, name: NamePath) -> Response[Schedule]:
    """Goes on with the next tick from now."""
    return answer(await desk_of(request).ask(desk_of(request).manager.schedules.resume, name_in(name)))


# --- limits ---------------------------------------------------------------------------------------------------------

LIMIT = Body(NewLimit)
SelectorQuery = Annotated[
    str | None, QueryParameter(max_length=200, pattern=NAME, description="As in the limit; left out: any.")
]
KeyQuery = Annotated[str | None, QueryParameter(max_length=200, description="As in the limit; left out: any.")]


@get("/limits", opt={"needs": "read"})
async def list_limits(request: Asked) -> Response[list[Limit]]:
    """All that holds tasks back: limits, and queues that are paused."""
    return answer(await desk_of(request).ask(desk_of(request).manager.limits))


@put("/limits", opt={"needs": "admin", "body": LIMIT}, status_code=200)
async def put_limit(request: Asked) -> Response[Limit]:
    """Hold the tasks of a queue, a type, a limit key, or all three, to a limit, on all nodes together."""
    new: NewLimit = await LIMIT.of(request)
    if new.rate is new.burst is new.max_running is None:
        reason = "a limit needs a rate, max_running, or both"
        raise HTTPProblem(422, reason, [Reason("rate", reason)])
    return answer(await desk_of(request).ask(_put_limit, desk_of(request).manager, new))


def _put_limit(manager: QueueManager, new: NewLimit) -> Limit:
    return manager.limit(
        new.queue, new.type, new.key, rate=new.rate, burst=new.burst, max_running=new.max_running
    )  # fmt: skip


@delete("/limits", opt={"needs": "admin", "query": {"queue", "type", "key"}}, status_code=204)
async def remove_limit(
    request: Asked, queue: SelectorQuery = None, type: SelectorQuery = None, key: KeyQuery = None
) -> None:
    """Take the limit away that has these very names; a pause stays. Harmless where there is none."""
    await desk_of(request).ask(desk_of(request).manager.unlimit, queue, type, key)


ROUTES = [
    list_schedules, get_schedule, put_schedule, remove_schedule, pause_schedule, resume_schedule,
    list_limits, put_limit, remove_limit,
]  # fmt: skip
