"""The routes for schedules, which add tasks at given times."""

from __future__ import annotations

from litestar import Response, delete, get, post, put

from dtq.api.requests import Asked, Body, NewSchedule
from dtq.api.responses import ScheduleView
from dtq.api.routes.common import NamePath, name_in, respond, state_of
from dtq.policy.cron import Schedule
from dtq.queue.manager import QueueManager

SCHEDULE = Body(NewSchedule)


@get("/schedules", opt={"needs": "read"})
async def list_schedules(request: Asked) -> Response[list[Schedule]]:
    """List all schedules; `next_at` is the next tick of each."""
    return respond(await state_of(request).call(list, state_of(request).manager.schedules))


@get("/schedules/{name:str}", opt={"needs": "read"})
async def get_schedule(request: Asked, name: NamePath) -> Response[ScheduleView]:
    """Get a schedule and its next five ticks."""
    return respond(await state_of(request).call(_view, state_of(request).manager, name_in(name)))


def _view(manager: QueueManager, name: str) -> ScheduleView:
    return ScheduleView(manager.schedules.get(name), [at.timestamp() for at in manager.schedules.upcoming(name)])


@put("/schedules/{name:str}", opt={"needs": "admin", "body": SCHEDULE}, status_code=200)
async def put_schedule(request: Asked, name: NamePath) -> Response[Schedule]:
    """Add a schedule, or change the one of this name. A paused schedule stays paused."""
    new: NewSchedule = await SCHEDULE.read(request)
    schedule = Schedule(name_in(name), new.task.options(), new.cron, new.every, new.tz, new.misfire)
    return respond(await state_of(request).call(state_of(request).manager.schedules.put, schedule))


@delete("/schedules/{name:str}", opt={"needs": "admin"}, status_code=204)
async def remove_schedule(request: Asked, name: NamePath) -> None:
    """Remove a schedule. The tasks that it has added stay."""
    await state_of(request).call(state_of(request).manager.schedules.remove, name_in(name))


@post("/schedules/{name:str}/pause", opt={"needs": "admin"}, status_code=200)
async def pause_schedule(request: Asked, name: NamePath) -> Response[Schedule]:
    """Pause a schedule: it adds no tasks until it is resumed."""
    return respond(await state_of(request).call(state_of(request).manager.schedules.pause, name_in(name)))


@post("/schedules/{name:str}/resume", opt={"needs": "admin"}, status_code=200)
async def resume_schedule(request: Asked, name: NamePath) -> Response[Schedule]:
    """Resume a schedule, from its next tick on."""
    return respond(await state_of(request).call(state_of(request).manager.schedules.resume, name_in(name)))


ROUTES = [list_schedules, get_schedule, put_schedule, remove_schedule, pause_schedule, resume_schedule]
