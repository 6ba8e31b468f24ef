"""The routes for schedules, which add tasks at given times."""

from __future__ import annotations

from dtq.api.requests import NewSchedule
from dtq.api.responses import ScheduleView
from dtq.api.routing import Request
from dtq.policy.cron import Schedule
from dtq.queue.manager import QueueManager


async def list_schedules(request: Request) -> list[Schedule]:
    """List all schedules; `next_at` is the next tick of each."""
    return await request.call(list, request.manager.schedules)


async def get_schedule(request: Request, name: str) -> ScheduleView:
    """Get a schedule and its next five ticks."""
    return await request.call(_view, request.manager, name)


def _view(manager: QueueManager, name: str) -> ScheduleView:
    return ScheduleView(manager.schedules.get(name), [at.timestamp() for at in manager.schedules.upcoming(name)])


async def put_schedule(request: Request, name: str, body: NewSchedule) -> Schedule:
    """Add a schedule, or change the one of this name. A paused schedule stays paused."""
    schedule = Schedule(name, body.task.options(), body.cron, body.every, body.tz, body.misfire)
    return await request.call(request.manager.schedules.put, schedule)


async def remove_schedule(request: Request, name: str) -> None:
    """Remove a schedule. The tasks that it has added stay."""
    await request.call(request.manager.schedules.remove, name)


async def pause_schedule(request: Request, name: str) -> Schedule:
    """Pause a schedule: it adds no tasks until it is resumed."""
    return await request.call(request.manager.schedules.pause, name)


async def resume_schedule(request: Request, name: str) -> Schedule:
    """Resume a schedule, from its next tick on."""
    return await request.call(request.manager.schedules.resume, name)
