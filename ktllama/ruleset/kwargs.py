"""``replace.kwargs``: devices, operators, the transfer map, and arguments that have no effect here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ktllama.devices import AUTO, canonical
from ktllama.ruleset.catalogue import (
    DEVICE_KWARGS,
    KNOWN_KWARGS,
    OLD_KWARGS,
    OPERATOR_KWARGS,
    OPERATORS,
    THRESHOLD_KWARG,
    runs_on,
    todays_name,
)
from ktllama.ruleset.findings import Findings, Place
from ktllama.ruleset.wording import described_value, did_you_mean, shown
from ktllama.ruleset.yaml_nodes import Entry, Mapping, Node, Scalar, Sequence

EXPECTED_DEVICE = "expected cpu, cuda, cuda:N, xpu, xpu:N, npu, npu:N or auto"
MAX_LAYER = 9999

_LLAMA_NAMES = {"CUDA": "cuda", "ROCm": "cuda", "SYCL": "xpu", "CANN": "npu"}
_LLAMA_NAME = re.compile(r"(CUDA|ROCm|SYCL|CANN)(\d*)", re.ASCII)
_OTHER_BACKEND = re.compile(r"(vulkan|metal|mtl|rpc|hip|rocm|sycl|cann|opencl|musa)[0-9]*", re.ASCII | re.IGNORECASE)
_NEARLY = re.compile(r"\s*(cpu|cuda|gpu|xpu|npu|auto)\s*[:_ -]?\s*(\d{0,4})\s*", re.ASCII | re.IGNORECASE)
_MISPLACED = {"name": "match", "recursive": "the rule, beside match and replace", "class": "replace, beside kwargs"}
_KIND_NAMES = {"cpu": "the CPU", "cuda": "CUDA", "xpu": "XPU", "npu": "NPU"}


@dataclass(slots=True)
class Kwargs:
    """What ``replace.kwargs`` says; ``devices`` and ``operators`` by argument name."""

    devices: dict[str, str] = field(default_factory=dict)
    operators: dict[str, str] = field(default_factory=dict)
    transfer_map: dict[int, str] = field(default_factory=dict)


def read_kwargs(mapping: Mapping, findings: Findings) -> Kwargs:
    """Check every argument; all that is wrong goes to ``findings``."""
    read = Kwargs()
    for entry in mapping.entries.values():
        _read_kwarg(entry, read, findings)
    for operator_name, device_name in zip(OPERATOR_KWARGS, DEVICE_KWARGS[:2], strict=True):
        operator, device = read.operators.get(operator_name), read.devices.get(device_name)
        if operator is not None and device is not None:
            _check_operator_device(operator, device, mapping.entries[operator_name].node.place, findings)
    return read


def _read_kwarg(entry: Entry, read: Kwargs, findings: Findings) -> None:
    if not isinstance(entry.key, str):
        key = described_value(entry.key)
        findings.add("wrong-type", f"an argument in kwargs must have a name, found {key} as its key", entry.place)
    elif entry.node.broken:
        return
    elif entry.key in DEVICE_KWARGS:
        device = read_device(entry.node, entry.key, findings)
        if device is not None:
            read.devices[entry.key] = device
    elif entry.key in OPERATOR_KWARGS:
        operator = _read_operator(entry.node, entry.key, findings)
        if operator is not None:
            read.operators[entry.key] = operator
    elif entry.key == "transfer_map":
        read.transfer_map = _read_transfer_map(entry.node, findings)
    elif entry.key == THRESHOLD_KWARG:
        _check_threshold(entry.node, findings)
    elif entry.key not in KNOWN_KWARGS:
        _report_unknown(entry.key, entry.place, findings)


def _report_unknown(key: str, place: Place, findings: Findings) -> None:
    if not findings.takes_more():
        return
    if key in OLD_KWARGS:
        findings.add("old-name", f"argument '{key}' is from an old ktransformers; write {OLD_KWARGS[key]}", place)
    elif key == "device":
        findings.add(
            "misplaced-key",
            "'device' has no effect here; write generate_device, and prefill_device if it differs",
            place,
        )
    elif key in _MISPLACED:
        findings.add("misplaced-key", f"'{key}' has no effect inside kwargs; move it to {_MISPLACED[key]}", place)
    else:
        suggestion = did_you_mean(key, KNOWN_KWARGS)
        findings.add(
            "unknown-kwarg", f"no operator has an argument '{shown(key)}'; it has no effect{suggestion}", place
        )


# Devices


def read_device(node: Node, name: str, findings: Findings) -> str | None:
    """The canonical device that ``node`` names, or None after reporting why it names none."""
    if isinstance(node, Scalar) and isinstance(node.value, str):
        try:
            return canonical(node.value)
        except ValueError:
            complaint = f"'{shown(node.value)}' is no device; {_device_advice(node.value)}"
    elif isinstance(node, Mapping):
        complaint = _mapping_complaint(node)
    else:
        found = described_value(node.value) if isinstance(node, Scalar) else "a list"
        complaint = f"found {found}; {EXPECTED_DEVICE}"
    findings.add("bad-device", f"{name}: {complaint}", node.place)
    return None


def _mapping_complaint(node: Mapping) -> str:
    """A mapping where a device belongs: most likely ``cuda: 0``."""
    entries = list(node.entries.values())
    if len(entries) == 1 and isinstance(entries[0].key, str) and isinstance(entries[0].node, Scalar):
        text = f"{entries[0].key}:{shown(str(entries[0].node.value), 20)}"
        if _NEARLY.fullmatch(text):
            return f'YAML reads this as a mapping because of the space after the colon; write "{text}"'
    return f"found a mapping; {EXPECTED_DEVICE}"


def _device_advice(text: str) -> str:
    llama = _LLAMA_NAME.fullmatch(text)
    if llama is not None:
        return f"that is llama.cpp's name; in rules write {_LLAMA_NAMES[llama.group(1)]}:{int(llama.group(2)[:4] or 0)}"
    if _OTHER_BACKEND.fullmatch(text):
        return "a rule says cuda:N for the N-th GPU of any kind, and --device-map names the backend"
    nearly = _NEARLY.fullmatch(text)
    if nearly is not None:
        kind = nearly.group(1).lower().replace("gpu", "cuda")
        suggestion = f"{kind}:{int(nearly.group(2))}" if nearly.group(2) and kind not in ("cpu", AUTO) else kind
        return f"{EXPECTED_DEVICE}; did you mean '{suggestion}'?"
    return f"{EXPECTED_DEVICE}{did_you_mean(text, ('cpu', 'cuda', 'xpu', 'npu', 'auto')) if text.isalpha() else ''}"


# Operators


def _read_operator(node: Node, name: str, findings: Findings) -> str | None:
    """The operator's name. ``None`` as YAML reads it is a text, and some shipped files write it for "none"."""
    if not isinstance(node, Scalar) or not isinstance(node.value, str | None):
        found = described_value(node.value) if isinstance(node, Scalar) else _collection(node)
        findings.add("wrong-type", f"{name} expects an operator's name, found {found}", node.place)
        return None
    operator = node.value
    if operator is None or operator == "None":
        return None
    if operator not in OPERATORS and findings.takes_more():
        today = todays_name(operator)
        if today is not None:
            findings.add("old-name", f"operator '{operator}' is from an old ktransformers; write {today}", node.place)
        else:
            suggestion = did_you_mean(operator, OPERATORS)
            message = f"{name}: ktransformers has no operator '{shown(operator)}'{suggestion}"
            findings.add("unknown-operator", message, node.place)
    return operator


