"""What every device holds as a bar: weights by kind, what llama.cpp needs beside them, the margin, and what is free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ktllama.pages.markup import said, text
from ktllama.planner.memory import DeviceMemory
from ktllama.units import format_bytes

#: What a part of a device's memory is called → its class in the page's style.
_CLASSES = {
    "routed experts": "experts",
    "shared experts": "shared",
    "attention": "attention",
    "dense FFN": "dense",
    "norms and router": "norms",
    "embedding": "embedding",
    "output": "output",
    "other": "other",
    "KV cache": "kv",
    "compute buffer": "compute",
    "streaming": "streaming",
    "margin": "margin",
    "free": "free",
}

_WHAT = {
    "KV cache": "and recurrent states, for the whole context",
    "compute buffer": "llama.cpp's, from its dry run",
    "streaming": "a copy of the largest tensor that prefill streams from the host",
    "margin": "kept free on purpose",
}

#: A part of at least this share of its bar has room for its name on a wide page, and on a narrow one.
_NAMED, _NAMED_NARROW = 0.13, 0.34


def bars(memory: Sequence[DeviceMemory], swatches: dict[str, str], llama_names: dict[str, str]) -> str:
    """A bar for each device, with a legend. ``swatches`` are the colours of devices in the page's style."""
    drawn = "".join(_bar(one, swatches[one.device], llama_names[one.device]) for one in memory)
    return f'<div class="legend">{"".join(_legend(memory))}</div>{drawn}'


def _legend(memory: Sequence[DeviceMemory]) -> Iterator[str]:
    used = {name for one in memory for name, n_bytes in _parts(one).items() if n_bytes}
    for name, kind in _CLASSES.items():
        if name in used:
            yield f'<span><i class="swatch k-{kind}"></i>{name}</span>'


def _parts(one: DeviceMemory) -> dict[str, int]:
    """Everything in the order of the bar; a device without limit has no margin and nothing free."""
    if one.free is None or not one.used:
        return {**one.parts, "free": one.budget or 0}
    return {**one.parts, "margin": one.margin, "free": one.free}


def _bar(one: DeviceMemory, swatch: str, llama_name: str) -> str:
    parts = {name: n_bytes for name, n_bytes in _parts(one).items() if n_bytes > 0}
    whole = sum(parts.values()) or 1
    segments = "".join(_segment(one.device, name, n_bytes, whole) for name, n_bytes in parts.items())
    of = "no limit given" if one.budget is None else f"of {format_bytes(one.budget)}"
    free = "" if one.free is None or not one.used else f", {format_bytes(one.free)} free"
    size = f'<span class="num sum"><b>{format_bytes(one.used)}</b> {of}{free}</span>'
    return (
        f'<div class="device"><div class="who"><i class="swatch" style="background:{swatch}"></i>{text(one.device)} '
        f'<i class="llama">{text(llama_name)}</i>{size}</div>'
        f'<div class="bar" role="group" aria-label="{text(one.device)}">{segments}</div></div>'
    )


def _segment(device: str, name: str, n_bytes: int, whole: int) -> str:
    share = n_bytes / whole
    room = " named" if share >= _NAMED and name != "margin" else ""  # its hatching would make a name hard to read
    room += " narrow" if room and share >= _NAMED_NARROW else ""
    pairs = [(device, format_bytes(n_bytes)), ("of its memory", f"{share:.1%}")]
    if name in _WHAT:
        pairs.append(("", _WHAT[name]))
    label = f"<b>{name}</b> <span>{format_bytes(n_bytes)}</span>" if room else ""
    style = f'class="seg k-{_CLASSES[name]}{room}" style="flex-grow:{1000 * share:.3f}"'
    return f"<div {style} {said(name, pairs)}>{label}</div>"
