"""The OpenAPI 3.1 document. Litestar describes routes, parameters and responses; this module adds the rest.

routes --Litestar--> document --+ the bodies (the routes decode them, not the framework)
                                + the problems that each operation may return
                                + the scope that it needs
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.config import OpenAPIConfig

from dtq.api.requests import NAME
from dtq.api.responses import Accepted, Problem, StatsView, TaskPage
from dtq.task.model import Task

Json = dict[str, Any]
TITLE = "dtq"
VERSION = "1"
PROBLEMS = {
    "400": "The request is malformed.",
    "401": "A token is needed.",
    "403": "The token's scope, the Host or the Origin does not allow it.",
    "404": "Nothing has this name.",
    "408": "The request did not arrive in time.",
    "409": "The state of this task, or of others, does not allow it.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "422": "A field or parameter is not allowed; `errors` names each, and the reason.",
    "429": "Too many requests, or the backlog is full: try again after Retry-After seconds.",
    "503": "The store cannot be reached, or the server is at a limit: try again after Retry-After seconds.",
    "500": "The server failed.",
}
JSON = "application/json"
SCHEMAS = "#/components/schemas/"
EXTRA_SCHEMAS = (Task, TaskPage, StatsView, Accepted, Problem)
ONLY_WITH_NAME = {"404"}
ONLY_WITH_BODY = {"400", "413", "415"}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key", "in": "header", "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
    "description": "A repeated key adds nothing; the response has the tasks that exist.",
}  # fmt: skip
EXTRA_RESPONSES: dict[str, dict[str, tuple[str, Any]]] = {  # operation -> status -> description, body
    "add_tasks": {"200": ("All of these tasks already existed.", Accepted | list[Accepted])},
    "wait_for_task": {"202": ("The timeout has passed, and the task has not ended.", Task)},
    "delete_task": {"200": ("The task was running and is cancelled.", Task), "204": ("The task is deleted.", None)},
}  # fmt: skip


def describe(handlers: Sequence[HTTPRouteHandler]) -> Json:
    """Return the document for these routes. The server calls this once, when it starts."""
    config = OpenAPIConfig(
        TITLE, VERSION, use_handler_docstrings=True, summary="Add, watch and change tasks, from any language.",
        operation_id_creator=lambda handler, method, path: handler.handler_name,
    )  # fmt: skip
    document: Json = Litestar([*handlers], openapi_config=config, logging_config=None).openapi_schema.to_schema()
    document["servers"] = [{"url": "."}]  # relative to this document, so that any prefix of a proxy fits
    bodies = {handler.handler_name: handler.opt["body"].shape for handler in handlers if "body" in handler.opt}
    schemas, components = msgspec.json.schema_components(
        [*bodies.values(), *EXTRA_SCHEMAS], ref_template=f"{SCHEMAS}{{name}}"
    )
    document["components"]["schemas"].update(components)
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    paths: dict[str, dict[str, Json]] = document["paths"]
    needs = {handler.handler_name: handler.opt["needs"] for handler in handlers}
    for path, item in paths.items():
        for operation in item.values():
            body = dict(zip(bodies, schemas, strict=False)).get(operation["operationId"])
            _complete(operation, path, needs[operation["operationId"]], body)
    paths["/tasks"]["post"]["parameters"] = [IDEMPOTENCY_KEY]
    return document


def _complete(operation: Json, path: str, needs: str, body: Json | None) -> None:
    """Add the scope, the body and the problems to an operation."""
    operation["description"] += f"\n\nNeeds {'no token' if needs == 'nothing' else f'a token of scope {needs}'}."
    operation["security"] = [] if needs == "nothing" else [{"token": []}, {}]
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": body}}}
    unlikely = (ONLY_WITH_NAME if "{" not in path else set()) | (ONLY_WITH_BODY if body is None else set())
    content = {"application/problem+json": {"schema": {"$ref": f"{SCHEMAS}Problem"}}}
    for status, meaning in PROBLEMS.items():
        if status not in unlikely:
            operation["responses"][status] = {"description": meaning, "content": content}
    for status, (meaning, shape) in EXTRA_RESPONSES.get(operation["operationId"], {}).items():
        (schema,), _ = msgspec.json.schema_components([shape], ref_template=f"{SCHEMAS}{{name}}")
        operation["responses"][status] = {"description": meaning} | (
            {"content": {JSON: {"schema": schema}}} if shape is not None else {}
        )
    for parameter in operation.get("parameters", []):
        parameter["schema"] = _simple(parameter)


def _simple(parameter: Json) -> Json:
    """Return the schema of a parameter: never null, at least 0 if it has a maximum, and a name if it is in the path."""
    if parameter["in"] == "path":
        return {"type": "string", "pattern": NAME, "minLength": 1, "maxLength": 200}
    schema: Json = parameter["schema"]
    given, _null = schema.pop("oneOf", [{}, None])
    schema = {**given, **schema}
    return {"minimum": 0, **schema} if "maximum" in schema else schema
