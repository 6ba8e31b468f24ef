"""The OpenAPI 3.1 document, made of the table of operations.

operations --> for each: scope, parameters, body, responses, and the problems that it may return
structs -----> schemas
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from dtq.api.problems import MEDIA_TYPE
from dtq.api.requests import JSON, NAME
from dtq.api.responses import Problem
from dtq.api.routing import Operation

Json = dict[str, Any]
INFO = {"title": "dtq", "version": "1", "summary": "Add, watch and change tasks, from any language."}
SCHEMAS = "#/components/schemas/{name}"
PROBLEMS = {
    400: "The request is malformed.",
    401: "A token is needed.",
    403: "The token's scope, the Host or the Origin does not allow it.",
    404: "Nothing has this name.",
    408: "The request did not arrive in time.",
    409: "The state of this task, or of others, does not allow it.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "A field or parameter is not allowed; `errors` names each, and the reason.",
    429: "Too many requests, or the backlog is full: try again after Retry-After seconds.",
    431: "The request line and the headers are too large.",
    500: "The server failed.",
    503: "The store cannot be reached, or the server is at a limit: try again after Retry-After seconds.",
}
ONLY_WITH_NAME = {404}
ONLY_WITH_BODY = {413, 415}
ONLY_WITH_SCOPE = {401, 429}


def describe(operations: Sequence[Operation]) -> Json:
    """Return the document for these operations."""
    documented = [operation for operation in operations if operation.responses]
    paths: dict[str, Json] = {}
    for operation in documented:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    requests = _schemas(operation.body for operation in documented if operation.body is not None)
    responses = _schemas(shape for operation in documented for shape in (*operation.responses.values(), Problem))
    for schema in requests.values():
        _make_optional(schema.get("properties", {}))
    return {
        "openapi": "3.1.0",
        "info": INFO,
        "servers": [{"url": "."}],  # relative to this document, so that any prefix of a proxy fits
        "paths": paths,
        "components": {
            "schemas": responses | requests,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation) -> Json:
    scope, body = operation.scope, operation.body
    needs = "no token" if scope is None else f"a token of scope {scope}"
    described: Json = {
        "operationId": operation.handler.__name__,
        "description": f"{inspect.getdoc(operation.handler)}\n\nNeeds {needs}.",
        "security": [] if scope is None else [{"token": []}, {}],
        "parameters": list(_parameters(operation)),
        "responses": {str(status): response for status, response in sorted(_responses(operation).items())},
    }
    if body is not None:
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": _schema(body)}}}
    return described


def _parameters(operation: Operation) -> Iterable[Json]:
    for name in operation.names:
        schema = {"type": "string", "pattern": NAME, "minLength": 1, "maxLength": 200}
        yield {"name": name, "in": "path", "required": True, "schema": schema, "description": "Write / in it as %2F."}
    for place, struct in (("query", operation.query), ("header", operation.headers)):
        if struct is not None:
            for name, schema in _schemas([struct])[struct.__name__]["properties"].items():
                description = schema.pop("description", "")
                yield {"name": name, "in": place, "required": False, "schema": schema, "description": description}


def _responses(operation: Operation) -> dict[int, Json]:
    excluded = {
        *(() if operation.names else ONLY_WITH_NAME),
        *(() if operation.body is not None else ONLY_WITH_BODY),
        *(() if operation.scope is not None else ONLY_WITH_SCOPE),
    }
    problem = {MEDIA_TYPE: {"schema": _schema(Problem)}}
    responses: dict[int, Json] = {
        status: {"description": meaning, "content": problem}
        for status, meaning in PROBLEMS.items() if status not in excluded
    }  # fmt: skip
    for status, shape in operation.responses.items():
        responses[status] = {"description": HTTPStatus(status).phrase}
        if shape is not None:
            responses[status]["content"] = {operation.media_type: {"schema": _schema(shape)}}
    return responses


def _schema(shape: Any) -> Json:
    (schema,), _ = msgspec.json.schema_components([shape], ref_template=SCHEMAS)
    return schema


def _schemas(shapes: Iterable[Any]) -> dict[str, Json]:
    _, components = msgspec.json.schema_components(
        [shape for shape in shapes if shape is not None], ref_template=SCHEMAS
    )
    return components


def _make_optional(properties: dict[str, Json]) -> None:
    """Describe the defaults of a request in words: generators of clients take a field with a default as one that is
    always there, as it is in responses."""
    for schema in properties.values():
        default = schema.pop("default", None)
        if default not in (None, [], ""):
            words = f"default: {msgspec.json.encode(default).decode()}"
            schema["description"] = f"{schema['description']}; {words}" if "description" in schema else words
