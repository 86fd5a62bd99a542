"""The application: endpoints, errors in OpenAI's envelope, the API's description. `surroundings` goes around it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from ktllama import __version__
from ktllama.server import chat, completions, description, embeddings, errors, observing, tokens
from ktllama.server.state import ServerState

# FastAPI 0.165 wraps every request, and every chunk of a stream, in OpenTelemetry where that is installed. /metrics is
# what this server tells. Older versions do not know the argument and keep it unused.
_NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def create_app(state: ServerState) -> FastAPI:
    """The ASGI application of one server. Starts nothing: the life cycle belongs to `serving`."""
    app = FastAPI(title="ktllama", version=__version__, docs_url=None, redoc_url=None, telemetry=_NO_TELEMETRY)
    app.state.server = state
    errors.install(app)
    description.install(app)
    for endpoint in (chat, completions, embeddings, tokens, observing):
        app.include_router(endpoint.router)
    return app
