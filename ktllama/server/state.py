"""What the endpoints share: the engine's client, the settings that concern them, and who watches."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from ktllama import __version__
from ktllama.engine.messages import Accepted, Emitted, Failed, Finished, ModelInfo
from ktllama.r1.control_text import ControlStrings
from ktllama.r1.errors import MetadataError, TemplateError
from ktllama.r1.profile import Profile, control_strings, profile_of
from ktllama.r1.template import ChatTemplate
from ktllama.server.errors import ApiError

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from ktllama.engine.client import EngineClient

ReasoningFormat = Literal["none", "deepseek", "deepseek-legacy"]
SystemPrompt = Literal["auto", "merge", "keep"]

# DeepSeek's names for R1 and V3: examples that are written for them run unchanged.
DEEPSEEK_NAMES = ("deepseek-reasoner", "deepseek-chat")


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """How much one request may ask for. A body beyond `body_bytes` is 413, anything else 400."""

    body_bytes: int = 16 * 1024 * 1024
    json_depth: int = 64
    messages: int = 4096
    prompts: int = 256
    choices: int = 16
    choices_of_prompts: int = 256
    tools: int = 128
    text_bytes: int = 1_000_000  # of a text that is only tokenized


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """The settings that change what an endpoint answers.

    `system_prompt` "auto" leaves it to the model's profile. `model_alias` is the name that answers carry; None: the
    model file's. `other_names` are accepted as `model` too. `default_max_tokens` None: to the end of the context.
    `keep_alive_seconds` is the longest silence of an event stream; then a comment is sent so that proxies stay.
    """

    lenient: bool = False
    system_prompt: SystemPrompt = "auto"
    reasoning_format: ReasoningFormat = "deepseek"
    reasoning_budget: int | None = None
    reasoning_budget_message: str = ""
    model_alias: str | None = None
    other_names: tuple[str, ...] = DEEPSEEK_NAMES
    default_max_tokens: int | None = 32_768
    keep_alive_seconds: float = 5.0
    limits: BodyLimits = BodyLimits()


class Observer(Protocol):
    """Sees every choice's events as they pass; for metrics. Called once an event, so it must be quick."""

    def began(self, request_id: str) -> None:
        """A Generate was sent."""

    def saw(self, event: Accepted | Emitted | Finished | Failed) -> None:
        """An event came back; Finished and Failed are the last of their request_id."""

    def left(self, request_id: str) -> None:
        """The request was given up before its end: the client went away, or another choice failed."""


class Unobserved:
    """The observer that looks away."""

    def began(self, request_id: str) -> None:
        """Nothing."""

    def saw(self, event: Accepted | Emitted | Finished | Failed) -> None:
        """Nothing."""

    def left(self, request_id: str) -> None:
        """Nothing."""


@dataclass(slots=True, kw_only=True)
class ServerState:
    """One a server. `profile` and `fingerprint` are made when first asked for, and anew when another model is ready."""

    client: EngineClient
    settings: EndpointSettings = EndpointSettings()
    observer: Observer = field(default_factory=Unobserved)
    started: int = field(default_factory=lambda: int(time.time()))
    _profile: tuple[ModelInfo, Profile] | None = None
    _template: tuple[ModelInfo, ChatTemplate] | None = None
    _control: tuple[ModelInfo, ControlStrings] | None = None
    _fingerprint: tuple[ModelInfo, str] | None = None

    @property
    def model(self) -> ModelInfo:
        """The loaded model. Raises ApiError 503 while there is none, saying why."""
        client = self.client
        if client.state == "ready" and client.model is not None:
            return client.model
        raise not_ready(client.state, client.load_fraction, client.complaint or client.failure)

    @property
    def profile(self) -> Profile:
        """The rules of the loaded model's revision. Raises ApiError 503 while there is no model."""
        model = self.model
        if self._profile is None or self._profile[0] is not model:
            try:
                found = profile_of(typed_metadata(model.metadata), model.chat_template or None)
            except MetadataError as error:
                raise ApiError(503, str(error), code="unusable_model") from error
            self._profile = (model, found)
        return self._profile[1]

    @property
    def template(self) -> ChatTemplate:
        """The loaded model's chat template. Raises ApiError: 503 without a model, 400 for a model without template."""
        model = self.model
        if self._template is None or self._template[0] is not model:
            if not model.chat_template:
                raise ApiError(400, f"the model {model.name} has no chat template; use /v1/completions")
            try:
                found = ChatTemplate(model.chat_template, bos=model.bos, eos=model.eos)
            except TemplateError as error:
                raise ApiError(400, str(error), param="messages", code="template_error") from error
            self._template = (model, found)
        return self._template[1]

    @property
    def control(self) -> ControlStrings:
        """The texts that users must not forge, of the loaded model's vocabulary."""
        model = self.model
        if self._control is None or self._control[0] is not model:
            added = frozenset(model.added_tokens)
            found = control_strings(
                frozenset(model.special_tokens) - added, added, profile=self.profile, template=model.chat_template
            )
            self._control = (model, found)
        return self._control[1]

    @property
    def model_name(self) -> str:
        """What answers carry as `model`."""
        return self.settings.model_alias or self.model.name

    @property
    def fingerprint(self) -> str:
        """Changes when the answer to the same request may: another version, llama.cpp build, model or placement."""
        model = self.model
        if self._fingerprint is None or self._fingerprint[0] is not model:
            parts = (__version__, model.build, model.name, model.architecture, str(model.vocab_size), *model.plan)
            digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
            self._fingerprint = (model, f"fp_{digest[:12]}")
        return self._fingerprint[1]


def typed_metadata(metadata: Mapping[str, str]) -> dict[str, object]:
    """The metadata that the engine sent as texts, with numbers where numbers are meant."""
    typed: dict[str, object] = dict(metadata)
    for key, text in metadata.items():
        if key.startswith("general.sampling.") or key == "general.file_type":
            with suppress(ValueError):
                typed[key] = float(text) if set(text) & set(".eEn") else int(text)
    return typed


def not_ready(state: str, load_fraction: float, reason: str | None) -> ApiError:
    """The 503 of an engine that cannot take a request now; `reason` is what ails it."""
    match state:
        case "starting" | "loading":
            percent = int(load_fraction * 100)
            return ApiError(503, f"the model is being loaded ({percent}%)", code="model_loading", retry_after=5)
        case "restarting":
            return ApiError(503, "the engine died and is being restarted", code="engine_died", retry_after=5)
        case "unresponsive":
            return ApiError(503, f"the engine does not answer: {reason}", code="engine_unresponsive", retry_after=5)
        case "draining" | "stopped":
            return ApiError(503, "the server is shutting down", code="draining", retry_after=5)
        case _:
            return ApiError(503, f"the model cannot be loaded: {reason or state}", code="load_failed")


def server_state(connection: HTTPConnection) -> ServerState:
    """The state of the app that this request came to."""
    found: ServerState = connection.app.state.server
    return found
