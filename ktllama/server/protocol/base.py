"""What all bodies share: strict types, no unknown fields, and null for "not set"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

MAX_STOPS = 16
#: Fields that no object here has, before all of them are refused in one word.
_MAX_UNKNOWN_FIELDS = 100
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

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: Any) -> Any:
        """Each unknown field is a fault of its own, and a hostile body holds a million."""
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + _MAX_UNKNOWN_FIELDS:
            raise PydanticCustomError(
                "too_many_fields", "has {count} fields, most of them unknown", {"count": len(value)}
            )
        return value


def branch_name(name: str) -> str:
    """What a discriminator gives for a union's branch.

    pydantic puts it among the keys that lead to a fault, so it must not look like one.
    """
    return f"({name})"


def branch(name: str) -> Tag:
    """A union's branch."""
    return Tag(branch_name(name))


def is_branch(step: str | int) -> bool:
    """Whether a step on the way to a fault is the name of a branch."""
    return isinstance(step, str) and step.startswith("(") and step.endswith(")")


def items(*, min_length: int | None = None, max_length: int | None = None) -> Any:
    """The bounds of a list. It ends at its first wrong item: a million faults take seconds and gigabytes to list."""
    return Field(fail_fast=True, min_length=min_length, max_length=max_length)


def text_or_list(value: Any) -> str:
    """The branch of what may be one text or a list."""
    return branch_name("list" if isinstance(value, list) else "text")


def _not_empty(stops: list[str]) -> list[str]:
    if "" in stops:
        raise PydanticCustomError("empty_stop", "a stop text must not be empty")
    return stops


def _not_empty_text(stop: str) -> str:
    _not_empty([stop])
    return stop


Stop = Annotated[
    Annotated[str, AfterValidator(_not_empty_text), branch("text")]
    | Annotated[list[str], items(max_length=MAX_STOPS), AfterValidator(_not_empty), branch("list")],
    Discriminator(text_or_list),
]

TokenId = Annotated[int, Field(ge=0, lt=TOKEN_LIMIT)]


def refused(reason: str) -> Any:
    """A field that is known and cannot be honoured: null is all it may be."""
    return AfterValidator(Only((), reason))


def only(*values: Any, reason: str) -> Any:
    """A field that may say nothing but `values`."""
    return AfterValidator(Only(values, reason))
