"""A plan for people: what each device holds, the settings, the predicted speed, and what to run next."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from ktllama.cli.text import make_console, plain_table, print_heading, print_lines, print_title
from ktllama.lower import emit
from ktllama.planner.commands import run_command, server_words
from ktllama.planner.memory import KINDS
from ktllama.planner.plan import Plan
from ktllama.units import format_bytes


def print_plan(plan: Plan, model: str, output: str | None, stream: TextIO) -> None:
    """Write everything about ``plan`` to ``stream``. ``output`` is where its rule file was written, if it was."""
    console = make_console(stream)
    of = plan.translation.model
    print_title(console, of.name, f"{of.architecture}, {of.n_layers} layers, {format_bytes(of.n_bytes)}")
    _section(console, "Memory", _memory(plan))
    _section(console, "Settings", _settings(plan))
    print_heading(console, "Predicted")
    print_lines(console, "\n".join(_predicted(plan)))
    if plan.notes or plan.stand_ins:
        print_heading(console, "Notes")
        print_lines(console, "\n".join([*plan.notes, *_stand_ins(plan)]))
    print_heading(console, "Next")
    print_lines(console, "\n".join(_next(plan, model, output)))


def _section(console: Console, title: str, table: Table) -> None:
    print_heading(console, title)
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _memory(plan: Plan) -> Table:
    kinds = [kind for kind in KINDS if any(one.weights.get(kind) for one in plan.memory)]
    streams = any(one.streaming for one in plan.memory)
    headers = ["device", *kinds, "KV", "compute", *(["streaming"] if streams else []), "used", "free", "margin", "of"]
    table = plain_table(*headers, right=tuple(range(1, len(headers))))
    for one in plan.memory:
        sizes = [*(one.weights.get(kind, 0) for kind in kinds), one.kv, one.compute]
        sizes += [one.streaming] if streams else []
        free, of = (
            ("-", "-") if one.free is None or one.budget is None else (format_bytes(one.free), format_bytes(one.budget))
        )
        shown = [format_bytes(size) if size else "-" for size in (*sizes, one.used)]
        table.add_row(one.device, *shown, free, format_bytes(one.margin), of)
    return table


def _settings(plan: Plan) -> Table:
    context, settings = plan.context, plan.translation.settings
    flash = {True: "on", False: "off", None: context.flash_attn}[plan.flash_attention]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name, value in (
        ("context", f"{context.n_ctx} tokens, {context.n_seq_max} at once"),
        ("KV cache", f"{context.type_k}, flash attention {flash}"),
        ("ubatch", str(context.n_ubatch)),
        ("op_offload", "on: long prompts use host weights on a GPU" if settings.op_offload else "off"),
        ("threads", "all" if context.n_threads is None else str(context.n_threads)),
        ("n_gpu_layers", str(settings.n_gpu_layers)),
        ("devices", ", ".join(settings.devices) or "none"),
        ("tensor_split", ", ".join(map(str, settings.tensor_split)) or "none"),
        *(("override", f"{one.pattern}  →  {one.device}") for one in settings.tensor_overrides),
    ):
        table.add_row(name, value)
    return table


def _predicted(plan: Plan) -> list[str]:
    said = plan.prediction
    speeds = ", ".join(f"{one.name} {one.bandwidth / 1e9:.0f}" for one in plan.machine.processors)
    return [
        f"decode   {said.decode_tokens_per_second:.3g} tokens/s with half the context full; "
        f"{format_bytes(round(said.host_read_bytes))} of host memory read a token, {said.crossings} crossings",
        f"prefill  {said.prefill_tokens_per_second:.3g} tokens/s",
        f"for GB/s of {speeds}, link {plan.machine.link_bandwidth / 1e9:.0f}; "
        "assumed unless given (--bandwidth, --link-bandwidth)",
    ]


def _stand_ins(plan: Plan) -> list[str]:
    if not plan.stand_ins:
        return []
    return [f"{', '.join(plan.stand_ins)}: not on this machine; the CPU stood in, so compute buffers are the CPU's"]


def _next(plan: Plan, model: str, output: str | None) -> list[str]:
    if plan.translation.options.target == "llama-server":
        return [" ".join(emit.shell_word(word) for word in server_words(plan, model))]
    if output is None:
        return ["ktllama plan … -o rules.yaml writes the rule file; then", run_command(plan, "rules.yaml", model)]
    return [run_command(plan, output, model)]
