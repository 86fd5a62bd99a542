"""What a plan says, in words and rows that the command line and the page share."""

from __future__ import annotations

from ktllama import devices
from ktllama.lower import emit
from ktllama.planner.commands import run_command, server_words
from ktllama.planner.memory import DeviceMemory
from ktllama.planner.plan import Plan
from ktllama.units import counted, format_bytes, format_number


def memory_rows(memory: tuple[DeviceMemory, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """What takes memory, with its size on each device: the parts, their sum, the margin, what is free, the budget."""
    parts = [one.parts for one in memory]
    rows = [
        (name, tuple(_size(part[name]) for part in parts)) for name in parts[0] if any(part[name] for part in parts)
    ]
    rows.append(("used", tuple(format_bytes(one.used) for one in memory)))
    if any(one.budget is not None for one in memory):
        limited = [None if one.budget is None else one for one in memory]
        rows += [
            ("margin", tuple(format_bytes(one.margin) if one else "-" for one in limited)),
            ("free", tuple(format_bytes(one.free or 0) if one else "-" for one in limited)),
            ("budget", tuple(format_bytes(one.budget or 0) if one else "no limit" for one in limited)),
        ]
    return rows


def settings_rows(plan: Plan) -> list[tuple[str, str]]:
    """The settings of the model and of its context; an override's name repeats."""
    context, settings = plan.context, plan.translation.settings
    flash = {True: "on", False: "off", None: context.flash_attn}[plan.flash_attention]
    return [
        ("context", f"{context.n_ctx} tokens, {context.n_seq_max} at once"),
        ("KV cache", f"{context.type_k}, flash attention {flash}"),
        ("ubatch", str(context.n_ubatch)),
        ("op_offload", "on: long prompts use host weights on a GPU" if settings.op_offload else "off"),
        ("no_host", "on: host weights are repacked where the CPU has faster kernels" if settings.no_host else "off"),
        ("threads", "all" if context.n_threads is None else str(context.n_threads)),
        ("n_gpu_layers", str(settings.n_gpu_layers)),
        ("devices", ", ".join(settings.devices) or "none"),
        ("tensor_split", ", ".join(map(str, settings.tensor_split)) or "none"),
        *(("override", f"{one.pattern}  →  {one.device}") for one in settings.tensor_overrides),
    ]


def predicted_lines(plan: Plan) -> list[str]:
    """The speeds, and what they rest on."""
    said = plan.prediction
    speeds = ", ".join(f"{one.name} {one.bandwidth / 1e9:.0f}" for one in plan.machine.processors)
    return [
        f"decode   {format_number(said.decode_tokens_per_second)} tokens/s with half the context full; "
        f"{format_bytes(round(said.host_read_bytes))} of host memory read a token, "
        f"{counted(said.crossings, 'crossing')}",
        f"prefill  {format_number(said.prefill_tokens_per_second)} tokens/s",
        f"for GB/s of {speeds}, link {plan.machine.link_bandwidth / 1e9:.0f}; {_source(plan)}",
    ]


def _source(plan: Plan) -> str:
    if not plan.machine.measured:
        return "assumed unless given (--bandwidth, --link-bandwidth)"
    assumed = [gpu.name for gpu in plan.machine.gpus if not gpu.read_seconds]
    rest = f"; those of {', '.join(assumed)} assumed" if assumed else ""
    if unknown := _unmeasured_types(plan):
        rest += f"; {', '.join(unknown)} not measured: estimated from the types that were"
    return f"measured on this machine, by type of weights{rest}"


def _unmeasured_types(plan: Plan) -> list[str]:
    """The types of matrices on the host that no speed was measured of: of another model than ``ktllama tune`` had."""
    placed = plan.translation.placement.tensors
    there = {
        tensor.type
        for tensor in plan.translation.model.tensors
        if len(tensor.shape) > 1 and tensor.name in placed and placed[tensor.name].device == devices.CPU
    }
    return sorted(there - set(plan.machine.cpu.read_seconds))


def note_lines(plan: Plan) -> list[str]:
    """What else is worth knowing, devices that were stood in for included."""
    if not plan.stand_ins:
        return list(plan.notes)
    stood_in = f"{', '.join(plan.stand_ins)}: not on this machine; the CPU stood in, so compute buffers are the CPU's"
    return [*plan.notes, stood_in]


def next_lines(plan: Plan, model: str, output: str | None) -> list[str]:
    """The commands that use the plan. ``output`` is where its rule file was written, if it was."""
    if plan.translation.options.target == "llama-server":
        return [" ".join(emit.shell_word(word) for word in server_words(plan, model))]
    if output is None:
        return ["ktllama plan … -o rules.yaml writes the rule file; then", run_command(plan, "rules.yaml", model)]
    return [run_command(plan, output, model)]


def _size(n_bytes: int) -> str:
    return format_bytes(n_bytes) if n_bytes else "-"
