"""The application: endpoints, errors in OpenAI's envelope, the API's description. `surroundings` goes around it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from ktllama import __version__
from ktllama.server import chat, completions, description, embeddings, errors, observing, tokens
from ktllama.server.state import ServerState

# FastAPI 0.165 wraps every request, and every chunk of a stream, in OpenTelemetry where that is installed. /metrics is
# what this server tells. Older versions do not know the argument and keep it unused.
_NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}

_ENDPOINTS = (chat, completions, embeddings, tokens, observing)


def create_app(state: ServerState) -> FastAPI:
    """The ASGI application of one server. Starts nothing: the life cycle belongs to `serving`."""
    app = FastAPI(title="ktllama", version=__version__, docs_url=None, redoc_url=None, telemetry=_NO_TELEMETRY)
    app.state.server = state
    errors.install(app)
    description.install(app)
    for endpoint in _ENDPOINTS:
        app.include_router(endpoint.router)
    _answer_head(app)
    return app


def _answer_head(app: FastAPI) -> None:
    """HEAD wherever there is GET, as HTTP asks (RFC 9110, 9.1); the HTTP server leaves the body out."""
    for route in [*app.routes, *(route for endpoint in _ENDPOINTS for route in endpoint.router.routes)]:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
