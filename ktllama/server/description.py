"""The API's description: /openapi.json, and /docs from files that came with the installation, so it works offline."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from ktllama.server.protocol.answers import EXAMPLES, SCHEMAS
from ktllama.server.protocol.chat import ChatRequest
from ktllama.server.protocol.completion import CompletionRequest
from ktllama.server.protocol.embedding import EmbeddingRequest
from ktllama.server.protocol.tokens import DetokenizeRequest, TokenizeRequest

_REQUESTS = (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    TokenizeRequest,
    DetokenizeRequest,
)
# Swagger UI 4.15, which swagger-ui-bundle carries, reads OpenAPI up to 3.0
_VERSION = "3.0.3"
_COMPONENT = "#/components/schemas/"
ASSETS = "/docs/assets"


def body_of(tag: str, summary: str, request: str, answer: str, *, streams: bool = False) -> dict[str, Any]:
    """The arguments of a route whose body is read by `bodies`: what the description says of it, under `tag`."""
    content = {"application/json": {"schema": _ref(answer)}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string", "description": "Server-sent events."}}
    error = {"application/json": {"schema": _ref("ErrorAnswer")}}
    return {
        "tags": [tag],
        "summary": summary,
        "response_model": None,
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _ref(request), "example": EXAMPLES[request]}},
            }
        },
        "responses": {
            200: {"description": "The answer.", "content": content},
            400: {"description": "A body that cannot be honoured; `param` names the field.", "content": error},
            429: {"description": "The queue is full; Retry-After says when to come back.", "content": error},
            503: {"description": "The model is being loaded, or the engine died.", "content": error},
        },
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"{_COMPONENT}{name}"}


def install(app: FastAPI) -> None:
    """Add /docs, its files, and a description with the schemas of every body."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _openapi(app)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        return get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title="ktllama",
            swagger_js_url=f"{root}{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{root}{ASSETS}/favicon-32x32.png",
            swagger_ui_parameters={"defaultModelsExpandDepth": 0, "tryItOutEnabled": True},
        )

    from swagger_ui_bundle import swagger_ui_path

    app.mount(ASSETS, StaticFiles(directory=swagger_ui_path), name="swagger-ui")


def _openapi(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version=_VERSION,
        description="DeepSeek-R1 and its kin over OpenAI's and DeepSeek's API.",
        routes=app.routes,
    )
    requests = [(model, "validation") for model in _REQUESTS]
    answers = [(model, "serialization") for model in SCHEMAS]
    _, schemas = models_json_schema([*requests, *answers], ref_template=_COMPONENT + "{model}")  # type: ignore[list-item]
    components = made.setdefault("components", {}).setdefault("schemas", {})
    components.update({name: _as_3_0(schema) for name, schema in schemas["$defs"].items()})
    return made


def _as_3_0(schema: Any) -> Any:
    """A schema of 2020-12 in the words of OpenAPI 3.0."""
    if isinstance(schema, list):
        return [_as_3_0(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _as_3_0(value) for key, value in schema.items()}
    if "const" in made:
        made["enum"] = [made.pop("const")]
    for bound, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(made.get(flag), int | float) and not isinstance(made.get(flag), bool):
            made[bound], made[flag] = made[flag], True
    if isinstance(made.get("anyOf"), list) and {"type": "null"} in made["anyOf"]:
        others = [part for part in made.pop("anyOf") if part != {"type": "null"}]
        made["nullable"] = True
        if len(others) == 1 and "$ref" not in others[0]:
            made = {**others[0], **made}
        else:
            made["allOf" if len(others) == 1 else "anyOf"] = others
    return made
