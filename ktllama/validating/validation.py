"""The validation itself: llama.cpp's pass, then the reference's, compared layer by layer while it goes.

llama.cpp goes first and is freed before the reference begins, so that both are never in memory together. What it
computed is kept: its logits, and of every layer a row a token, which is dropped as soon as the reference gets there.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ktllama import devices
from ktllama.errors import KtllamaError, LlamaCppError, MissingExtraError
from ktllama.model import gguf
from ktllama.model.model_file import ModelFile
from ktllama.placing.ir import Placement
from ktllama.translation import Translation
from ktllama.validating.choices import nudges
from ktllama.validating.comparison import Comparison, comparison, same_types
from ktllama.validating.default_text import default_text
from ktllama.validating.layers import Hidden, LayerErrors, Outputs, Routing, compare_layer
from ktllama.validating.positions import compare_positions, output_errors
from ktllama.validating.report import Report, devices_by_layer
from ktllama.validating.rounding import ActivationsChoice, activations, cpu_kernels

if TYPE_CHECKING:
    from ktllama.reference.arrays import Kernels, Ratings, ReferencePass
    from ktllama.runtime.context_options import ContextOptions
    from ktllama.runtime.probe import Capture

DTypeName: TypeAlias = Literal["float32", "float64", "bfloat16"]

#: Told what goes on, and how far it is: 0 to 1.
Progress: TypeAlias = Callable[[str, float], None]


#: How much of the default text is read: enough to see every expert of a layer, and quick.
DEFAULT_TOKENS = 512


class DifferentReferenceError(KtllamaError):
    """A reference that cannot be compared with the model, because it is another one."""

    def __init__(self, path: str, what: str, reference: object, model: object) -> None:
        self.path = path
        self.what = what
        self.reference = reference
        self.model = model
        super().__init__(path, what, reference, model)

    def __str__(self) -> str:
        return f"{self.path}: {self.what} {self.reference}, but the model has {self.model}: not the same model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to validate. ``against`` is the reference's file where it is not the model's own.

    ``text`` is read as plain text; of its tokens the first ``max_tokens`` are used. Without a text it is as much of
    one of ours as fits, up to :data:`DEFAULT_TOKENS`. ``tokens`` are read instead of a text. ``max_kl`` of None is the
    comparison's own. ``activations`` says whether the reference rounds them, too (:mod:`ktllama.validating.rounding`);
    ``auto`` leaves them exact where the reference's file has other types of tensors.
    """

    translation: Translation
    model_path: str
    context: ContextOptions
    text: str | None = None
    tokens: tuple[int, ...] | None = None
    against: str | None = None
    dtype: DTypeName = "float32"
    activations: ActivationsChoice = "auto"
    max_tokens: int | None = None
    max_kl: float | None = None
    stand_ins: bool = False


def validate(task: Task, progress: Progress | None = None) -> Report:
    """Run both and compare.

    Raises:
        KtllamaError: for a text longer than the context, a reference of another model, a model that the reference
            cannot compute, torch missing, and whatever llama.cpp refuses.
    """
    tell = progress or _silent
    model = task.translation.model
    reference_model = model if task.against is None else gguf.read(task.against)
    reference = _open_reference(task, model, reference_model)
    tokens = _tokens(task)
    capture, cpus = _llama_pass(task, tokens, tell)
    if reference.n_vocab != capture.logits.shape[1]:
        path, n_vocab = task.against or task.model_path, capture.logits.shape[1]
        raise DifferentReferenceError(path, "its vocabulary has", reference.n_vocab, n_vocab)
    places = _Places.of(task.translation.placement)
    compared, kernels = _comparison(task, reference_model, capture, cpus, places.in_order(reference.n_layers))
    leader = LlamaLeader(capture, task.dtype)
    logits, led = reference.run(tokens, leader, tell, kernels, task.context.n_threads)
    return Report(
        name=model.name,
        architecture=model.architecture,
        model=task.model_path,
        reference=task.against or task.model_path,
        rules=task.translation.ruleset.file,
        tokens=tokens,
        comparison=compared,
        positions=compare_positions(logits, capture.logits, tokens),
        layers=tuple(leader.found),
        output=output_errors(led, capture.logits),
        devices=places.layers,
        output_devices=places.output,
        max_kl=compared.max_kl if task.max_kl is None else task.max_kl,
        limit_given=task.max_kl is not None,
    )


def _comparison(
    task: Task, reference: ModelFile, capture: Capture, cpus: frozenset[str], places: list[tuple[str, ...]]
) -> tuple[Comparison, Kernels]:
    """What differs, and what the reference is to compute like.

    ``cpus`` are the devices with llama.cpp's CPU kernels, ``places`` those of every layer and last of the output.
    """
    from ktllama.reference.arrays import Kernels

    same = same_types(task.translation.model, reference)
    choice = "exact" if task.activations == "auto" and not same else task.activations
    rounding = activations(choice, places, cpus)
    asked = task.context
    compared = comparison(
        task.translation.model,
        reference,
        kv_type=asked.type_k,
        flash_attention=capture.flash_attention,
        n_ubatch=asked.n_ubatch,
        dtype=task.dtype,
        rounded=tuple(same and one != "exact" for one in rounding),
    )
    kernels = Kernels(
        activations=rounding,
        kv_type=asked.type_k,
        flash_attention=capture.flash_attention,
        n_ubatch=asked.n_ubatch,
    )
    return compared, kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """The devices of every layer, and of the output."""

    layers: Mapping[int, tuple[str, ...]]
    output: tuple[str, ...]

    @classmethod
    def of(cls, placement: Placement) -> _Places:
        return cls(layers=devices_by_layer(placement), output=(placement.output_device or devices.CPU,))

    def in_order(self, n_layers: int) -> list[tuple[str, ...]]:
        return [*(self.layers[layer] for layer in range(n_layers)), self.output]


