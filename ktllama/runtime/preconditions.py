"""What llama.cpp asserts of a model's metadata. A failed assertion ends the process, so it is asked for before.

Source: ``llama_model_base::load_hparams`` in ``src/llama-model.cpp`` of the llama.cpp in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ktllama.errors import ModelFileError
from ktllama.model import gguf
from ktllama.model.model_file import MetadataArray, ModelFile
from ktllama.model.wording import quoted, shown

#: ``LLAMA_ROPE_SCALING_TYPES``.
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")

#: Architectures whose experts llama.cpp forgets where there are fewer than two, before it asserts anything.
_FORGETFUL = "hunyuan"


def check_file(path: str | os.PathLike[str]) -> None:
    """Like :func:`check`, of the model at ``path``; what cannot be read is left to llama.cpp, which says so.

    Raises:
        ModelFileError: for metadata that llama.cpp would abort over.
    """
    try:
        model = gguf.read(path, header_only=True)
    except ModelFileError:  # llama.cpp reads more kinds of files, and refuses the rest without aborting
        return
    check(model)


def check(model: ModelFile) -> None:
    """Whether llama.cpp's assertions about the metadata hold.

    Raises:
        ModelFileError: for the first that does not.
    """
    for key, expected in _violations(model):
        value = model.hyperparameter(key)
        said = "is missing" if value is None else f"is {shown(value)}"
        name = quoted(f"{model.architecture}.{key}")
        reason = f"metadata key {name} {said}, over which llama.cpp would abort; expected {expected}"
        raise ModelFileError(model.paths[0] if model.paths else model.name, reason)


def _violations(model: ModelFile) -> Iterator[tuple[str, str]]:
    """Keys, and what llama.cpp expects there."""
    if model.integer("nextn_predict_layers") > model.n_layers:
        yield "nextn_predict_layers", f"no more than the {model.n_layers} layers"
    scaling = model.hyperparameter("rope.scaling.type")
    if isinstance(scaling, str) and scaling not in _ROPE_SCALINGS:
        yield "rope.scaling.type", f"one of {', '.join(_ROPE_SCALINGS)}"
    if not model.architecture.startswith(_FORGETFUL):
        yield from _of_experts(model, model.integer("expert_count"), model.integer("expert_group_count"))


def _of_experts(model: ModelFile, n_experts: int, n_groups: int) -> Iterator[tuple[str, str]]:
    n_used, n_groups_used = _most(model, "expert_used_count"), model.integer("expert_group_used_count")
    if n_experts == 0:
        if n_used:
            yield "expert_used_count", "0, as there are no experts"
        if n_groups:
            yield "expert_group_count", "0, as there are no experts"
        return
    if not 0 < n_used <= n_experts:
        yield "expert_used_count", f"1 to {n_experts}"
    if n_groups >= n_experts or (n_groups > 1 and n_experts % n_groups):
        yield "expert_group_count", f"a divisor of the {n_experts} experts that leaves each group two or more"
    elif n_groups > 1 and not 0 < n_groups_used < n_groups:
        yield "expert_group_used_count", f"1 to {n_groups - 1}, fewer than the {n_groups} groups"


def _most(model: ModelFile, key: str) -> int:
    """The largest of a number that may be given by layer."""
    value = model.hyperparameter(key)
    if not isinstance(value, MetadataArray):
        return model.integer(key)
    return max((number for number in value.values or () if isinstance(number, int)), default=0)
