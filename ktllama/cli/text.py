"""A translation for people: what to paste, what goes where, what each rule did, what was found."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ktllama import devices
from ktllama.cli.translate import finding_lines
from ktllama.diagnostics import Diagnostic
from ktllama.layers import layer_ranges
from ktllama.lower import emit, ik_llama
from ktllama.model.kv_cache import kv_bytes_per_token
from ktllama.placing.ir import TensorPlacement
from ktllama.ruleset.rules import Rule
from ktllama.ruleset.wording import harmless, printable, shown
from ktllama.translation import Translation
from ktllama.units import counted, format_bytes

_STYLE = {"error": "bold red", "warning": "yellow", "note": "dim"}
_CONTEXT = 32768
_PIPE_WIDTH = 140


def print_translation(translation: Translation, model_path: str, stream: TextIO) -> None:
    """Write everything about ``translation`` to ``stream``; colours only on a terminal."""
    console = make_console(stream)
    model = translation.model
    print_title(
        console,
        model.name,
        f"{model.architecture}, {counted(model.n_layers, 'layer')}, {counted(len(model.tensors), 'tensor')}, "
        f"{format_bytes(model.n_bytes)}",
    )
    if not translation.has_errors:
        print_heading(console, "Settings")
        print_lines(console, _settings(translation, model_path))
        _section(console, "Devices", _devices(translation))
        _section(console, "Rules", _rules(translation))
    if translation.diagnostics:
        print_heading(console, "Findings")
        print_findings(console, translation.diagnostics)


def make_console(stream: TextIO) -> Console:
    """A console that neither cuts nor wraps what people paste; without a terminal it has no colours.

    It knows no markup and no emoji: what it prints is full of brackets and colons that are not ours.
    """
    width = None if stream.isatty() else _PIPE_WIDTH
    return _Console(file=stream, highlight=False, markup=False, emoji=False, width=width)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave a closed pipe to the command, which ends as other programs do; Console would exit with status 1."""
        raise BrokenPipeError


def print_title(console: Console, name: str, about: str) -> None:
    """A name that the model or its file chose, and what is said about it."""
    console.print(Text.assemble((harmless(name), "bold"), f"  {about}"), soft_wrap=True)


def print_heading(console: Console, title: str) -> None:
    """A heading with an empty line above."""
    console.print(Text(f"\n{title}", style="bold"))


def print_findings(console: Console, diagnostics: tuple[Diagnostic, ...]) -> None:
    """Findings, coloured by severity, each on a line of its own."""
    for found in diagnostics:
        print_lines(console, "\n".join(finding_lines(found)), style=_STYLE[found.severity])


def print_lines(console: Console, text: str, style: str = "") -> None:
    """Print ``text`` indented by two, never cut, wrapped or padded."""
    for line in text.split("\n"):
        console.print(Text(harmless(f"  {line}"), style=style), soft_wrap=True)


def _section(console: Console, title: str, table: Table) -> None:
    print_heading(console, title)
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def plain_table(*headers: str, right: tuple[int, ...] = ()) -> Table:
    """A table without lines; ``right`` numbers the columns to align right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number in right else "left", overflow="fold")
    return table


def _settings(translation: Translation, model_path: str) -> str:
    if translation.options.target == "llama-server":
        return _broken_lines(emit.to_argv(translation.settings, model_path))
    if translation.options.target == "ik_llama.cpp":
        return _broken_lines(ik_llama.to_argv(translation.settings, translation.placement, model_path))
    settings = translation.settings
    lines = [
        f"n_gpu_layers = {settings.n_gpu_layers}",
        f"devices = {', '.join(settings.devices) or 'none'}",
        f"tensor_split = {', '.join(str(count) for count in settings.tensor_split) or 'none'}",
        f"op_offload = {settings.op_offload}",
        f"no_host = {settings.no_host}",
        *(f"override  {override.pattern}  →  {override.device}" for override in settings.tensor_overrides),
    ]
    return "\n".join(lines)


def _broken_lines(words: list[str]) -> str:
    """A command over several lines, one option a line."""
    lines: list[list[str]] = [words[:1]]
    for word in words[1:]:
        if word.startswith("--"):
            lines.append([word])
        else:
            lines[-1].append(word)
    return " \\\n  ".join(" ".join(emit.shell_word(word) for word in line) for line in lines)


def _devices(translation: Translation) -> Table:
    placement = translation.placement
    weights = placement.bytes_by_device()
    layers: dict[str, list[int]] = defaultdict(list)
    for layer, device in placement.kv.items():
        layers[device].append(layer)
    table = plain_table(
        "device", "llama.cpp", "weights", f"KV at {_CONTEXT // 1024}k", "KV cache of layers", right=(2, 3)
    )
    for device in sorted({*weights, *layers}, key=devices.order):
        per_token = sum(kv_bytes_per_token(translation.model, layer) for layer in layers[device])
        table.add_row(
            device,
            translation.options.device_map.llama_name(device),
            format_bytes(weights.get(device, 0)),
            format_bytes(per_token * _CONTEXT) if per_token else "-",
            layer_ranges(layers[device]) or "-",
        )
    return table


def _rules(translation: Translation) -> Table:
    placed: dict[int | None, list[TensorPlacement]] = defaultdict(list)
    for tensor in translation.placement.tensors.values():
        placed[tensor.rule].append(tensor)
    kv = _kv_by_rule(translation)
    table = plain_table("rule", "line", "matches", "tensors", "places", right=(0, 1, 3))
    for rule in translation.ruleset.rules:
        at = rule.position()
        table.add_row(
            str(rule.index),
            str(at.line) if at else "-",
            Text(_match(rule)),
            *_placed(placed[rule.index], kv[rule.index]),
        )
    if placed[None]:
        table.add_row("-", "-", Text("(no rule)"), *_placed(placed[None], kv[None]))
    return table


def _match(rule: Rule) -> str:
    parts = []
    if rule.name == "":
        parts.append("(every name)")
    elif rule.name is not None:
        name = printable(rule.name[:57])
        parts.append(name if len(name) <= 56 else f"{name[:55]}…")
    if rule.class_path is not None:
        parts.append(shown(rule.class_path.rpartition(".")[2], 56))
    return "  ".join(parts)


def _kv_by_rule(translation: Translation) -> dict[int | None, dict[str, list[int]]]:
    """By rule and device, the layers whose KV cache a rule placed."""
    found: dict[int | None, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for layer, device in translation.placement.kv.items():
        rule = translation.resolution.decisions[translation.resolution.tree.attention[layer]].rule
        found[rule.index if rule else None][device].append(layer)
    return found


def _placed(tensors: list[TensorPlacement], kv: dict[str, list[int]]) -> tuple[str, str]:
    by_device: Counter[str] = Counter()
    for tensor in tensors:
        by_device[tensor.device] += tensor.n_bytes
    places = [f"{format_bytes(by_device[device])} on {device}" for device in sorted(by_device, key=devices.order)]
    places += [f"KV of layer {layer_ranges(kv[device])} on {device}" for device in sorted(kv, key=devices.order)]
    return (str(len(tensors)), ", ".join(places) or "-")
