"""Which names of a model this server answers to."""

from __future__ import annotations

from ktllama.ruleset.wording import shown
from ktllama.server.errors import ApiError
from ktllama.server.state import ServerState


def names_of(state: ServerState) -> tuple[str, ...]:
    """The served name, then the others. Raises ApiError 503 without a model."""
    return (state.model_name, state.model.name, *state.settings.other_names)


def check_model(state: ServerState, name: str | None) -> None:
    """Refuse another model's name; a lenient server takes any. Raises ApiError 404, or 503 without a model."""
    served = names_of(state)
    if name is None or name in served or state.settings.lenient:
        return
    raise ApiError(
        404,
        f"there is no model '{shown(name, 60)}' here; this server has '{served[0]}'",
        param="model",
        code="model_not_found",
    )
