"""How long a prompt takes, predicted: a ubatch at a time.

A ubatch of ``n`` tokens reads every weight that any of its tokens uses once, and multiplies each token's own. Weights
on a GPU are used there. Weights in host memory are used by the host, or, with ``op_offload``, copied over the link and
used by the first GPU: ubatch time ≈ bytes / link + n / GPU rate, so a larger ubatch pays. llama.cpp offloads from 32
tokens on (``op_offload_min_batch_size``). What attention costs over a long prompt is left out.
"""

from __future__ import annotations

from ktllama import devices
from ktllama.planner.cost import Assignment, operations_per_byte, parts_with_devices
from ktllama.planner.machine import Machine, Processor
from ktllama.planner.parts import ModelParts, Part

_MIN_OFFLOADED_BATCH = 32


def prefill_seconds(
    model: ModelParts, assignment: Assignment, machine: Machine, ubatch: int, *, stream_to: str | None
) -> float:
    """Seconds for one ubatch of ``ubatch`` tokens. ``stream_to`` is the GPU that host weights are copied to, if any."""
    target = machine.processor(stream_to) if stream_to and ubatch >= _MIN_OFFLOADED_BATCH else None
    seconds = 0.0
    for part, device in parts_with_devices(model, assignment):
        if part is model.output or not part.read_bytes:
            continue  # logits are made of the last token only
        if device == devices.CPU and target is not None:
            seconds += touched_bytes(part, ubatch) / machine.link_bandwidth + _computing(part, target, ubatch)
        else:
            processor = machine.processor(device)
            reading = touched_bytes(part, ubatch) / processor.bandwidth
            seconds += max(reading, _computing(part, processor, ubatch))
    return seconds


def touched_bytes(part: Part, n_tokens: int) -> float:
    """Bytes of ``part`` that ``n_tokens`` use together: of experts chosen evenly, all but those that nobody chose."""
    if not part.n_bytes:
        return 0.0
    share = min(1.0, part.read_bytes / part.n_bytes)
    return float(part.n_bytes * (1 - (1 - share) ** n_tokens))


def _computing(part: Part, processor: Processor, n_tokens: int) -> float:
    return sum(
        n_tokens * n_bytes * operations_per_byte(tensor_type) / processor.flops_of(tensor_type)
        for tensor_type, n_bytes in part.reads
    )
