"""The intermediate representation: where every tensor and every layer's KV cache goes, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ktllama.diagnostics import Diagnostic
from ktllama.model.model_file import TOKEN_EMBEDDING, ModelFile


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlacement:
    """One tensor's place. ``device`` is a canonical rule device; ``rule`` the index of the rule that won, if any.

    ``module`` is the Hugging Face module that owns the tensor, or None where no module does.
    ``loaded`` is False for tensors that llama.cpp leaves on disk (MTP blocks, unless they are asked for).
    ``prefill_device`` is the GPU to which a tensor that stays on the CPU is to be streamed during prefill, if any.
    """

    name: str
    device: str
    module: str | None
    rule: int | None
    n_bytes: int
    loaded: bool = True
    prefill_device: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The plan for one model.

    ``tensors`` holds every tensor of the file by name, in file order; ``kv`` the device of the KV cache of every
    layer that has one, ``recurrent`` that of every other layer, whose state (if it keeps one) is on the layer's own
    device just as a KV cache is; ``layers`` is both. ``stream_experts`` says whether some weights that live on the CPU
    are to be used on a GPU during prefill, and ``prefill_devices`` on which. ``output_device`` is where the output
    layer belongs (``lm_head``'s device); where a model ties its output to ``token_embd``, llama.cpp copies it there.
    """

    model: ModelFile
    tensors: Mapping[str, TensorPlacement]
    kv: Mapping[int, str]
    stream_experts: bool
    recurrent: Mapping[int, str] = field(default_factory=dict)
    output_device: str | None = None
    prefill_devices: tuple[str, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()

    def bytes_by_device(self) -> dict[str, int]:
        """Bytes of loaded tensors on each device."""
        total: dict[str, int] = {}
        for tensor in self.tensors.values():
            if tensor.loaded:
                total[tensor.device] = total.get(tensor.device, 0) + tensor.n_bytes
        return total

    @property
    def layers(self) -> dict[int, str]:
        """The device of every layer: that of its KV cache, or of its recurrent state. MTP blocks have neither."""
        both = {**self.kv, **self.recurrent}
        return {layer: both[layer] for layer in sorted(both)}

    @property
    def ties_output(self) -> bool:
        """Whether the output layer uses a copy of ``token_embd.weight``."""
        return "output.weight" not in self.tensors and TOKEN_EMBEDDING in self.tensors