class LlamaLeader:
    """Leads the reference through llama.cpp's hidden states, compares every layer as it comes, and forgets both."""

    def __init__(self, capture: Capture, dtype: str) -> None:
        self.found: list[LayerErrors] = []
        self._hidden, self._experts = capture.hidden, capture.experts
        self._dtype = dtype
        self._routing: Routing | None = None

    def routing(self, layer: int, own: npt.NDArray[np.integer], led: npt.NDArray[np.integer], ratings: Ratings) -> None:
        """The experts (T, experts used) that the reference chose in ``layer``, and by what; before :meth:`layer`.

        Raises:
            LlamaCppError: when llama.cpp showed no such choice, or one of another shape.
        """
        theirs = self._experts.pop(layer, None)
        llama = _shown(theirs, own, f"experts of layer {layer}")
        self._routing = Routing(reference=own, llama=llama, led=led, nudges=nudges(ratings, led, llama))

    def layer(self, layer: int, own: Hidden, given: Hidden, led: Hidden) -> Hidden:
        """The outputs (T, width) of ``layer``; the answer is llama.cpp's.

        Raises:
            LlamaCppError: when llama.cpp showed no such layer, or one of another shape.
        """
        theirs = _shown(self._hidden.pop(layer, None), own, f"output of layer {layer}")
        outputs = Outputs(reference=own, llama=theirs, given=given, led=led)
        self.found.append(compare_layer(layer, outputs, self._routing, self._dtype))
        self._routing = None
        return theirs


_Array = TypeVar("_Array", bound=npt.NDArray[Any])


def _shown(theirs: _Array | None, ours: npt.NDArray[Any], what: str) -> _Array:
    if theirs is None or theirs.shape != ours.shape:
        found = "nothing" if theirs is None else f"a matrix of shape {theirs.shape}"
        raise LlamaCppError(f"llama.cpp showed {found} as the {what}; expected shape {ours.shape}")
    return theirs


def _silent(_what: str, _share: float) -> None:
    pass


def _open_reference(task: Task, model: ModelFile, reference: ModelFile) -> ReferencePass:
    """The reference, checked as far as its header goes; nothing large is read."""
    if task.against is not None:
        _check_same(task.against, model, reference)
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "reference")
    from ktllama.reference import arrays

    return arrays.open_pass(task.against or task.model_path, task.dtype)


def _check_same(path: str, model: ModelFile, reference: ModelFile) -> None:
    if reference.architecture != model.architecture:
        raise DifferentReferenceError(path, "its architecture is", reference.architecture, model.architecture)
    for key, what in (("block_count", "its blocks are"), ("embedding_length", "its width is")):
        ours, theirs = model.integer(key), reference.integer(key)
        if ours != theirs:
            raise DifferentReferenceError(path, what, theirs, ours)


def _tokens(task: Task) -> tuple[int, ...]:
    """The text's tokens, from the model's vocabulary alone.

    llama.cpp rounds a context up to 256 tokens; no more are read than were asked for.
    """
    from ktllama.runtime.probe import TextTooLongError, tokens_of

    trained = task.translation.model.integer("context_length")
    n_ctx = task.context.n_ctx or trained
    fits = min(n_ctx, trained)
    if task.tokens is not None:
        tokens = list(task.tokens)
    elif task.text is not None:
        tokens = tokens_of(task.model_path, task.text)
    else:
        text = default_text(task.translation.model.name)
        tokens = tokens_of(task.model_path, text)[: min(fits, DEFAULT_TOKENS)]
    tokens = tokens[: task.max_tokens]
    if not tokens:
        raise LlamaCppError("the text is empty")
    if len(tokens) > fits:
        raise TextTooLongError(len(tokens), fits, is_model_limit=trained <= n_ctx)
    return tuple(tokens)


def _llama_pass(task: Task, tokens: tuple[int, ...], tell: Progress) -> tuple[Capture, frozenset[str]]:
    """What llama.cpp computed, and on which devices with its CPU kernels."""
    from ktllama.runtime.device_list import available
    from ktllama.runtime.probe import Probe

    translation = task.translation

    def loading(share: float) -> None:
        tell("llama.cpp loads", share)

    with Probe(
        os.fspath(task.model_path),
        translation.settings,
        task.context,
        progress=loading,
        explicit_devices=tuple(translation.options.device_map.chosen.values()),
        stand_ins=task.stand_ins,
        cpu_bytes=translation.placement.bytes_by_device().get(devices.CPU, 0),
    ) as probe:
        capture = probe.run(tokens, lambda share: tell("llama.cpp reads", share))
        names = {*translation.placement.bytes_by_device(), *translation.placement.layers.values(), devices.CPU}
        kernels = cpu_kernels(
            names,
            translation.options.device_map,
            translation.settings,
            probe.loaded.bound,
            available(probe.loaded.library),
        )
    return capture, kernels
