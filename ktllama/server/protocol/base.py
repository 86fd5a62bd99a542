"""What all bodies share: strict types, no unknown fields, and null for "not set"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

MAX_STOPS = 16
TOKEN_LIMIT = 2**31


@dataclass(frozen=True, slots=True)
class Only:
    """A field of OpenAI's that is accepted with these values alone: any other would change the answer."""

    values: tuple[Any, ...]
    reason: str

    def __call__(self, value: Any) -> Any:
        """Refuse what cannot be honoured."""
        if value is None or any(value == allowed and type(value) is type(allowed) for allowed in self.values):
            return value
        accepted = " or ".join(_as_json(allowed) for allowed in (*self.values, None))
        raise PydanticCustomError(
            "unsupported_value", "{reason}; accepted: {accepted}", {"reason": self.reason, "accepted": accepted}
        )


def _as_json(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list():
            return "[" + ", ".join(_as_json(part) for part in value) + "]"
        case _:
            return f'"{value}"'


class Body(BaseModel):
    """The base of every body and of the objects inside."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def _text_or_list(value: Any) -> str:
    return "list" if isinstance(value, list) else "text"


def _not_empty(stops: list[str]) -> list[str]:
    if "" in stops:
        raise PydanticCustomError("empty_stop", "a stop text must not be empty")
    return stops


def _not_empty_text(stop: str) -> str:
    _not_empty([stop])
    return stop


Stop = Annotated[
    Annotated[str, AfterValidator(_not_empty_text), Tag("text")]
    | Annotated[list[str], Field(max_length=MAX_STOPS), AfterValidator(_not_empty), Tag("list")],
    Discriminator(_text_or_list),
]

TokenId = Annotated[int, Field(ge=0, lt=TOKEN_LIMIT)]


def refused(reason: str) -> Any:
    """A field that is known and cannot be honoured: null is all it may be."""
    return AfterValidator(Only((), reason))


def only(*values: Any, reason: str) -> Any:
    """A field that may say nothing but `values`."""
    return AfterValidator(Only(values, reason))
