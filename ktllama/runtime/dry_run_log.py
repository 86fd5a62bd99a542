"""What llama.cpp's log says about a load, for llama-cpp-python 0.3.36.

The one place that reads llama.cpp's messages. Each pattern names the function of llama.cpp that prints it; a version
that words them differently is refused before it runs (:func:`ktllama.runtime.library.require_pinned_version`).
Names are llama.cpp's: devices in layers and caches, buffer types in overrides and sizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ktllama.runtime.log_capture import ERROR, WARN, LogLine

#: llama.cpp prints sizes with two decimals of a MiB, so a parsed size may be off by half of the last one, in bytes
#: (and by the rounding to whole bytes here).
SIZE_RESOLUTION_BYTES = 0.005 * 1024 * 1024 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One tensor that an override moved, and the buffer type it went to."""

    tensor: str
    buffer_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSize:
    """One KV cache: cells a sequence group, layers, sequences, streams and bytes of K and V (to 0.01 MiB)."""

    n_cells: int
    n_layers: int
    n_seqs: int
    n_streams: int
    k_bytes: int
    v_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLog:
    """Everything that the log of one load says about places and sizes.

    ``layers`` maps every block, and the output as the last, to its device; ``kv`` every layer that has a KV cache,
    ``recurrent`` every layer that has a recurrent state, all of which together take ``state_bytes``.
    ``asked`` holds the tensors that llama.cpp looked for, in order and with repeats (some do not exist); ``unused``
    those it found and left on disk. Sizes are by buffer type, in the order printed, in bytes as far
    as two decimals of a MiB say. ``graph_splits`` and ``graph_nodes`` are (prefill, decode),
    ``sched_copies`` how many copies of its inputs every device keeps: more than one with pipeline parallelism.
    """

    devices: tuple[str, ...] = ()
    layers: Mapping[int, str] = field(default_factory=dict)
    kv: Mapping[int, str] = field(default_factory=dict)
    recurrent: Mapping[int, str] = field(default_factory=dict)
    state_bytes: int | None = None
    asked: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    model_bytes: Mapping[str, int] = field(default_factory=dict)
    n_model_buffers: Mapping[str, int] = field(default_factory=dict)
    kv_bytes: Mapping[str, int] = field(default_factory=dict)
    caches: tuple[CacheSize, ...] = ()
    compute_bytes: Mapping[str, int] = field(default_factory=dict)
    graph_splits: tuple[int, int] | None = None
    graph_nodes: tuple[int, int] | None = None
    sched_copies: int = 1
    flash_attention: bool | None = None
    load_mode: str | None = None
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def data_is_missing(self) -> bool:
        """Whether llama.cpp refused the file because tensor data lie past its end (``src/llama-model-loader.h``)."""
        return any("data is not within the file bounds" in line for line in self.errors)


def parse(lines: Iterable[LogLine]) -> LoadLog:
    """Read the log of one load (and of the context made on it)."""
    reader = _Reader()
    for level, text in lines:
        if level == WARN:
            reader.warnings.append(text)
        elif level >= ERROR:
            reader.errors.append(text)
        reader.read(text)
    return reader.result()


