"""What a lenient server leaves out of a body: the fields that it does not know, and those that it cannot honour."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, get_args

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from ktllama.ruleset.wording import shown
from ktllama.server.protocol.base import Only


def leave_out(body: dict[str, Any], model: type[BaseModel]) -> list[str]:
    """Take such fields out of `body`, in one walk along the fields of `model`; their paths."""
    paths: list[str] = []
    _visit(body, [model], "", paths)
    return paths


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value of this type is, or holds as items."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for part in getattr(annotation, "__args__", ()) for found in models_in(part)]


def _visit(value: Any, models: Sequence[type[BaseModel]], at: str, paths: list[str]) -> None:
    if not models:  # what is inside is the client's own
        return
    if isinstance(value, list):
        for place, part in enumerate(value):
            _visit(part, models, f"{at}[{place}]", paths)
    elif isinstance(value, dict):
        fields = [_fields(model) for model in _fitting(models, value)]
        for name in list(value):
            path = f"{at}.{shown(name, 60)}" if at else shown(name, 60)
            known = [found[name] for found in fields if name in found]
            if not known or not all(_honoured(field, value[name]) for field, _ in known):
                del value[name]
                paths.append(path)
            else:
                _visit(value[name], known[0][1], path, paths)


def _fitting(models: Sequence[type[BaseModel]], value: dict[str, Any]) -> Sequence[type[BaseModel]]:
    """Of the models of a union those whose `type` the value has."""
    if len(models) == 1:
        return models
    return [model for model in models if value.get("type") in get_args(model.model_fields["type"].annotation)] or models


@cache
def _fields(model: type[BaseModel]) -> dict[str, tuple[FieldInfo, list[type[BaseModel]]]]:
    """By their names in JSON, each with the models that it may hold."""
    return {field.alias or name: (field, models_in(field.annotation)) for name, field in model.model_fields.items()}


def _honoured(field: FieldInfo, value: Any) -> bool:
    for rule in field.metadata:
        if isinstance(rule, AfterValidator) and isinstance(rule.func, Only):
            try:
                rule.func(value)
            except PydanticCustomError:
                return False
    return True
