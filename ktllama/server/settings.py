"""What `ktllama serve` may be told: by flags, by ``KTLLAMA_*`` variables, by a TOML file; the first of these wins.

A field has one name: ``max_body`` is ``--max-body``, ``KTLLAMA_MAX_BODY`` and the file's key ``max_body``. A key or a
variable of another name is an error, never ignored.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from ktllama.errors import KtllamaError
from ktllama.model.kv_cache import CACHE_TYPES
from ktllama.units import parse_bytes

PREFIX = "KTLLAMA_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One setting that cannot be used. ``where`` is the flag, the variable, or the file and its key."""

    where: str
    message: str


class SettingsError(KtllamaError):
    """Settings that cannot be used; ``faults`` holds every one of them."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        self.faults = faults
        super().__init__(faults)

    @property
    def lines(self) -> tuple[str, ...]:
        """A line a fault."""
        return tuple(f"{fault.where}: {fault.message}" for fault in self.faults)

    def __str__(self) -> str:
        return "\n".join(self.lines)


def _size(given: object) -> object:
    if not isinstance(given, str):
        return given
    try:
        return parse_bytes(given)
    except ValueError:
        raise ValueError(f"{given!r} is no size; expected a number of bytes such as 33554432 or 32M") from None


def _words(given: object) -> object:
    return tuple(word.strip() for word in given.split(",") if word.strip()) if isinstance(given, str) else given


def _cache_type(given: str) -> str:
    if given not in CACHE_TYPES:
        raise ValueError(f"{given!r} is not one of {', '.join(CACHE_TYPES)}")
    return given


Size = Annotated[int, BeforeValidator(_size), Field(ge=1)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]


class ServeSettings(BaseSettings):
    """Everything about a server. Sizes are bytes, times seconds, contexts tokens."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, protected_namespaces=()
    )

    # the model and where it goes
    model: str | None = None
    rules: str | None = None
    alias: str | None = Field(default=None, min_length=1, max_length=200)
    device_map: Words = ()
    default_device: str = "cuda:0"
    budget: Words = ()
    load_mode: Literal["auto", "none", "mmap", "mlock"] = "auto"
    stand_ins: bool = False

    # the context: ctx counts the tokens of all requests together, parallel is how many run at once
    ctx: int = Field(default=8192, ge=1, le=1 << 24)
    parallel: int = Field(default=16, ge=1, le=256)
    ubatch: int = Field(default=512, ge=2, le=65536)
    kv_type: Annotated[str, Field(), BeforeValidator(lambda given: _cache_type(str(given)))] = "f16"
    flash_attn: Literal["auto", "on", "off"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=512)
    queue_limit: int = Field(default=2048, ge=0, le=1 << 20)
    stream_interval: float = Field(default=0.01, ge=0, le=1, allow_inf_nan=False)  # 0: every token at once

    # what requests mean
    system_prompt: Literal["auto", "merge", "keep"] = "auto"
    reasoning_format: Literal["none", "deepseek", "deepseek-legacy"] = "deepseek"
    reasoning_budget: int | None = Field(default=None, ge=0, le=1 << 24)
    reasoning_budget_message: str = Field(default="", max_length=4096)
    max_tokens: int | None = Field(default=32_768, ge=1, le=1 << 24)
    lenient: bool = False

    # who may ask, from where
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8080, ge=0, le=65535)
    api_key_file: str | None = None
    insecure: bool = False
    cors_origin: Words = ()
    allowed_host: Words = ()

    # how much, how long
    max_body: Size = 32 << 20
    max_header: Size = 32 << 10
    max_messages: int = Field(default=4096, ge=1)
    max_connections: int = Field(default=4096, ge=1)
    header_timeout: Seconds = 15.0
    body_timeout: Seconds = 60.0
    write_timeout: Seconds = 60.0
    keep_alive: Seconds = 75.0
    drain_timeout: Seconds | None = None

    # how patient to be with the engine: until silence, or one step, is called unresponsive, and until it is ended
    silence_timeout: Seconds = 20.0
    step_timeout: Seconds = 300.0
    hang_timeout: float = Field(default=900.0, ge=0, le=86400, allow_inf_nan=False)  # 0: never

    # what is written down
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "text"
    log_prompts: bool = False

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_is_a_number(cls, given: object, info: ValidationInfo) -> object:
        assert info.field_name is not None
        if isinstance(given, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError(f"{str(given).lower()} is not what is expected here")
        return given

    @field_validator("cors_origin")
    @classmethod
    def _origins(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for origin in given:
            if origin != "*" and (not origin.startswith(("http://", "https://")) or origin.count("/") != 2):
                raise ValueError(f"{origin!r} is no origin; expected * or such as https://chat.example.org")
        return given

    def public(self) -> dict[str, Any]:
        """The settings as they may be shown to clients: no path of a secret, only whether there is one."""
        shown = self.model_dump(mode="json", exclude={"api_key_file", "model", "rules"})
        return {**shown, "api_key": self.api_key_file is not None}


def read(
    flags: Mapping[str, object], *, environ: Mapping[str, str] | None = None, file: str | None = None
) -> ServeSettings:
    """The settings: ``flags`` before the environment, the environment before ``file``, defaults last.

    ``flags`` holds only what was given. ``environ`` is for the check of names (the process's own by default; values are
    read from the process's environment). Without ``file`` the variable ``KTLLAMA_CONFIG`` may name one.

    Raises:
        SettingsError: with every fault of names and values at once.
    """
    environ = os.environ if environ is None else environ
    given: dict[str, Any] = dict(flags)
    file = file or environ.get(f"{PREFIX}CONFIG") or None
    keys = _keys(file) if file else ()
    faults = [*_unknown_variables(environ), *_unknown_keys(file, keys)]
    try:
        settings = _sourced(file)(**given)
    except ValidationError as fault:
        faults += _value_faults(fault, flags, environ, file)
    if faults:
        raise SettingsError(tuple(faults))
    return ServeSettings.model_construct(**settings.__dict__)


def _sourced(file: str | None) -> type[ServeSettings]:
    """The settings class, reading ``file`` after the environment."""

    class Sourced(ServeSettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            if file is None:
                return init_settings, env_settings
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, Path(file))

    return Sourced


def _keys(file: str) -> tuple[str, ...]:
    try:
        with Path(file).open("rb") as stream:
            return tuple(tomllib.load(stream))
    except OSError as fault:
        raise SettingsError((Fault(where=file, message=fault.strerror or str(fault)),)) from fault
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise SettingsError((Fault(where=file, message=f"not TOML: {fault}"),)) from fault


def _unknown_variables(environ: Mapping[str, str]) -> list[Fault]:
    known = {f"{PREFIX}{name.upper()}" for name in (*ServeSettings.model_fields, "config")}
    return [
        Fault(where=name, message=f"no such setting{_near(name, known)}")
        for name in sorted(environ)
        if name.upper().startswith(PREFIX) and name.upper() not in known
    ]


def _unknown_keys(file: str | None, keys: tuple[str, ...]) -> list[Fault]:
    known = set(ServeSettings.model_fields)
    return [
        Fault(where=f"{file}: {key}", message=f"no such setting{_near(key, known)}") for key in keys if key not in known
    ]


def _near(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _value_faults(
    fault: ValidationError, flags: Mapping[str, object], environ: Mapping[str, str], file: str | None
) -> list[Fault]:
    found = []
    variables = {name.upper() for name, value in environ.items() if value}
    for error in fault.errors(include_url=False, include_context=False):
        name = str(error["loc"][0])
        if error["type"] == "extra_forbidden":
            continue  # a key of the file, told apart from the start
        if name in flags:
            where = f"--{name.replace('_', '-')}"
        elif f"{PREFIX}{name.upper()}" in variables:
            where = f"{PREFIX}{name.upper()}"
        else:
            where = f"{file}: {name}"
        found.append(Fault(where=where, message=_sentence(error["msg"], error["input"])))
    return found


def _sentence(message: str, given: object) -> str:
    text = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if text != message:
        return text
    shown = repr(given)
    return f"{text[:1].lower()}{text[1:]}, got {shown if len(shown) <= 60 else shown[:59] + '…'}"
