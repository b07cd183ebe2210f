"""The description of the endpoints in OpenAPI 3.1, made from the tables that check requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from codellama_jax.serving.fields import Field, schema

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
# Of each event: OpenAPI 3.1 has no schema of a stream, and validators apply this to its events.
STREAM = {
    "schema": {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "string"}},
    }
}
REFUSED = {
    "400": "a field is missing or wrong",
    "401": "the API key is missing or wrong",
    "403": "the origin or host is not allowed",
    "404": "there is no such model",
    "408": "the body came too slowly",
    "413": "the body is too large",
    "429": "the queue is full",
    "503": "the server starts, stops, or is out of memory",
}


class Operation(NamedTuple):
    """An endpoint.

    Attributes:
      method, path: what it answers.
      endpoint: the function that answers.
      answer: the JSON schema of its answers with status 200.
      fields: of its body; None without a body.
      example: a body that is right.
    """

    method: str
    path: str
    endpoint: Callable[[Request], Awaitable[Response]]
    answer: dict[str, Any]
    fields: Sequence[Field] | None = None
    example: dict[str, Any] | None = None


def description(model: str, operations: Sequence[Operation]) -> dict[str, Any]:
    """Returns the description of endpoints."""
    paths: dict[str, Any] = {}
    for method, path, _, answer, fields, example in operations:
        # `:path` is Starlette's mark for a name with slashes; OpenAPI has no such converter.
        path = path.replace(":path}", "}")
        operation: dict[str, Any] = {
            "operationId": f"{method.lower()}{path}".replace("/", "_").strip("_"),
            "responses": _responses(answer, fields),
        }
        if "{" in path:
            name = path.partition("{")[2].partition("}")[0]
            parameter = {"name": name, "in": "path", "required": True}
            operation["parameters"] = [parameter | {"schema": {"type": "string"}}]
        # A GET request has no body.
        if fields is not None:
            body = {"schema": schema(fields)} | ({"example": example} if example else {})
            content = {"application/json": body}
            operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(path, {})[method.lower()] = operation
    # The empty object makes the key optional, since a server may run without one.
    security: list[dict] = [{}, {"key": []}]
    schemes = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"codellama_jax: {model}", "version": "1"},
        "paths": paths,
        "security": security,
        "components": {"securitySchemes": schemes, "schemas": {"Error": ERROR}},
    }


def _responses(answer: dict[str, Any], fields: Sequence[Field] | None) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": answer}}
    names = [field.name for field in fields or ()]
    # An endpoint with the field `stream` answers in one of two forms.
    if "stream" in names:
        content["text/event-stream"] = STREAM
    responses: dict[str, Any] = {"200": {"description": "the answer", "content": content}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for status, meaning in REFUSED.items():
        responses[status] = {"description": meaning, "content": error}
    return responses
