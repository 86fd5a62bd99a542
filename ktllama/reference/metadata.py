"""Typed reading of a model's hyperparameters; whatever is missing or absurd is an error that names its key."""

from __future__ import annotations

import math

from ktllama.errors import ModelFileError
from ktllama.model.model_file import MetadataArray, MetadataValue, ModelFile
from ktllama.model.wording import quoted, shown


class Hyperparameters:
    """The ``<architecture>.*`` keys of a model. Every getter raises a ModelFileError for what it cannot use."""

    def __init__(self, model: ModelFile) -> None:
        self._model = model

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        return self._model.hyperparameter(key) is not None

    def has_tensor(self, ending: str) -> bool:
        """Whether any tensor of a layer has a name with this ending."""
        return any(tensor.name.endswith("." + ending) for tensor in self._model.tensors)

    def integer(self, key: str, most: int, *, least: int = 1, default: int | None = None) -> int:
        """A whole number from ``least`` to ``most``; ``default``, where given, stands in for a missing key."""
        value = self._model.hyperparameter(key)
        value = default if value is None else value
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise self.wrong(key, f"a whole number from {least:,} to {most:,}")

    def per_layer(self, key: str, most: int, *, default: int | None = None) -> int:
        """A number that may be given once a layer, as long as it is the same in all that have any (0: has none)."""
        value = self._model.hyperparameter(key)
        if not isinstance(value, MetadataArray):
            return self.integer(key, most, default=default)
        different = set(value.values or ()) - {0}
        if len(different) == 1:
            (only,) = different
            if isinstance(only, int) and not isinstance(only, bool) and 1 <= only <= most:
                return only
        raise self.wrong(key, f"one whole number from 1 to {most:,}, the same in all layers")

    def number(self, key: str, most: float, *, default: float | None = None) -> float:
        """A number above 0, at most ``most``; a ``default`` of 0 allows 0."""
        value = self._model.hyperparameter(key)
        value = default if value is None else value
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            number = float(value)
            if 0 < number <= most or (number == 0 and default == 0):
                return number
        raise self.wrong(key, f"a number above 0, at most {most:g}")

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._model.hyperparameter(key)
        value = default if value is None else value
        if isinstance(value, bool):
            return value
        raise self.wrong(key, "true or false")

    def word(self, key: str, known: tuple[str, ...], *, default: str) -> str:
        """One of some words."""
        value = self._model.hyperparameter(key)
        value = default if value is None else value
        if isinstance(value, str) and value in known:
            return value
        raise self.wrong(key, " or ".join(quoted(word) for word in known))

    def absent(self, key: str, what: str) -> None:
        """Refuse a key that changes the model in a way that the reference does not have; 0 changes nothing."""
        value = self._model.hyperparameter(key)
        if value is not None and value != 0:
            raise self.wrong(key, f"no such key: the reference has no {what}")

    def vocabulary(self, most: int) -> int:
        """The number of tokens, by its key or else by the length of the tokenizer's list (as llama.cpp does)."""
        tokens = self._model.metadata.get("tokenizer.ggml.tokens")
        listed = tokens.n_items if isinstance(tokens, MetadataArray) else None
        return self.integer("vocab_size", most, default=listed)

    def wrong(self, key: str, expected: str) -> ModelFileError:
        """What to raise for the value of ``key``."""
        value: MetadataValue | None = self._model.hyperparameter(key)
        said = "is missing" if value is None else f"is {shown(value)}"
        path = self._model.paths[0] if self._model.paths else self._model.name
        name = quoted(f"{self._model.architecture}.{key}")
        return ModelFileError(path, f"metadata key {name} {said}; expected {expected}")
