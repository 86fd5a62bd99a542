"""``/health``, ``/metrics``, ``/props`` and ``/v1/models``: what a server says about itself."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ktllama import __version__
from ktllama.engine.errors import EngineRequestError
from ktllama.engine.messages import ModelInfo
from ktllama.server.errors import ApiError
from ktllama.server.metrics import CONTENT_TYPE, Metrics
from ktllama.server.model_names import names_of
from ktllama.server.state import ServerState, server_state
from ktllama.server.surroundings import Surroundings

router = APIRouter()

#: How long a scrape waits for the engine's newest numbers; a step of a large model may take longer.
_STATS_SECONDS = 0.5


@router.get("/health", tags=["server"], summary="Whether requests are taken now")
async def health(request: Request) -> Response:
    """200 while requests are taken, otherwise 503; `state` says why. Needs no key."""
    state = server_state(request)
    client = state.client
    said: dict[str, Any] = {"status": "ok" if client.state == "ready" else client.state, "restarts": client.restarts}
    if client.state in ("starting", "loading", "restarting"):
        said["progress"] = round(client.load_fraction, 4)
    if client.state == "unresponsive":
        said["complaint"] = client.complaint
    elif client.failure is not None and client.state != "ready" and _surroundings(request).keys is None:
        said["failure"] = client.failure
    headers = {} if client.state in ("ready", "failed", "stopped") else {"Retry-After": "1"}
    return JSONResponse(said, 200 if client.state == "ready" else 503, headers)


@router.get("/metrics", tags=["server"], summary="Prometheus metrics")
async def metrics(request: Request) -> Response:
    """Counts and times in Prometheus' text format."""
    state = server_state(request)
    if not isinstance(state.observer, Metrics):
        raise ApiError(404, "this server keeps no metrics")
    if state.client.state == "ready":
        with contextlib.suppress(EngineRequestError, TimeoutError):
            await asyncio.wait_for(state.client.stats(), _STATS_SECONDS)
    return Response(state.observer.page(), media_type=CONTENT_TYPE)


@router.get("/props", tags=["server"], summary="The model, its placement, and the settings")
async def props(request: Request) -> Response:
    """What runs here and where; holds no key and no path. `model` is null until it is loaded."""
    state = server_state(request)
    client = state.client
    model = client.model
    said: dict[str, Any] = {
        "version": __version__,
        "state": client.state,
        "progress": round(client.load_fraction, 4),
        "restarts": client.restarts,
        "failure": client.complaint or client.failure,
        "model": None if model is None else {"name": _name(state, model), **_described(model)},
        "plan": [] if model is None else list(model.plan),
        "devices": [] if model is None else list(model.devices),
        "build": None if model is None else model.build,
        "profile": dataclasses.asdict(state.profile) if client.state == "ready" else None,
        "settings": dict(_surroundings(request).shown),
    }
    return JSONResponse(said)


@router.get("/v1/models", tags=["models"], summary="The model that is served")
async def models(request: Request) -> Response:
    """A list of one."""
    state = server_state(request)
    return JSONResponse({"object": "list", "data": [_entry(state, state.model)]})


@router.get("/v1/models/{name:path}", tags=["models"], summary="One model")
async def one_model(request: Request, name: str) -> Response:
    """The model, by its name or one of the other names that it answers to."""
    state = server_state(request)
    model = state.model
    if name not in names_of(state):
        raise ApiError(
            404, f"there is no model {name!r}; this server has {_name(state, model)!r}", code="model_not_found"
        )
    return JSONResponse(_entry(state, model))


def _entry(state: ServerState, model: ModelInfo) -> dict[str, Any]:
    return {
        "id": _name(state, model),
        "object": "model",
        "created": state.started,
        "owned_by": "ktllama",
        "meta": _described(model),
    }


def _name(state: ServerState, model: ModelInfo) -> str:
    return state.settings.model_alias or model.name


def _described(model: ModelInfo) -> dict[str, Any]:
    return {
        "architecture": model.architecture,
        "n_ctx": model.n_ctx,
        "n_ctx_train": model.n_ctx_train,
        "n_parallel": model.n_parallel,
        "n_ubatch": model.n_ubatch,
        "vocab_size": model.vocab_size,
        "can_embed": model.can_embed,
        "can_share_prefix": model.can_share_prefix,
        "load_seconds": round(model.load_seconds, 3),
    }


def _surroundings(request: Request) -> Surroundings:
    found = getattr(request.app.state, "surroundings", None)
    return found if isinstance(found, Surroundings) else Surroundings()
