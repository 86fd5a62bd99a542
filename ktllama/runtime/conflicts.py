"""What a caller of llama-cpp-python passed itself, held against the settings that the rules came to.

``llama_cpp.Llama`` writes its defaults into llama.cpp's structures, so an option at its default cannot be told from one
that was left out: those yield to the rules. Any other value that says something else than the rules is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ktllama.errors import KtllamaError
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime.device_binding import CPU

#: What ``llama_cpp.Llama(n_gpu_layers=-1)`` writes for "all layers" (its ``llama.py``).
_ALL_LAYERS = 0x7FFFFFFF

#: option, what the caller passed, what the rules need
Difference = tuple[str, object, object]


class SettingsConflictError(KtllamaError):
    """The caller passed a placement option of its own against the rules; ``source`` names them."""

    def __init__(self, option: str, given: object, wanted: object, *, source: str, model_path: str) -> None:
        self.option = option
        self.given = given
        self.wanted = wanted
        self.source = source
        self.model_path = model_path
        super().__init__(option, given, wanted, source, model_path)

    def __str__(self) -> str:
        return (
            f"{self.option}={self.given} was passed to llama-cpp-python for {self.model_path}, but {self.source} asks "
            f"for {self.option}={self.wanted}: leave it out, or change the rules"
        )


class PlacementConflictError(KtllamaError):
    """Two blocks that are active at once want one model file placed in two ways."""

    def __init__(self, model_path: str, first: str, second: str, difference: Difference) -> None:
        self.model_path = model_path
        self.first = first
        self.second = second
        self.option, self.first_value, self.second_value = difference
        super().__init__(model_path, first, second, difference)

    def __str__(self) -> str:
        return (
            f"{self.model_path} is being placed by {self.first} ({self.option}={self.first_value}) in a block that is "
            f"still active, and {self.second} asks for {self.option}={self.second_value}: end one block before the "
            "other begins, or load with ktllama.Llama(..., rules=...), which minds only itself"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How one model file is to be loaded. ``source`` names who says so, ``n_layers`` counts its blocks."""

    settings: LlamaSettings
    source: str
    model_path: str
    n_layers: int

    def check_model(self, api: Any, params: Any) -> None:
        """Hold ``llama_model_params`` that a caller filled in against the settings.

        Raises:
            SettingsConflictError: for the first option that says something else.
        """
        self._raise_first(self._model_differences(api, params))

    def check_context(self, api: Any, params: Any) -> None:
        """Hold ``llama_context_params`` against the settings.

        Raises:
            SettingsConflictError: for the first option that says something else.
        """
        self._raise_first(self._context_differences(api, params))

    def check_keywords(self, keywords: Mapping[str, object]) -> None:
        """Hold keyword arguments of ``llama_cpp.Llama`` against the settings, defaults that were written out too.

        Raises:
            SettingsConflictError: for the first option that says something else.
        """
        self._raise_first(self._keyword_differences(keywords))

    def _raise_first(self, differences: Iterator[Difference]) -> None:
        for option, given, wanted in differences:
            raise SettingsConflictError(option, given, wanted, source=self.source, model_path=self.model_path)

    def _model_differences(self, api: Any, params: Any) -> Iterator[Difference]:
        defaults = api.llama_model_default_params()
        if params.n_gpu_layers not in (0, defaults.n_gpu_layers) and not self._same_layers(params.n_gpu_layers):
            given = -1 if params.n_gpu_layers == _ALL_LAYERS else params.n_gpu_layers
            yield "n_gpu_layers", given, self.settings.n_gpu_layers
        if params.split_mode != defaults.split_mode:
            yield "split_mode", params.split_mode, defaults.split_mode
        if params.main_gpu != defaults.main_gpu:
            yield "main_gpu", params.main_gpu, defaults.main_gpu
        if params.tensor_split:
            given_split = _trimmed(params.tensor_split[: api.llama_max_devices()])
            if given_split and given_split != _trimmed(self.settings.tensor_split):
                yield "tensor_split", list(given_split), list(self.settings.tensor_split)
        if params.devices:
            yield "devices", "a list of its own", list(self.settings.devices)
        if params.tensor_buft_overrides:
            overrides = [f"{override.pattern}={override.device}" for override in self.settings.tensor_overrides]
            yield "tensor_buft_overrides", "a list of its own", overrides

    def _context_differences(self, api: Any, params: Any) -> Iterator[Difference]:
        defaults = api.llama_context_default_params()
        if not params.offload_kqv and any(device != CPU for device in self.settings.devices):
            yield "offload_kqv", False, True
        if params.op_offload != defaults.op_offload and params.op_offload != self.settings.op_offload:
            yield "op_offload", params.op_offload, self.settings.op_offload

    def _keyword_differences(self, keywords: Mapping[str, object]) -> Iterator[Difference]:
        layers = keywords.get("n_gpu_layers")
        if isinstance(layers, int) and not self._same_layers(_ALL_LAYERS if layers == -1 else layers):
            yield "n_gpu_layers", layers, self.settings.n_gpu_layers
        if keywords.get("op_offload") not in (None, self.settings.op_offload):
            yield "op_offload", keywords["op_offload"], self.settings.op_offload

    def _same_layers(self, n_gpu_layers: int) -> bool:
        n_all = self.n_layers + 1  # the output counts as a layer
        return min(n_gpu_layers, n_all) == min(self.settings.n_gpu_layers, n_all)


def first_difference(first: LlamaSettings, second: LlamaSettings) -> Difference | None:
    """The first field in which two settings differ."""
    for field in fields(LlamaSettings):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if one != other:
            return field.name, one, other
    return None


def _trimmed(shares: Any) -> tuple[float, ...]:
    """The shares up to the last that is not 0, which is where the caller's list ended at the latest."""
    listed = [float(share) for share in shares]
    while listed and not listed[-1]:
        listed.pop()
    return tuple(listed)
