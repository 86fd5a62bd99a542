"""What a planned rule file says about itself."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from ktllama import devices
from ktllama.planner.machine import Machine
from ktllama.planner.memory import DeviceMemory
from ktllama.planner.opening import NO_RULES
from ktllama.planner.plan import Prediction
from ktllama.ruleset.wording import harmless
from ktllama.runtime.context_options import ContextOptions
from ktllama.translation import Translation
from ktllama.units import format_bytes, format_number

_NAME_WIDTH = 13
_WIDTH = 120 - _NAME_WIDTH - len("#  ")


def comments(
    opened: Translation,
    machine: Machine,
    context: ContextOptions,
    memory: tuple[DeviceMemory, ...],
    prediction: Prediction,
) -> Iterator[str]:
    """The lines of the comment at the head of the file."""
    yield f"Placement rules for {_line(opened.model.name)}, planned by ktllama."
    yield "They name no model class: give --model FILE.gguf or --preset NAME with them."
    yield ""
    yield from _entry("planned for", ", ".join(_budget(one) for one in memory))
    yield from _entry(
        "context",
        f"{context.n_ctx} tokens, {context.n_seq_max} at once, KV in {context.type_k}, ubatch {context.n_ubatch}",
    )
    if opened.ruleset.file != NO_RULES:
        yield from _entry("kept", f"what {_line(opened.ruleset.file)} fixes")
    for one in memory:
        yield from _entry(one.device, _parts(one))
    yield from _entry(
        "predicted",
        f"{format_number(prediction.decode_tokens_per_second)} tokens/s decode, "
        f"{format_number(prediction.prefill_tokens_per_second)} prefill; "
        f"{format_bytes(round(prediction.host_read_bytes))} read from host memory a token; host at "
        f"{machine.cpu.bandwidth / 1e9:.0f} GB/s",
    )


def _entry(name: str, text: str) -> Iterator[str]:
    """``text`` beside its name, on as many lines as it takes."""
    for number, line in enumerate(textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)):
        yield f"{'' if number else name:<{_NAME_WIDTH}} {line}"


def _budget(one: DeviceMemory) -> str:
    size = "as much RAM as it takes" if one.budget is None else format_bytes(one.budget)
    return f"{one.device} with {size}" if one.device != devices.CPU or one.budget is not None else size


def _parts(one: DeviceMemory) -> str:
    listed = [f"{format_bytes(n_bytes)} {what}" for what, n_bytes in one.parts.items() if n_bytes]
    free = "" if one.free is None else f"; {format_bytes(one.free)} free beside a margin of {format_bytes(one.margin)}"
    return (", ".join(listed) or "nothing") + free


def _line(text: str) -> str:
    """``text`` on one line of a comment, whatever it holds."""
    return " ".join(harmless(text).split())
