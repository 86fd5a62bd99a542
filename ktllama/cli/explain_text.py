"""Explanations for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ktllama.cli.text import make_console, plain_table
from ktllama.explaining.explanation import CacheShare, Explanation
from ktllama.explaining.sentences import llama_text, match_text, why_text
from ktllama.explaining.summary import KV_CACHE, DeviceTotal, Kind, Move, compare, summarise, totals
from ktllama.layers import layer_ranges
from ktllama.ruleset.rules import Ruleset
from ktllama.ruleset.wording import printable
from ktllama.translation import Translation
from ktllama.units import format_bytes

_LABEL_WIDTH = 11


def print_explanations(translation: Translation, explanations: Iterable[Explanation], ctx: int, out: TextIO) -> None:
    """Write a paragraph on every module and tensor; KV caches are sized for ``ctx`` tokens."""
    console = make_console(out)
    for number, explanation in enumerate(explanations):
        if number:
            console.print()
        console.print(Text.assemble((printable(explanation.name), "bold"), f"  {_what(explanation)}"), soft_wrap=True)
        for label, text in _lines(translation, explanation, ctx):
            console.print(Text.assemble("  ", (label.ljust(_LABEL_WIDTH), "dim"), printable(text)), soft_wrap=True)


def print_summary(translation: Translation, ctx: int, out: TextIO) -> None:
    """Write what is where, by kind of module and device."""
    console = make_console(out)
    _print_title(console, translation.model.name, translation.ruleset.file)
    table = plain_table("module", "layers", "device", "bytes", "rule", right=(3,))
    for kind in summarise(translation):
        table.add_row(
            Text(printable(_kind_name(kind, ctx))),
            layer_ranges(kind.layers) or "-",
            kind.device,
            _size(kind, ctx),
            ", ".join("-" if rule is None else str(rule) for rule in kind.rules),
        )
    _print_table(console, "Modules", table)
    _print_table(console, "Devices", _totals(totals(translation), ctx))


def print_difference(before: Translation, after: Translation, ctx: int, out: TextIO) -> None:
    """Write what moves when ``after`` replaces ``before``."""
    console = make_console(out)
    _print_title(console, before.model.name, f"{before.ruleset.file} → {after.ruleset.file}")
    moves = compare(before, after)
    if not moves:
        console.print("\nNothing moves.")
        return
    table = plain_table("module", "layers", "from", "to", "bytes", right=(4,))
    for move in moves:
        layers = layer_ranges(move.layers) or "-"
        name = Text(printable(_kind_name(move, ctx)))
        table.add_row(name, layers, move.before, f"→ {move.after}", _size(move, ctx))
    _print_table(console, "Moves", table)
    _print_table(console, "Devices", _changes(before, after, ctx))


def context_text(ctx: int) -> str:
    """``32768`` → ``32k``."""
    return f"{ctx // 1024}k" if ctx % 1024 == 0 else str(ctx)


def _what(explanation: Explanation) -> str:
    if explanation.what == "tensor":
        return "tensor"
    name = (explanation.class_path or "").rpartition(".")[2]
    return f"{name} of {explanation.n_experts} experts" if explanation.n_experts else name


def _lines(translation: Translation, explanation: Explanation, ctx: int) -> Iterator[tuple[str, str]]:
    why, ruleset = explanation.why, translation.ruleset
    if explanation.what == "tensor" and explanation.module is not None:
        yield "module", explanation.module
    yield "device", f"{explanation.device}: {why_text(why, translation.resolution.default_device)}"
    if why.rule is not None:
        yield "rule", rule_line(ruleset, why.rule)
    for number, rule in enumerate(why.also):
        yield ("" if number else "also match"), rule_line(ruleset, rule)
    yield from _llama_lines(explanation)
    streamed = sorted({share.prefill_device for share in explanation.tensors if share.prefill_device})
    if streamed:
        yield "prefill", f"streamed to {', '.join(streamed)} for long prompts"
    if explanation.kv is not None:
        yield "KV cache", _cache_text(translation, explanation.kv, ctx)
    yield "bytes", _bytes_text(explanation)
    if explanation.what == "module":
        for number, share in enumerate(explanation.tensors):
            yield ("" if number else "tensors"), f"{share.name}  {share.type}  {format_bytes(share.n_bytes)}"
    elif explanation.tensors:
        yield "type", explanation.tensors[0].type


def _llama_lines(explanation: Explanation) -> Iterator[tuple[str, str]]:
    said = list(dict.fromkeys(llama_text(share.llama) for share in explanation.tensors))
    if explanation.tied_output:
        said.append(f"a copy of token_embd.weight on the device of the output layer, {explanation.device}")
    for number, text in enumerate(said):
        yield ("" if number else "llama.cpp"), text


def rule_line(ruleset: Ruleset, index: int) -> str:
    """A rule by number, place and what it matches."""
    rule = next(rule for rule in ruleset.rules if rule.index == index)
    at = rule.position()
    return f"{index}  {f'{at.file}:{at.line}  ' if at else ''}{match_text(rule)}"


def _cache_text(translation: Translation, cache: CacheShare, ctx: int) -> str:
    size = f"{format_bytes(cache.bytes_per_token * ctx)} at {context_text(ctx)} tokens in f16"
    if cache.llama_device == translation.options.device_map.llama_name(cache.device):
        return f"{size}, on {cache.llama_device}, the device of layer {cache.layer}"
    return f"{size}, on {cache.llama_device}: {translation.options.target} cannot put it on {cache.device}"


def _bytes_text(explanation: Explanation) -> str:
    if len(explanation.below) < 2:
        return format_bytes(explanation.n_bytes) if explanation.below else "none"
    shares = ", ".join(f"{format_bytes(size)} on {device}" for device, size in explanation.below.items())
    return f"{format_bytes(explanation.n_bytes)}: {shares}"


def _kind_name(kind: Kind | Move, ctx: int) -> str:
    return f"{KV_CACHE} at {context_text(ctx)}" if kind.name == KV_CACHE else kind.name


def _size(kind: Kind | Move, ctx: int) -> str:
    return format_bytes(kind.n_bytes * (ctx if kind.name == KV_CACHE else 1))


def _totals(found: Sequence[DeviceTotal], ctx: int) -> Table:
    table = plain_table("device", "weights", f"KV at {context_text(ctx)}", "total", right=(1, 2, 3))
    for total in found:
        kv = total.kv_bytes_per_token * ctx
        table.add_row(
            total.device,
            format_bytes(total.weight_bytes),
            format_bytes(kv) if kv else "-",
            format_bytes(total.weight_bytes + kv),
        )
    return table


def _changes(before: Translation, after: Translation, ctx: int) -> Table:
    kv = f"KV at {context_text(ctx)}"
    table = plain_table("device", "weights before", "after", f"{kv} before", "after", right=(1, 2, 3, 4))
    old, new = ({total.device: total for total in totals(side)} for side in (before, after))
    for device in dict.fromkeys((*new, *old)):
        sides = [side.get(device) for side in (old, new)]
        kv_bytes = [side.kv_bytes_per_token * ctx if side else 0 for side in sides]
        table.add_row(
            device,
            *(format_bytes(side.weight_bytes) if side else "-" for side in sides),
            *(format_bytes(size) if size else "-" for size in kv_bytes),
        )
    return table


def _print_title(console: Console, model: str, rules: str) -> None:
    console.print(Text.assemble((printable(model), "bold"), f"  {printable(rules)}"), soft_wrap=True)


def _print_table(console: Console, title: str, table: Table) -> None:
    console.print(Text(f"\n{title}", style="bold"))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
