"""What llama.cpp computed on the way: logits at every position, every layer's output, the chosen experts.

llama.cpp calls ``cb_eval`` for every node of a graph, once to ask whether its value is wanted and once when it is there
(``ggml_backend_sched_eval_callback`` in ``ggml/include/ggml-backend.h``). The nodes are told by the names that the
models give them (``src/models/*.cpp``, ``src/llama-graph.cpp``): ``l_out-N`` is the residual stream after layer N,
``ffn_moe_topk-N`` the experts that its router chose, ``kq_soft_max-N`` the attention weights, which exist only without
flash attention. In the last layer llama.cpp keeps the rows that are output (``inp_out_ids``), so every position is.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from ktllama.errors import LlamaCppError
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime import library as llama_library
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.library import Library
from ktllama.runtime.load import LoadedModel, load
from ktllama.runtime.log_capture import ERROR, LogCapture, LogLine
from ktllama.runtime.params import model_params
from ktllama.runtime.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ktllama.engine.messages import Segment

_NODE = re.compile(rb"(l_out|ffn_moe_topk)-(\d+)")
_ATTENTION_WEIGHTS = b"kq_soft_max-"


class _TensorHead(ctypes.Structure):
    """The first members of ``ggml_tensor`` (``ggml/include/ggml.h``)."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
    )


class TextTooLongError(LlamaCppError):
    """A text of more tokens than the context holds."""

    def __init__(self, n_tokens: int, n_ctx: int, *, is_model_limit: bool = False) -> None:
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx
        holder = "the model's context" if is_model_limit else "the context"
        remedy = "shorten it" if is_model_limit else "shorten it or enlarge the context"
        super().__init__(f"the text has {n_tokens} tokens and {holder} holds {n_ctx}: {remedy}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """One pass over ``tokens``, T of them.

    ``logits`` are (T, vocabulary), ``hidden`` gives (T, width) by layer, ``experts`` the router's choice of every MoE
    layer, (T, experts used) in no particular order. ``flash_attention`` says whether llama.cpp used it.
    """

    tokens: tuple[int, ...]
    logits: npt.NDArray[np.float32]
    hidden: dict[int, npt.NDArray[np.float32]]
    experts: dict[int, npt.NDArray[np.int32]]
    flash_attention: bool


class Probe:
    """A loaded model whose layers can be looked at. Close it, or use it as a context manager.

    Raises:
        LlamaCppError, DeviceError: as :func:`ktllama.runtime.load.load` does.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        settings: LlamaSettings,
        context: ContextOptions,
        *,
        progress: Callable[[float], bool | None] | None = None,
        explicit_devices: Collection[str] = (),
        stand_ins: bool = False,
        cpu_bytes: int | None = None,
    ) -> None:
        self._tap = _Tap(llama_library.load())
        self.loaded: LoadedModel = load(
            model_path,
            settings,
            context,
            progress=progress,
            explicit_devices=explicit_devices,
            stand_ins=stand_ins,
            cpu_bytes=cpu_bytes,
            eval_callback=self._tap.callback,
        )

    @property
    def n_ctx(self) -> int:
        """Tokens that the context holds."""
        return int(self.loaded.library.api.llama_n_ctx_seq(self.loaded.context))

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return int(self.loaded.library.api.llama_vocab_n_tokens(self.loaded.vocab))

    def run(self, tokens: Sequence[int], progress: Callable[[float], None] | None = None) -> Capture:
        """Prefill ``tokens`` from an empty context, in graphs of ``n_ubatch`` tokens, and keep what was computed.

        ``progress`` gets the share that is done, 0 to 1.

        Raises:
            TextTooLongError: when they do not fit the context.
            LlamaCppError: when there are none, one is not in the vocabulary, or llama.cpp cannot process them.
        """
        self._check(tokens)
        api, context = self.loaded.library.api, self.loaded.context
        logits = np.empty((len(tokens), self.n_vocab), np.float32)
        n_ubatch = int(api.llama_n_ubatch(context))  # llama.cpp keeps the logits of a whole call: make calls small
        api.llama_memory_clear(api.llama_get_memory(context), True)
        self._tap.begin(len(tokens))
        for start in range(0, len(tokens), n_ubatch):
            chunk = list(tokens[start : start + n_ubatch])
            self._decode(chunk, start)
            found = api.llama_get_logits(context)
            logits[start : start + len(chunk)] = np.ctypeslib.as_array(found, (len(chunk), logits.shape[1]))
            if progress is not None:
                progress((start + len(chunk)) / len(tokens))
        return self._tap.end(tokens, logits)

    def close(self) -> None:
        """Free the model and stop its stand-ins. Safe to call twice."""
        self.loaded.close()

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise LlamaCppError("the text is empty")
        if len(tokens) > self.n_ctx:
            raise TextTooLongError(len(tokens), self.n_ctx)
        if strange := [token for token in tokens if not 0 <= token < self.n_vocab]:
            raise LlamaCppError(f"token {strange[0]} is not in the vocabulary of {self.n_vocab}")

    def _decode(self, tokens: list[int], start: int) -> None:
        """One batch from position ``start`` on; all of its tokens are output."""
        api, n_tokens = self.loaded.library.api, len(tokens)
        batch = api.llama_batch_init(n_tokens, 0, 1)
        try:
            batch.n_tokens = n_tokens
            for index, token in enumerate(tokens):
                batch.token[index] = token
                batch.pos[index] = start + index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = 1
            status = api.llama_decode(self.loaded.context, batch)
        finally:
            api.llama_batch_free(batch)
        self._tap.check()
        if status != 0:
            said = tuple(line.text for line in self.loaded.recent)
            raise LlamaCppError(f"llama.cpp could not process {n_tokens} tokens (status {status})", log=said)