def _check_operator_device(operator: str, device: str, place: Place, findings: Findings) -> None:
    kinds = runs_on(operator)
    kind = device.partition(":")[0]
    if kinds is None or kind in kinds or device == AUTO:
        return
    runs = " and ".join(_KIND_NAMES[known] for known in sorted(kinds))
    findings.add("operator-device", f"{operator} runs on {runs} only; on {device} the base implementation runs", place)


# The rest


def _read_transfer_map(node: Node, findings: Findings) -> dict[int, str]:
    if isinstance(node, Scalar) and node.value is None:
        return {}
    if not isinstance(node, Mapping):
        found = described_value(node.value) if isinstance(node, Scalar) else _collection(node)
        message = f'transfer_map expects a mapping of layers to devices such as {{30: "cuda:1"}}, found {found}'
        findings.add("bad-transfer-map", message, node.place)
        return {}
    moves: dict[int, str] = {}
    for entry in node.entries.values():
        layer = _layer(entry, findings)
        device = read_device(entry.node, f"transfer_map {shown(str(entry.key))}", findings)
        if layer is not None and device is not None:
            moves[layer] = device
    return moves


def _layer(entry: Entry, findings: Findings) -> int | None:
    key = entry.key
    if isinstance(key, str) and re.fullmatch(r"[0-9]{1,4}", key, re.ASCII):
        findings.add(
            "transfer-map-key",
            f"layer '{key}' is a quoted text and is read as {int(key)}; remove the quotes",
            entry.place,
        )
        return int(key)
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key <= MAX_LAYER:
        return key
    findings.add(
        "bad-transfer-map",
        f"transfer_map expects layer numbers from 0 to {MAX_LAYER} as keys, found {described_value(key)}",
        entry.place,
    )
    return None


def _check_threshold(node: Node, findings: Findings) -> None:
    value = node.value if isinstance(node, Scalar) else node
    if not isinstance(value, int | float | None) or isinstance(value, bool):
        found = described_value(value) if isinstance(node, Scalar) else _collection(node)
        findings.add("wrong-type", f"{THRESHOLD_KWARG} expects a number, found {found}", node.place)
    elif value:
        findings.add(
            "layerwise-prefill",
            f"{THRESHOLD_KWARG} {shown(str(value), 20)} asks for layer-wise prefill, which llama.cpp does not have; "
            "write 0 to switch it off",
            node.place,
        )


def _collection(node: Node) -> str:
    return "a list" if isinstance(node, Sequence) else "a mapping"
