"""The OpenAPI 3.1 document: Litestar finds routes, parameters and answers; what it cannot know is said here.

routes --Litestar--> document --+ the bodies (decoded by ourselves, strictly)
                                + the problems that each operation may answer with
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
    "404": "There is nothing of this name.",
    "408": "The request did not arrive in time.",
    "409": "The task, or others, are in a state that does not allow it.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "422": "A field or parameter is not what it must be; `errors` says which and why.",
    "429": "Too many requests, or the backlog is full: come again after Retry-After seconds.",
    "503": "The store is away, or this cannot be served now: come again after Retry-After seconds.",
    "500": "The server failed.",
}
JSON = "application/json"
SCHEMAS = "#/components/schemas/"
SHOWN = (Task, TaskPage, StatsView, Accepted, Problem)
OF_NAMES = {"404"}
OF_BODIES = {"400", "413", "415"}
KEY = {
    "name": "Idempotency-Key", "in": "header", "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
    "description": "The same key again adds nothing, and gives what there is.",
}  # fmt: skip


MORE: dict[str, dict[str, tuple[str, Any]]] = {  # what only handlers know: operation -> status -> answer
    "add_tasks": {"200": ("All of it was there already.", Accepted | list[Accepted])},
    "wait_for_task": {"202": ("The time is over, and the task has not ended.", Task)},
    "delete_task": {"200": ("The task ran, and is cancelled.", Task), "204": ("The task is removed.", None)},
}  # fmt: skip


def describe(handlers: Sequence[HTTPRouteHandler]) -> Json:
    """The document for these routes. It is made once, when the server starts."""
    config = OpenAPIConfig(
        TITLE, VERSION, use_handler_docstrings=True, summary="Add, watch and change tasks, from any language.",
        operation_id_creator=lambda handler, method, path: handler.handler_name,
    )  # fmt: skip
    document: Json = Litestar([*handlers], openapi_config=config, logging_config=None).openapi_schema.to_schema()
    document["servers"] = [{"url": "."}]  # wherever this document is, behind whatever prefix
    bodies = {handler.handler_name: handler.opt["body"].shape for handler in handlers if "body" in handler.opt}
    schemas, components = msgspec.json.schema_components([*bodies.values(), *SHOWN], ref_template=f"{SCHEMAS}{{name}}")
    document["components"]["schemas"].update(components)
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    paths: dict[str, dict[str, Json]] = document["paths"]
    needs = {handler.handler_name: handler.opt["needs"] for handler in handlers}
    for path, item in paths.items():
        for operation in item.values():
            body = dict(zip(bodies, schemas, strict=False)).get(operation["operationId"])
            _complete(operation, path, needs[operation["operationId"]], body)
    paths["/tasks"]["post"]["parameters"] = [KEY]
    return document


def _complete(operation: Json, path: str, needs: str, body: Json | None) -> None:
    """Adds who may use the operation, and what it may answer with."""
    operation["description"] += f"\n\nNeeds {'no token' if needs == 'nothing' else f'a token of scope {needs}'}."
    operation["security"] = [] if needs == "nothing" else [{"token": []}, {}]
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": body}}}
    unlikely = (OF_NAMES if "{" not in path else set()) | (OF_BODIES if body is None else set())
    content = {"application/problem+json": {"schema": {"$ref": f"{SCHEMAS}Problem"}}}
    for status, meaning in PROBLEMS.items():
        if status not in unlikely:
            operation["responses"][status] = {"description": meaning, "content": content}
    for status, (meaning, shape) in MORE.get(operation["operationId"], {}).items():
        (schema,), _ = msgspec.json.schema_components([shape], ref_template=f"{SCHEMAS}{{name}}")
        operation["responses"][status] = {"description": meaning} | (
            {"content": {JSON: {"schema": schema}}} if shape is not None else {}
        )
    for parameter in operation.get("parameters", []):
        parameter["schema"] = _simple(parameter)


def _simple(parameter: Json) -> Json:
    """Its schema: what may be missing cannot be null, what has a maximum is not below 0, what stands in a path is a
    name."""
    if parameter["in"] == "path":
        return {"type": "string", "pattern": NAME, "minLength": 1, "maxLength": 200}
    schema: Json = parameter["schema"]
    given, _null = schema.pop("oneOf", [{}, None])
    schema = {**given, **schema}
    return {"minimum": 0, **schema} if "maximum" in schema else schema