class _Reader:
    """Collects what the lines say; one method a kind of line."""

    def __init__(self) -> None:
        self.devices: list[str] = []
        self.layers: dict[int, str] = {}
        self.kv: dict[int, str] = {}
        self.recurrent: dict[int, str] = {}
        self.state_bytes: int | None = None
        self.asked: list[str] = []
        self.unused: list[str] = []
        self.overrides: list[Override] = []
        self.model_bytes: dict[str, int] = {}
        self.n_model_buffers: dict[str, int] = {}
        self.kv_bytes: dict[str, int] = {}
        self.caches: list[CacheSize] = []
        self.compute_bytes: dict[str, int] = {}
        self.graph_splits: tuple[int, int] | None = None
        self.graph_nodes: tuple[int, int] | None = None
        self.sched_copies = 1
        self.flash_attention: bool | None = None
        self.load_mode: str | None = None
        self.warnings: list[str] = []
        self.errors: list[str] = []

    def read(self, text: str) -> None:
        for key, pattern, take in _LINES:
            if key in text and (found := pattern.fullmatch(text)):
                take(self, found)
                return

    def result(self) -> LoadLog:
        return LoadLog(
            devices=tuple(self.devices),
            layers=self.layers,
            kv=self.kv,
            recurrent=self.recurrent,
            state_bytes=self.state_bytes,
            asked=tuple(self.asked),
            unused=tuple(self.unused),
            overrides=tuple(self.overrides),
            model_bytes=self.model_bytes,
            n_model_buffers=self.n_model_buffers,
            kv_bytes=self.kv_bytes,
            caches=tuple(self.caches),
            compute_bytes=self.compute_bytes,
            graph_splits=self.graph_splits,
            graph_nodes=self.graph_nodes,
            sched_copies=self.sched_copies,
            flash_attention=self.flash_attention,
            load_mode=self.load_mode,
            warnings=tuple(self.warnings),
            errors=tuple(self.errors),
        )

    def take_asked(self, found: re.Match[str]) -> None:
        self.asked.append(found["tensor"])

    def take_override(self, found: re.Match[str]) -> None:
        self.overrides.append(Override(tensor=found["tensor"], buffer_type=found["buffer"]))

    def take_unused(self, found: re.Match[str]) -> None:
        self.unused.append(found["tensor"])

    def take_layer(self, found: re.Match[str]) -> None:
        self.layers[int(found["layer"])] = found["device"]

    def take_kv(self, found: re.Match[str]) -> None:
        self.kv[int(found["layer"])] = found["device"]

    def take_recurrent(self, found: re.Match[str]) -> None:
        self.recurrent[int(found["layer"])] = found["device"]

    def take_state_size(self, found: re.Match[str]) -> None:
        self.state_bytes = _bytes(found["mib"])

    def take_device(self, found: re.Match[str]) -> None:
        self.devices.append(found["device"])

    def take_model_size(self, found: re.Match[str]) -> None:
        _add(self.model_bytes, found["buffer"], _bytes(found["mib"]))
        _add(self.n_model_buffers, found["buffer"], 1)

    def take_kv_size(self, found: re.Match[str]) -> None:
        _add(self.kv_bytes, found["buffer"], _bytes(found["mib"]))

    def take_compute_size(self, found: re.Match[str]) -> None:
        # runs of one device share one allocator: a real load prints it once, a dry run for every run
        # (ggml_gallocr_get_buffer_size leaves repeats out, ggml_gallocr_reserve_n_size does not)
        self.compute_bytes[found["buffer"]] = max(_bytes(found["mib"]), self.compute_bytes.get(found["buffer"], 0))

    def take_cache(self, found: re.Match[str]) -> None:
        self.caches.append(
            CacheSize(
                n_cells=int(found["cells"]),
                n_layers=int(found["layers"]),
                n_seqs=int(found["seqs"]),
                n_streams=int(found["streams"]),
                k_bytes=_bytes(found["k"]),
                v_bytes=_bytes(found["v"]),
            )
        )

    def take_graph(self, found: re.Match[str]) -> None:
        prefill = int(found["prefill"])
        self.graph_splits = (prefill, int(found["decode"] or prefill))
        nodes = int(found["prefill_nodes"])
        self.graph_nodes = (nodes, int(found["decode_nodes"] or nodes))

    def take_copies(self, found: re.Match[str]) -> None:
        self.sched_copies = int(found["copies"])

    def take_flash_attention(self, found: re.Match[str]) -> None:
        self.flash_attention = found["state"] == "enabled"

    def take_flash_attention_type(self, found: re.Match[str]) -> None:
        if found["type"] != "auto":
            self.flash_attention = found["type"] == "enabled"

    def take_load_mode(self, found: re.Match[str]) -> None:
        self.load_mode = found["mode"]


def _bytes(mebibytes: str) -> int:
    return round(float(mebibytes) * 1024 * 1024)


def _add(sizes: dict[str, int], name: str, n: int) -> None:
    sizes[name] = sizes.get(name, 0) + n


_MIB = r" *(?P<mib>[0-9.]+) MiB"

