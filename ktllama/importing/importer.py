"""From a command line and a model to a rule file, proven to place the same."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ktllama import devices
from ktllama.devices import DeviceMap
from ktllama.diagnostics import Diagnostic
from ktllama.importing.assignment import Assignment, assign
from ktllama.importing.command_line import CommandLine, parse
from ktllama.importing.errors import RoundTripError
from ktllama.importing.flags import SECRET
from ktllama.importing.rule_writer import draft_rules, to_yaml
from ktllama.importing.shell import split_words
from ktllama.importing.wishes import Wishes, wishes
from ktllama.model import modules
from ktllama.model.model_file import ModelFile
from ktllama.placing.ir import Placement
from ktllama.ruleset import loader
from ktllama.translation import Options, analyse

_WIDTH = 100
_SECRET_VARIABLE = re.compile(r"[A-Za-z0-9_]*(?:KEY|TOKEN|SECRET|PASSWORD)[A-Za-z0-9_]*=", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Rules made from a command line. ``text`` is the rule file, ``placement`` what it gives."""

    text: str
    command: CommandLine
    assignment: Assignment
    placement: Placement
    diagnostics: tuple[Diagnostic, ...]


def import_command(
    words: Sequence[str] | CommandLine,
    model: ModelFile,
    *,
    gpus: int | None = None,
    device_map: DeviceMap | None = None,
    shown: Sequence[str] = (),
) -> Imported:
    """Rules that place what the command ``words`` (or a parsed one) places in ``model``.

    ``shown`` are the words to quote in the file where a parsed command is given.

    Raises:
        CommandLineError: for a command that llama.cpp would refuse, or that rules have no words for.
        RoundTripError: when the rules do not place the same, which would be a bug.
        UnsupportedModelError: for a model without module names.
    """
    command = words if isinstance(words, CommandLine) else parse(words)
    assignment = assign(command, model, gpus=gpus, device_map=device_map)
    wanted = wishes(assignment, modules.build(model))
    found = (*assignment.diagnostics, *wanted.diagnostics, *_host_buffers(command, assignment))
    quoted = tuple(shown) if isinstance(words, CommandLine) else tuple(words)
    text = to_yaml(
        draft_rules(wanted),
        stream_to=assignment.gpus[0] if command.op_offload and assignment.gpus else None,
        comments=_comments(quoted, command, model, found),
    )
    return Imported(
        text=text,
        command=command,
        assignment=assignment,
        placement=_proven(text, model, wanted, assignment),
        diagnostics=found,
    )


def _proven(text: str, model: ModelFile, wanted: Wishes, assignment: Assignment) -> Placement:
    """The placement of the rules, which must be what is wanted."""
    done = analyse(loader.loads(text, file="imported rules"), model, options=Options())
    placement = done.placement
    wrong = [str(found) for found in done.diagnostics if found.severity == "error"]
    wrong += [
        f"{name} on {tensor.device} instead of {wanted.tensors[name]}"
        for name, tensor in placement.tensors.items()
        if tensor.device != wanted.tensors[name]
    ]
    wrong += [
        f"the KV cache of layer {layer} on {device} instead of {wanted.kv.get(layer)}"
        for layer, device in placement.kv.items()
        if device != wanted.kv.get(layer)
    ]
    if placement.output_device != assignment.output and placement.ties_output:
        wrong.append(f"the output on {placement.output_device} instead of {assignment.output}")
    if wrong:
        raise RoundTripError(tuple(wrong))
    return placement


def _host_buffers(command: CommandLine, assignment: Assignment) -> tuple[Diagnostic, ...]:
    """llama.cpp's --no-host has no word of its own in rules: it follows from whether weights are streamed."""
    on_cpu = devices.CPU in assignment.tensors.values() and bool(assignment.gpus)
    if not on_cpu or command.no_host == (not command.op_offload):
        return ()
    said = "--no-host with op offload" if command.no_host else "--no-op-offload without --no-host"
    becomes = "pinned host buffers" if command.op_offload else "repacked buffers (--no-host)"
    return (
        Diagnostic(
            code="import-host-buffers",
            severity="note",
            message=f"{said}: rules have no word for host buffers; translated again, weights on the CPU get {becomes}",
        ),
    )


def _comments(
    words: tuple[str, ...], command: CommandLine, model: ModelFile, found: tuple[Diagnostic, ...]
) -> Iterator[str]:
    yield f"Placement rules for {_line(model.name)}, imported from a llama.cpp command line."
    yield "They name no model class: give --model FILE.gguf or --preset NAME with them."
    if words:
        yield ""
        yield from _wrapped(_shown(split_words(words[0]) if len(words) == 1 else words))
    if command.ignored:
        yield ""
        yield "These flags place nothing and are not in the rules:"
        yield from _wrapped([_line(flag) for flag in command.ignored])
    if found:
        yield ""
        yield from (f"{one.severity}: {_line(one.message)} [{one.code}]" for one in found)


def _shown(words: Sequence[str]) -> list[str]:
    """The command's words for a comment, secrets left out."""
    shown = []
    for index, word in enumerate(words):
        secret = _SECRET_VARIABLE.match(word)
        if secret:
            shown.append(f"{secret.group()}***")
        else:
            shown.append("***" if index and words[index - 1] in SECRET else shlex.quote(_line(word)))
    return shown


def _line(text: str) -> str:
    """``text`` on one line, whatever it holds."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _wrapped(words: Sequence[str]) -> Iterator[str]:
    line = " "
    for word in words:
        if len(line) > 1 and len(line) + 1 + len(word) > _WIDTH:
            yield line
            line = " "
        line += f" {word}"
    yield line
