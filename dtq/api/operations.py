"""The table of operations: routes and the OpenAPI document are made of it, and nothing else can be asked.

The router takes the first path that matches.
"""

from __future__ import annotations

from dtq.api.parameters import AddHeaders, DeadQuery, ErrorsQuery, LimitQuery, TaskQuery, WaitQuery
from dtq.api.requests import NewFlow, NewLimit, NewSchedule, OneOrMany, Purge, Redrive
from dtq.api.responses import (
    Accepted,
    Health,
    QueueView,
    Redriven,
    Removed,
    ScheduleView,
    StatsView,
    TaskPage,
)
from dtq.api.routes import dead_letters, flows, limits, pages, schedules, status, tasks
from dtq.api.routing import Operation
from dtq.monitor.prometheus import CONTENT_TYPE
from dtq.policy.cron import Schedule
from dtq.policy.limits import Limit
from dtq.queue.flow import FlowState
from dtq.task.model import Task

ADDED = Accepted | list[Accepted]

# fmt: off
OPERATIONS = (
    Operation("POST", "/tasks", "submit", tasks.add_tasks, {201: ADDED, 200: ADDED}, None, AddHeaders, OneOrMany),
    Operation("GET", "/tasks", "read", tasks.list_tasks, {200: TaskPage}, query=TaskQuery),
    Operation("GET", "/tasks/{task_id}", "read", tasks.get_task, {200: Task}),
    Operation("DELETE", "/tasks/{task_id}", "admin", tasks.delete_task, {204: None, 200: Task}),
    Operation("GET", "/tasks/{task_id}/wait", "read", tasks.wait_for_task, {200: Task, 202: Task}, query=WaitQuery),
    Operation("POST", "/tasks/{task_id}/cancel", "admin", tasks.cancel_task, {200: Task}),
    Operation("POST", "/tasks/{task_id}/retry", "admin", tasks.retry_task, {200: Task}),

    Operation("POST", "/flows", "submit", flows.add_flow, {201: FlowState}, body=NewFlow),
    Operation("GET", "/flows/{flow_id}", "read", flows.get_flow, {200: FlowState}),
    Operation("POST", "/flows/{flow_id}/cancel", "admin", flows.cancel_flow, {200: FlowState}),
    Operation("POST", "/flows/{flow_id}/retry", "admin", flows.retry_flow, {200: FlowState}),

    Operation("GET", "/dead", "read", dead_letters.list_dead, {200: TaskPage}, query=DeadQuery),
    Operation("GET", "/dead/errors", "read", dead_letters.count_errors, {200: dict[str, int]}, query=ErrorsQuery),
    Operation("POST", "/dead/redrive", "admin", dead_letters.redrive, {200: Redriven}, body=Redrive),
    Operation("POST", "/dead/purge", "admin", dead_letters.purge, {200: Removed}, body=Purge),
    Operation("GET", "/dead/{task_id}", "read", dead_letters.get_dead, {200: Task}),

    Operation("GET", "/schedules", "read", schedules.list_schedules, {200: list[Schedule]}),
    Operation("GET", "/schedules/{name}", "read", schedules.get_schedule, {200: ScheduleView}),
    Operation("PUT", "/schedules/{name}", "admin", schedules.put_schedule, {200: Schedule}, body=NewSchedule),
    Operation("DELETE", "/schedules/{name}", "admin", schedules.remove_schedule, {204: None}),
    Operation("POST", "/schedules/{name}/pause", "admin", schedules.pause_schedule, {200: Schedule}),
    Operation("POST", "/schedules/{name}/resume", "admin", schedules.resume_schedule, {200: Schedule}),

    Operation("GET", "/limits", "read", limits.list_limits, {200: list[Limit]}),
    Operation("PUT", "/limits", "admin", limits.put_limit, {200: Limit}, body=NewLimit),
    Operation("DELETE", "/limits", "admin", limits.remove_limit, {204: None}, query=LimitQuery),

    Operation("GET", "/queues", "read", status.list_queues, {200: list[QueueView]}),
    Operation("POST", "/queues/{queue}/pause", "admin", status.pause_queue, {200: QueueView}),
    Operation("POST", "/queues/{queue}/resume", "admin", status.resume_queue, {200: QueueView}),
    Operation("GET", "/stats", "read", status.get_stats, {200: StatsView}),
    Operation("GET", "/events", "read", status.get_events, {200: str}, media_type="text/event-stream"),
    Operation("GET", "/metrics", "read", status.get_metrics, {200: str}, media_type=CONTENT_TYPE),
    Operation("GET", "/health", None, status.is_healthy, {200: Health}),
    Operation("GET", "/health/live", None, status.is_live, {200: Health}),
    Operation("GET", "/health/ready", None, status.is_ready, {200: Health}),

    Operation("GET", "/", None, pages.dashboard, {}),
    Operation("GET", "/docs", None, pages.docs, {}),
    Operation("GET", "/openapi.json", None, pages.openapi_document, {}),
)
# fmt: on
