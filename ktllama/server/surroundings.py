"""What stands around the endpoints: who may ask, how much, and what is written down about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from ktllama.server.access import HostCheck, KeyCheck, Keys
from ktllama.server.limits import BodyLimit, Limits
from ktllama.server.logs import RequestLog
from ktllama.server.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Without ``keys`` everyone may ask. ``loopback_names``, None where the server is for other machines too, are
    names that requests may be addressed to besides this machine's own. ``shown`` is the settings that clients may see.
    """

    limits: Limits = field(default_factory=Limits)
    keys: Keys | None = None
    loopback_names: tuple[str, ...] | None = ()
    cors_origins: tuple[str, ...] = ()
    log_prompts: bool = False
    shown: Mapping[str, Any] = field(default_factory=dict)


def surrounded(app: FastAPI, surroundings: Surroundings, metrics: Metrics | None = None) -> ASGIApp:
    """``app`` behind its guards. From the outside in: log, name, origin, key, body.

    All are plain ASGI: a wrapper that makes a response object of every answer would hold back streams. What they do
    to the pieces of a stream is nothing, so these go past them once the first is sent; no layer that changes pieces may
    stand within the log. A preflight request carries no key, so origins are looked at before keys.
    """
    app.state.surroundings = surroundings
    guarded: ASGIApp = BodyLimit(app, surroundings.limits)
    if surroundings.keys is not None:
        guarded = KeyCheck(guarded, surroundings.keys)
    if surroundings.cors_origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=surroundings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("x-request-id", "retry-after"),
        )
    if surroundings.loopback_names is not None:
        guarded = HostCheck(guarded, surroundings.loopback_names)
    return RequestLog(guarded, counter=metrics, log_prompts=surroundings.log_prompts)