def tokens_of(model_path: str | os.PathLike[str], text: str) -> list[int]:
    """The token ids of plain ``text`` in the vocabulary of a model file, whose weights are not read.

    The begin-of-sequence token comes first where the model wants one.

    Raises:
        LlamaCppError: when llama.cpp cannot read the file, or it has no vocabulary.
    """
    path = Path(model_path)
    if not path.is_file():
        raise LlamaCppError(f"{path}: no such file")
    library = llama_library.load()
    # devices are named, as none: llama.cpp would ask all that it ever saw, and abort over a stand-in that has stopped
    params = model_params(library, LlamaSettings(n_gpu_layers=0), {})
    params.value.vocab_only = True
    lines: list[LogLine] = []
    capture = LogCapture(library, lines.append)
    try:
        model = library.api.llama_model_load_from_file(os.fsencode(path), params.value)
        if not model:
            said = tuple(line.text for line in lines if line.level >= ERROR and line.text)
            raise LlamaCppError(f"llama.cpp refused to read the vocabulary of {path}", log=said)
        try:
            vocab = library.api.llama_model_get_vocab(model)
            if library.api.llama_vocab_type(vocab) == library.api.LLAMA_VOCAB_TYPE_NONE:
                raise LlamaCppError(f"{path}: the file has no vocabulary, so text cannot be made into tokens")
            vocabulary = Vocabulary(library.api, vocab)
            return vocabulary.tokenize(cast("list[Segment]", [_PlainText(text)]), add_bos=vocabulary.add_bos)
        finally:
            library.api.llama_model_free(model)
    finally:
        capture.stop()


class _PlainText(NamedTuple):
    """What ``Segment`` is, without msgspec, which only serving needs."""

    text: str
    special: bool = False


class _Tap:
    """The receiver of ``cb_eval``: rows of the wanted nodes, joined over the graphs of one pass."""

    def __init__(self, library: Library) -> None:
        self._get_name = library.function("ggml_get_name")
        self._get = library.function("ggml_backend_tensor_get")
        self.callback = library.api.ggml_backend_sched_eval_callback(self._receive)
        self.begin(0)

    def begin(self, n_tokens: int) -> None:
        """Forget what was seen; a pass of ``n_tokens`` follows. Of 0: look at nothing."""
        self._n_tokens = n_tokens
        self._seen: dict[tuple[bytes, int], int] = {}
        self._values: dict[tuple[bytes, int], npt.NDArray[Any]] = {}
        self._has_attention_weights = False
        self._fault: BaseException | None = None

    def check(self) -> None:
        """Raise what went wrong in the callback, which cannot raise through llama.cpp."""
        if self._fault is not None:
            raise self._fault

    def end(self, tokens: Sequence[int], logits: npt.NDArray[np.float32]) -> Capture:
        """What was seen since :meth:`begin`."""
        n_rows = {f"{name.decode()}-{layer}": seen for (name, layer), seen in self._seen.items()}
        if short := [name for name, seen in n_rows.items() if seen != len(tokens)]:
            raise LlamaCppError(f"llama.cpp gave {n_rows[short[0]]} of {len(tokens)} rows of {short[0]}")
        by_name: dict[bytes, dict[int, npt.NDArray[Any]]] = {b"l_out": {}, b"ffn_moe_topk": {}}
        for (name, layer), values in sorted(self._values.items()):
            by_name[name][layer] = values
        capture = Capture(
            tokens=tuple(tokens),
            logits=logits,
            hidden=by_name[b"l_out"],
            experts=by_name[b"ffn_moe_topk"],
            flash_attention=not self._has_attention_weights,
        )
        self.begin(0)
        return capture

    def _receive(self, tensor: int, ask: bool, _user_data: object) -> bool:
        if not self._n_tokens or self._fault is not None:
            return not ask
        try:
            name: bytes = self._get_name(tensor) or b""
            self._has_attention_weights |= name.startswith(_ATTENTION_WEIGHTS)
            found = _NODE.fullmatch(name)
            if found is not None and not ask:
                self._keep((found.group(1), int(found.group(2))), _rows(self._get, tensor))
        except BaseException as fault:  # it would be printed and lost in the C code that called
            self._fault = fault
            return False
        return found is not None or not ask

    def _keep(self, node: tuple[bytes, int], rows: npt.NDArray[Any]) -> None:
        seen = self._seen.get(node, 0)
        if node not in self._values:
            self._values[node] = np.empty((self._n_tokens, rows.shape[1]), rows.dtype)
        self._values[node][seen : seen + len(rows)] = rows
        self._seen[node] = seen + len(rows)


def _rows(get: Callable[..., Any], tensor: int) -> npt.NDArray[Any]:
    """The matrix ``tensor``, a row a token, wherever it is. A view has rows further apart than they are long."""
    head = _TensorHead.from_address(tensor)
    kinds: dict[int, Any] = {0: np.float32, 26: np.int32}  # enum ggml_type
    dtype = np.dtype(kinds[head.type])
    n_columns, n_rows, stride = int(head.ne[0]), int(head.ne[1]), int(head.nb[1])
    buffer = np.empty(max(0, (n_rows - 1) * stride + n_columns * dtype.itemsize), np.uint8)
    if not buffer.size:
        return np.empty((0, n_columns), dtype)
    get(tensor, buffer.ctypes.data, 0, buffer.size)
    strided = np.ndarray((n_rows, n_columns), dtype, buffer, strides=(stride, dtype.itemsize))
    return strided.copy()
