"""The HTTP application: endpoints, their description, and the middleware around them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from codellama_jax.errors import UserError
from codellama_jax.serving import answers, llama_cpp, metrics, openai, openapi, page
from codellama_jax.serving.errors import ApiError
from codellama_jax.serving.guard import GONE, Guard, Rules, error_response
from codellama_jax.serving.openapi import Operation
from codellama_jax.serving.service import Service
from codellama_jax.serving.streaming import ClientGone


def make_app(service: Service, rules: Rules) -> ASGIApp:
    """Returns the application that serves a model by these rules."""
    operations = _operations(service)
    routes = []
    for operation in operations:
        routes.append(Route(operation.path, operation.endpoint, methods=[operation.method]))
    paths = [operation.path for operation in operations]
    # Made once: the description does not change while the server runs.
    description = openapi.description(service.features.name, operations)

    async def described(request: Request) -> Response:
        return JSONResponse(description)

    async def measured(request: Request) -> Response:
        return PlainTextResponse(
            metrics.text(service.worker, guard.requests), media_type=metrics.CONTENT_TYPE
        )

    # These are left out of the description: they are not for programs that use the model.
    routes += [
        Route("/openapi.json", described),
        Route("/metrics", measured),
        Route("/", page.index),
        Route("/page/{path:path}", page.static),
    ]
    # Starlette raises an error without a handler again after its answer, and the guard prints it.
    handlers: dict[Any, Any] = {
        HTTPException: _http_error,
        ApiError: _api_error,
        UserError: _user_error,
        RecursionError: _nested,
        ClientGone: _gone,
        Exception: _internal_error,
    }
    app: ASGIApp = Starlette(routes=routes, exception_handlers=handlers)
    # The guard is outside the routes, so that paths that do not exist need a key as well.
    guard = Guard(app, rules, [*paths, "/openapi.json", "/metrics", "/"])
    # Without allowed origins no answer carries CORS headers, and browsers show it to no other page.
    if not rules.origins:
        return guard
    return CORSMiddleware(
        guard,
        allow_origins=list(rules.origins),
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-api-key"],
    )


def _operations(service: Service) -> list[Operation]:
    """Returns the endpoints that the description names."""
    editor, client = llama_cpp.LlamaCpp(service), openai.OpenAI(service)
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    # One table: its rows are the routes, the checks of requests, and the description in OpenAPI.
    return [
        Operation(
            "POST", "/v1/completions", client.completions, answers.COMPLETION, openai.COMPLETION
        ),
        Operation("POST", "/v1/fim/completions", client.fim, answers.CHAT, openai.FIM),
        Operation("POST", "/v1/chat/completions", client.chat, answers.CHAT, openai.CHAT, chat),
        Operation("GET", "/v1/models", client.models, answers.MODELS),
        Operation("GET", "/v1/models/{name:path}", client.model, answers.MODEL),
        Operation("POST", "/infill", editor.infill, answers.GENERATED, llama_cpp.INFILL),
        Operation(
            "POST", "/completion", editor.completion, answers.GENERATED, llama_cpp.COMPLETION
        ),
        Operation("POST", "/tokenize", editor.tokenize, answers.TOKENIZED, llama_cpp.TOKENIZE),
        Operation(
            "POST", "/detokenize", editor.detokenize, answers.DETOKENIZED, llama_cpp.DETOKENIZE
        ),
        Operation("GET", "/health", editor.health, answers.HEALTH),
        Operation("GET", "/v1/health", editor.health, answers.HEALTH),
        Operation("GET", "/props", editor.props, answers.PROPERTIES),
        Operation("GET", "/slots", editor.slots, answers.SLOTS),
    ]


async def _http_error(request: Request, error: HTTPException) -> Response:
    """Answers a path or method that does not exist."""
    phrase = HTTPStatus(error.status_code).phrase.lower()
    message = f"{phrase}: see /openapi.json for the endpoints"
    return error_response(ApiError(error.status_code, message), dict(error.headers or {}))


async def _user_error(request: Request, error: UserError) -> Response:
    return error_response(ApiError(400, str(error)))


async def _nested(request: Request, error: RecursionError) -> Response:
    return error_response(ApiError(400, "the body is nested too deeply", code="invalid_json"))


async def _gone(request: Request, error: ClientGone) -> Response:
    return Response(status_code=GONE)  # nobody reads it


async def _internal_error(request: Request, error: Exception) -> Response:
    return error_response(ApiError(500, "internal error"))


async def _api_error(request: Request, error: ApiError) -> Response:
    return error_response(error)
