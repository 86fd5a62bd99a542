"""llama.cpp's command line as a value: what of it decides placement, and what does not (common/arg.cpp)."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ktllama.diagnostics import Diagnostic
from ktllama.importing import flags
from ktllama.importing.ecmascript import PatternError, translate
from ktllama.importing.errors import CommandLineError
from ktllama.importing.shell import read_command
from ktllama.lower.lowering import MAX_DEVICES
from ktllama.ranges import numbers_pattern

_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"  # LLM_FFN_EXPS_REGEX of common/common.h
_DENSE = r"\.ffn_(up|down|gate)\."  # LLM_FFN_DENSE_REGEX
_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS of src/llama-hparams.h
_MAX_INT = 2**31 - 1

_INTEGER = re.compile(r"[ \t]*([+-]?[0-9]+)")
_GPU = r"(?:CUDA|ROCm|Vulkan|SYCL|CANN|MTL|MUSA)[0-9]{1,3}"
_BUFFER_TYPE = re.compile(rf"(?:CPU|{_GPU}|RPC[0-9]{{0,3}}\[[^\s\[\]]+\])", re.ASCII)
_DEVICE = re.compile(rf"(?:{_GPU}|RPC[0-9]{{1,3}})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """Tensors in whose names ``pattern`` is found go to buffer type ``buffer``. ``flag`` is what the user wrote."""

    pattern: re.Pattern[str]
    buffer: str
    flag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """What a command says about placement.

    ``n_gpu_layers`` is None for all layers. ``devices`` is None where llama.cpp chooses, empty for ``none``.
    ``ignored`` lists flags that decide no placement, as written; ``visible_gpus`` is how many GPUs the environment
    leaves.
    """

    program: str = ""
    model: str | None = None
    n_gpu_layers: int | None = None
    tensor_split: tuple[float, ...] = ()
    overrides: tuple[Override, ...] = ()
    devices: tuple[str, ...] | None = None
    split_mode: Literal["layer", "none"] = "layer"
    main_gpu: int = 0
    rpc: tuple[str, ...] = ()
    kv_offload: bool = True
    op_offload: bool = True
    no_host: bool = False
    visible_gpus: int | None = None
    ignored: tuple[str, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = field(default=())


def parse(words: Sequence[str]) -> CommandLine:
    """Read a command, given as words or as one word that holds all of it.

    Raises:
        CommandLineError: for a command that llama.cpp would refuse, or that rules have no words for.
    """
    command = read_command(words)
    return _Parser(command.program, command.options, command.environment).parse()


class _Parser:
    def __init__(self, program: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self.program = program
        self.words = words
        self.at = 0
        self.said: dict[str, object] = {}
        self.overrides: list[Override] = []
        self.ignored: list[str] = []
        self.unknown: list[str] = []
        self.foreign: list[str] = []
        self.auto_layers: str | None = "without -ngl"
        self.environment = environment

    def parse(self) -> CommandLine:
        while self.at < len(self.words):
            word = self.words[self.at]
            self.at += 1
            flag = word.replace("_", "-") if word.startswith("--") else word
            if flag in _READERS:
                _READERS[flag](self, flag)
            else:
                self._skip(word, flag)
        said: dict[str, object] = {
            "program": self.program,
            "overrides": tuple(self.overrides),
            "ignored": tuple(self.ignored),
            "visible_gpus": self._visible_gpus(),
            "diagnostics": tuple(self._diagnostics()),
            **self.said,
        }
        return CommandLine(**said)  # type: ignore[arg-type]  # the readers below fill in the fields

    def value(self, flag: str) -> str:
        if self.at == len(self.words):
            raise CommandLineError(flag, "a value is missing")
        self.at += 1
        return self.words[self.at - 1]

    def _skip(self, word: str, flag: str) -> None:
        """Step over a flag that decides nothing here, with its values."""
        n_values = 0
        if flag in flags.WITH_VALUE or flag in flags.IK_WITH_VALUE:
            n_values = 1
        elif flag in flags.WITH_TWO_VALUES:
            n_values = 2
        elif flag in flags.MAYBE_WITH_VALUE:
            n_values = int(self.at < len(self.words) and self.words[self.at] in flags.SWITCH_VALUES)
        elif flag not in flags.WITHOUT_VALUE | flags.IK_WITHOUT_VALUE:
            self.unknown.append(word)
            if flag.startswith("-") and self.at < len(self.words) and not self.words[self.at].startswith("-"):
                self.at += 1  # most likely its value
            return
        values = [self.value(flag) for _ in range(n_values)]
        self.ignored.append(" ".join([word, *(["***"] if flag in flags.SECRET else values)]))
        if flag in flags.IK_WITHOUT_VALUE | flags.IK_WITH_VALUE:
            self.foreign.append(word)

    def _visible_gpus(self) -> int | None:
        for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
            if name in self.environment:
                listed = [part for part in self.environment[name].split(",") if part.strip() not in ("", "-1")]
                return len(listed)
        return None

    def _diagnostics(self) -> list[Diagnostic]:
        found = []
        if self.auto_layers is not None:
            found.append(
                _found(
                    "import-auto-layers",
                    "warning",
                    f"{self.auto_layers}, llama-server fits the layers to the memory that is free when it starts; "
                    "taken as all layers; give -ngl a number for another split",
                )
            )
        if self.unknown:
            found.append(
                _found(
                    "import-unknown-flag",
                    "warning",
                    f"not a flag of this llama.cpp, and left out: {', '.join(map(repr, self.unknown))}",
                )
            )
        if self.foreign:
            found.append(
                _found(
                    "import-ik-llama",
                    "warning",
                    f"{', '.join(self.foreign)}: flags of ik_llama.cpp; the command was read as llama.cpp reads it, "
                    "where -ngl N counts the output layer as one of the N, while ik_llama.cpp offloads it last",
                )
            )
        variables = [name for name in self.environment if name.startswith("LLAMA_ARG_")]
        if variables:
            found.append(
                _found(
                    "import-environment",
                    "warning",
                    f"{', '.join(variables)}: environment variables that llama.cpp reads as flags were left out; "
                    "write them as flags",
                )
            )
        return found

    # readers of the flags that decide placement

    def read_layers(self, flag: str) -> None:
        value = self.value(flag)
        self.auto_layers = None
        if value == "all":
            self.said["n_gpu_layers"] = None
            return
        number = -1 if value == "auto" else _integer(flag, value, "a number of layers, 'auto' or 'all'")
        if number == -1:
            self.auto_layers = f"with {flag} {value}"
        self.said["n_gpu_layers"] = None if number < 0 else number

    def read_split(self, flag: str) -> None:
        value = self.value(flag)
        parts = re.split(r"[,/]+", value)
        if len(parts) >= MAX_DEVICES:
            raise CommandLineError(flag, f"{len(parts)} shares, and llama.cpp takes at most {MAX_DEVICES - 1}")
        self.said["tensor_split"] = tuple(_share(flag, part) for part in parts)

    def read_override(self, flag: str) -> None:
        for part in self.value(flag).split(","):
            pattern, equals, buffer = part.partition("=")
            if not equals:
                raise CommandLineError(
                    flag, f"{part!r} has no '='; expected PATTERN=BUFFER_TYPE (a ',' ends it, even in {{2,3}})"
                )
            if not _BUFFER_TYPE.fullmatch(buffer):
                raise CommandLineError(flag, f"{part!r}: {buffer!r} is no buffer type{_meant(buffer)}")
            self.overrides.append(Override(pattern=_pattern(flag, pattern), buffer=buffer, flag=f"{flag} {part}"))

    def read_experts(self, flag: str) -> None:
        self.overrides.append(Override(pattern=re.compile(_EXPERTS), buffer="CPU", flag=flag))

    def read_n_experts(self, flag: str) -> None:
        self._first_layers(flag, _EXPERTS)

    def read_n_dense(self, flag: str) -> None:
        self._first_layers(flag, _DENSE)

    def _first_layers(self, flag: str, tail: str) -> None:
        value = self.value(flag)
        number = _integer(flag, value, "a number of layers")
        if number < 0:
            raise CommandLineError(flag, f"{value!r}: expected a number of layers, 0 or more")
        if number:
            numbers = numbers_pattern(range(min(number, _MAX_LAYERS)))
            self.overrides.append(
                Override(pattern=re.compile(rf"blk\.{numbers}{tail}"), buffer="CPU", flag=f"{flag} {value}")
            )

    def read_devices(self, flag: str) -> None:
        value = self.value(flag)
        names = tuple(value.split(","))
        if names == ("none",):
            self.said["devices"] = ()
            return
        for name in names:
            if not _DEVICE.fullmatch(name):
                raise CommandLineError(flag, f"{name!r} is no GPU device; expected names such as CUDA0,CUDA1")
        self.said["devices"] = names

    def read_split_mode(self, flag: str) -> None:
        value = self.value(flag)
        if value in ("row", "tensor", "graph", "attn"):
            raise CommandLineError(
                flag, f"{value!r} cuts single tensors across GPUs, and a rule gives a tensor one device; use -sm layer"
            )
        if value not in ("layer", "none"):
            raise CommandLineError(flag, f"{value!r}: expected none, layer, row or tensor")
        self.said["split_mode"] = value

    def read_main_gpu(self, flag: str) -> None:
        self.said["main_gpu"] = _integer(flag, self.value(flag), "the number of a GPU")

    def read_rpc(self, flag: str) -> None:
        self.said["rpc"] = tuple(part for part in self.value(flag).split(",") if part)

    def read_model(self, flag: str) -> None:
        self.said["model"] = self.value(flag)

    def kv_on_cpu(self, _flag: str) -> None:
        self.said["kv_offload"] = False

    def kv_offloaded(self, _flag: str) -> None:
        self.said["kv_offload"] = True

    def ops_on_cpu(self, _flag: str) -> None:
        self.said["op_offload"] = False

    def ops_offloaded(self, _flag: str) -> None:
        self.said["op_offload"] = True

    def without_host(self, _flag: str) -> None:
        self.said["no_host"] = True


_READERS: Mapping[str, Callable[[_Parser, str], None]] = {
    flag: reader
    for names, reader in (
        (("-ngl", "--gpu-layers", "--n-gpu-layers"), _Parser.read_layers),
        (("-ts", "--tensor-split"), _Parser.read_split),
        (("-ot", "--override-tensor"), _Parser.read_override),
        (("-cmoe", "--cpu-moe"), _Parser.read_experts),
        (("-ncmoe", "--n-cpu-moe"), _Parser.read_n_experts),
        (("-ncffn", "--n-cpu-ffn"), _Parser.read_n_dense),
        (("-dev", "--device"), _Parser.read_devices),
        (("-sm", "--split-mode"), _Parser.read_split_mode),
        (("-mg", "--main-gpu"), _Parser.read_main_gpu),
        (("--rpc",), _Parser.read_rpc),
        (("-m", "--model"), _Parser.read_model),
        (("-nkvo", "--no-kv-offload"), _Parser.kv_on_cpu),
        (("-kvo", "--kv-offload"), _Parser.kv_offloaded),
        (("--no-op-offload",), _Parser.ops_on_cpu),
        (("--op-offload",), _Parser.ops_offloaded),
        (("--no-host",), _Parser.without_host),
    )
    for flag in names
}


def _pattern(flag: str, pattern: str) -> re.Pattern[str]:
    try:
        return translate(pattern)
    except PatternError as fault:
        raise CommandLineError(flag, f"pattern {pattern!r}: {fault}") from fault


def _integer(flag: str, value: str, expected: str) -> int:
    """A number as ``std::stoi`` reads it, except that it may not be followed by anything."""
    found = _INTEGER.fullmatch(value)
    if found is None:
        raise CommandLineError(flag, f"{value!r}: expected {expected}")
    digits = found.group(1)
    if len(digits) > 11 or abs(int(digits)) > _MAX_INT:
        raise CommandLineError(flag, f"{value!r} is out of range for llama.cpp")
    return int(digits)


def _share(flag: str, text: str) -> float:
    try:
        share = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        share = math.nan
    if not math.isfinite(share) or share < 0 or share > 1e30:
        raise CommandLineError(flag, f"{text!r}: expected a share of 0 or more, as in -ts 3,1")
    return share


def _meant(buffer: str) -> str:
    if buffer.upper() == "CPU":
        return "; did you mean CPU?"
    close = difflib.get_close_matches(buffer.upper().replace(":", ""), [f"CUDA{number}" for number in range(16)], n=1)
    return f"; did you mean {close[0]}?" if close else "; expected CPU, CUDA0, Vulkan0, SYCL0, ROCm0 or the like"


def _found(code: str, severity: Literal["warning", "note"], message: str) -> Diagnostic:
    return Diagnostic(code=code, severity=severity, message=message)