#: (text that a line must contain, the whole line, what to do), the most frequent first.
_LINES: tuple[tuple[str, re.Pattern[str], Callable[[_Reader, re.Match[str]], None]], ...] = (
    # llama_model_loader::create_tensor
    ("loading tensor ", re.compile(r"create_tensor: loading tensor (?P<tensor>\S+)"), _Reader.take_asked),
    (
        "buffer type overridden to ",
        re.compile(r"tensor (?P<tensor>\S+) \(\d+ MiB \S+\) buffer type overridden to (?P<buffer>.+)"),
        _Reader.take_override,
    ),
    (
        "model has unused tensor ",
        re.compile(r"model has unused tensor (?P<tensor>\S+) \(size = \d+ bytes\) -- ignoring"),
        _Reader.take_unused,
    ),
    # llama_model_base::load_tensors
    (
        " assigned to device ",
        re.compile(r"load_tensors: layer +(?P<layer>\d+) assigned to device (?P<device>\S+), is_swa = [01]"),
        _Reader.take_layer,
    ),
    (
        " model buffer size = ",
        re.compile(r"load_tensors: +(?P<buffer>\S+) model buffer size =" + _MIB),
        _Reader.take_model_size,
    ),
    ("(load_mode = ", re.compile(r"load_tensors: .*\(load_mode = (?P<mode>[^)]+)\)"), _Reader.take_load_mode),
    # llama_prepare_model_devices
    (": using device ", re.compile(r"\w+: using device (?P<device>\S+) \(.*"), _Reader.take_device),
    # llama_kv_cache::llama_kv_cache
    (
        ": dev = ",
        re.compile(r"llama_kv_cache\w*: layer +(?P<layer>\d+): dev = (?P<device>\S+)"),
        _Reader.take_kv,
    ),
    (
        " KV buffer size = ",
        re.compile(r"llama_kv_cache\w*: +(?P<buffer>\S+) KV buffer size =" + _MIB),
        _Reader.take_kv_size,
    ),
    (
        " cells, ",
        re.compile(
            r"llama_kv_cache\w*: size = +[0-9.]+ MiB \( *(?P<cells>\d+) cells, +(?P<layers>\d+) layers, "
            r"*(?P<seqs>\d+)/(?P<streams>\d+) seqs\), K \(\w+\): +(?P<k>[0-9.]+) MiB, V \(\w+\): +(?P<v>[0-9.]+) MiB"
        ),
        _Reader.take_cache,
    ),
    # llama_memory_recurrent::llama_memory_recurrent
    (
        ": dev = ",
        re.compile(r"llama_memory_recurrent, layer +(?P<layer>\d+): dev = (?P<device>\S+)"),
        _Reader.take_recurrent,
    ),
    (
        " rs_seq)",
        re.compile(r"llama_memory_recurrent: size =" + _MIB + r" \(.*"),
        _Reader.take_state_size,
    ),
    # llama_context::sched_reserve, resolve_fused_ops and the constructor
    (
        " compute buffer size = ",
        re.compile(r"sched_reserve: +(?P<buffer>\S+) compute buffer size =" + _MIB),
        _Reader.take_compute_size,
    ),
    (
        ": graph",
        re.compile(
            r"sched_reserve: graph[^:]*: nodes = (?P<prefill_nodes>\d+)(?: / (?P<decode_nodes>\d+))?, "
            r"splits = (?P<prefill>\d+)(?: / (?P<decode>\d+))?, .*"
        ),
        _Reader.take_graph,
    ),
    (
        ", sched copies = ",
        re.compile(r"sched_reserve: reserve took [0-9.]+ ms, sched copies = (?P<copies>\d+)"),
        _Reader.take_copies,
    ),
    (
        ": Flash Attention ",
        re.compile(r"\w+: Flash Attention (?:not supported, set to )?(?P<state>enabled|disabled)"),
        _Reader.take_flash_attention,
    ),
    (
        ": flash_attn ",
        re.compile(r"llama_context: flash_attn +=+ (?P<type>\w+)"),
        _Reader.take_flash_attention_type,
    ),
)
