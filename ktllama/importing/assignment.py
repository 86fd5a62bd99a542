"""llama.cpp's arithmetic: where its flags put every tensor and every layer's KV cache of a model.

Read in src/llama-model.cpp (``load_tensors``), src/llama.cpp (the device list) and src/llama-kv-cache.cpp. It is
computed in 32-bit floats there, and so it is here.
"""

from __future__ import annotations

import bisect
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from ktllama import devices as rule_devices
from ktllama.devices import LLAMA_PREFIXES, DeviceMap
from ktllama.diagnostics import Diagnostic
from ktllama.importing.command_line import CommandLine, Override
from ktllama.importing.errors import CommandLineError
from ktllama.lower.lowering import MAX_DEVICES
from ktllama.model.model_file import TOKEN_EMBEDDING, ModelFile
from ktllama.model.modules import block_of
from ktllama.placing.searching import TIME_LIMIT, RunawayPatternError, search_all

_CPU = "CPU"
_RULE_KINDS = {prefix: kind for kind, prefix in LLAMA_PREFIXES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Where everything is, in devices of rules. ``output`` is the output layer's device, ``gpus`` llama.cpp's list.

    ``names`` maps the rule devices in use to llama.cpp's names.
    """

    model: ModelFile
    tensors: Mapping[str, str]
    kv: Mapping[int, str]
    output: str
    gpus: tuple[str, ...]
    names: Mapping[str, str]
    diagnostics: tuple[Diagnostic, ...] = ()


def assign(
    command: CommandLine, model: ModelFile, *, gpus: int | None = None, device_map: DeviceMap | None = None
) -> Assignment:
    """Where ``command`` puts the tensors and KV caches of ``model``. ``gpus`` says how many GPUs "all" means.

    Raises:
        CommandLineError: for flags that llama.cpp would refuse on such a machine, and a pattern that runs away.
    """
    return _Assigner(command, model, gpus, device_map or DeviceMap()).assignment()


class _Assigner:
    def __init__(self, command: CommandLine, model: ModelFile, gpus: int | None, device_map: DeviceMap) -> None:
        self.command = command
        self.model = model
        self.found: list[Diagnostic] = []
        self.devices = self._devices(gpus)
        self.map = device_map
        self.names: dict[str, str] = {}

    def assignment(self) -> Assignment:
        base = self._base_layers()
        overridden = self._overridden()
        names = [tensor.name for tensor in self.model.tensors]
        tensors = {name: overridden.get(name) or _base(name, base) for name in names}
        n_trunk = self.model.n_layers - self.model.integer("nextn_predict_layers")
        kv = {layer: base[layer] if self.command.kv_offload else _CPU for layer in range(n_trunk)}
        output = tensors.get("output.weight") or overridden.get(TOKEN_EMBEDDING) or base[-1]
        listed = (_CPU, *self.devices, *tensors.values())
        rule_names = self._rule_names(tuple(dict.fromkeys(listed)))
        self._kv_finding(base)
        self._outside_finding(set(tensors.values()))
        return Assignment(
            model=self.model,
            tensors={name: rule_names[device] for name, device in tensors.items()},
            kv={layer: rule_names[device] for layer, device in kv.items()},
            output=rule_names[output],
            gpus=tuple(rule_names[device] for device in self.devices),
            names={rule: llama for llama, rule in rule_names.items()},
            diagnostics=(*self.command.diagnostics, *self.found),
        )

    def _devices(self, gpus: int | None) -> tuple[str, ...]:
        """llama.cpp's device list: what -dev says, or RPC servers and then all GPUs; with -sm none one of them."""
        listed = self.command.devices
        if listed is None:
            rpc = tuple(f"RPC{number}" for number in range(len(self.command.rpc)))
            kind = self._kind()
            count = self._count() if gpus is None else gpus
            listed = (*rpc, *(f"{kind}{number}" for number in range(max(0, count - (len(rpc) if gpus is None else 0)))))
        if len(listed) > MAX_DEVICES:
            raise CommandLineError("", f"{len(listed)} devices, and llama.cpp takes at most {MAX_DEVICES}")
        if self.command.split_mode == "none" and listed:
            if self.command.main_gpu >= len(listed):
                raise CommandLineError(
                    "--main-gpu", f"{self.command.main_gpu}: there are only {len(listed)} devices ({', '.join(listed)})"
                )
            listed = listed[self.command.main_gpu :][:1] if self.command.main_gpu >= 0 else ()
        return listed

    def _kind(self) -> str:
        """What the GPUs are called, as far as the overrides show it."""
        named = (re.match(r"(?!RPC)[A-Za-z]+(?=[0-9])", override.buffer) for override in self.command.overrides)
        return next((found.group() for found in named if found), "CUDA")

    def _count(self) -> int:
        """How many devices there must be for the flags to make sense; one at least."""
        if self.command.visible_gpus is not None:
            return self.command.visible_gpus
        kind = self._kind()
        numbers = [int(found.group(1)) for override in self.command.overrides if (found := _number(kind, override))]
        one_gpu = self.command.main_gpu if self.command.split_mode == "none" else 0
        return max(1, len(self.command.tensor_split), one_gpu + 1, *(number + 1 for number in numbers))

    def _base_layers(self) -> list[str]:
        """The device of every block and, last, of the output layer."""
        n_layers = self.model.n_layers
        said = self.command.n_gpu_layers
        n_gpu_layers = n_layers + 1 if said is None else said
        start = max(n_layers + 1 - n_gpu_layers, 0)
        n_offloaded = min(n_gpu_layers, n_layers + 1) if self.devices else 0
        points = self._split_points() if n_offloaded else []
        return [
            _CPU
            if layer < start or layer - start >= n_offloaded
            else self.devices[bisect.bisect_right(points, _f32((layer - start) / n_offloaded))]
            for layer in range(n_layers + 1)
        ]

    def _split_points(self) -> list[float]:
        shares = [*self.command.tensor_split, *[0.0] * len(self.devices)][: len(self.devices)]
        if not any(map(_f32, shares)):
            shares = [1.0] * len(self.devices)
            if len(self.devices) > 1:
                self._find(
                    "import-split-by-memory",
                    "warning",
                    "without -ts llama.cpp splits the layers by the memory that is free on each GPU; taken as equal on "
                    f"{', '.join(self.devices)}; give -ts to say otherwise",
                )
        points: list[float] = []
        for share in shares:
            points.append(_f32((points[-1] if points else 0.0) + _f32(share)))
        return [_f32(point / points[-1]) for point in points]

    def _overridden(self) -> dict[str, str]:
        """Tensor → device of the first override that finds it."""
        names = [tensor.name for tensor in self.model.tensors]
        taken: dict[str, str] = {}
        unused = []
        for override in self.command.overrides:
            hits = self._search(override, names)
            if not hits:
                unused.append(override.flag)
            for name in hits:
                taken.setdefault(name, self._device_of(override.buffer))
        if unused:
            self._find(
                "import-override-unused",
                "warning",
                f"no tensor of {self.model.name} has a name like {'; '.join(unused)}",
            )
        return taken

    def _search(self, override: Override, names: list[str]) -> list[str]:
        try:
            hits = search_all(override.pattern, names)
        except RunawayPatternError:
            raise CommandLineError(
                override.flag, f"this pattern was stopped after {TIME_LIMIT:g} s: it backtracks without end"
            ) from None
        return [name for name, hit in zip(names, hits, strict=True) if hit]

    def _device_of(self, buffer: str) -> str:
        """The device behind a buffer type: ``RPC0[host:port]`` is the server of --rpc at that address."""
        endpoint = re.fullmatch(r"RPC[0-9]*\[(.+)\]", buffer)
        if endpoint and endpoint.group(1) in self.command.rpc:
            return f"RPC{self.command.rpc.index(endpoint.group(1))}"
        return buffer

    def _rule_names(self, listed: tuple[str, ...]) -> dict[str, str]:
        """llama.cpp device → rule device, the user's map first."""
        found = {llama: rule for rule, llama in self.map.chosen.items() if llama in listed}
        found[_CPU] = rule_devices.CPU
        for device in listed:
            if device not in found:
                found[device] = self._rule_name(device, set(found.values()) | set(self.map.chosen))
        renamed = [f"{rule}={llama}" for llama, rule in found.items() if DeviceMap().llama_name(rule) != llama]
        if renamed:
            self._find(
                "import-device-names",
                "note",
                "translate the rules with " + " ".join(f"--device-map {pair}" for pair in renamed),
            )
        return found

    def _rule_name(self, device: str, taken: set[str]) -> str:
        prefix, number = re.fullmatch(r"([A-Za-z]+)([0-9]*)(?:\[.*\])?", device).groups()  # type: ignore[union-attr]
        kind = _RULE_KINDS.get(prefix, "cuda")
        wanted = f"{kind}:{int(number or 0)}"
        if wanted not in taken:
            return wanted
        return next(name for index in range(MAX_DEVICES * 2) if (name := f"{kind}:{index}") not in taken)

    def _kv_finding(self, base: list[str]) -> None:
        if not self.command.kv_offload and set(base) != {_CPU}:
            self._find(
                "import-kv-on-cpu",
                "warning",
                "-nkvo keeps every KV cache on the CPU: the rules put self_attn there and its projections elsewhere. "
                "Only --target python places that, by leaving the layers on the CPU and moving their weights",
            )

    def _outside_finding(self, used: set[str]) -> None:
        outside = sorted(used - set(self.devices) - {_CPU})
        if outside:
            self._find(
                "import-device-outside",
                "warning",
                f"-ot names {', '.join(outside)}, which is not among the devices that llama.cpp uses "
                f"({', '.join(self.devices) or 'none'}); add it to -dev",
            )

    def _find(self, code: str, severity: str, message: str) -> None:
        self.found.append(Diagnostic(code=code, severity="note" if severity == "note" else "warning", message=message))


def _base(name: str, base: list[str]) -> str:
    block = block_of(name)
    if block is not None and block < len(base) - 1:
        return base[block]
    return _CPU if name == TOKEN_EMBEDDING else base[-1]


def _number(kind: str, override: Override) -> re.Match[str] | None:
    return re.fullmatch(rf"{kind}([0-9]+)", override.buffer)


def _f32(number: float) -> float:
    """``number`` as a 32-bit float."""
    rounded: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return rounded
