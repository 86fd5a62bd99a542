from __future__ import annotations

import ctypes
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gguf as gguf_package
import llama_cpp
import numpy as np
import pytest

from ktllama.errors import ModelFileError
from ktllama.model import gguf, sparse
from ktllama.model.model_file import MetadataArray, MetadataValue, ModelFile, Tensor

N_VOCAB = 512
GIB = 1024**3


def laid_out(*infos: tuple[str, tuple[int, ...], str], alignment: int = 32) -> tuple[Tensor, ...]:
    tensors = []
    offset = 0
    for name, shape, type_name in infos:
        n_bytes = gguf.tensor_bytes(type_name, shape)
        tensors.append(Tensor(name=name, shape=shape, type=type_name, n_bytes=n_bytes, offset=offset))
        offset += gguf.padded(n_bytes, alignment)
    return tuple(tensors)


def llama_tensors(n_vocab: int) -> tuple[Tensor, ...]:
    """One block, 256 wide, of a llama."""
    return laid_out(
        ("token_embd.weight", (256, n_vocab), "Q4_K"),
        ("output_norm.weight", (256,), "F32"),
        ("output.weight", (256, n_vocab), "Q6_K"),
        ("blk.0.attn_norm.weight", (256,), "F32"),
        *((f"blk.0.attn_{which}.weight", (256, 256), "Q4_K") for which in ("q", "k", "v", "output")),
        ("blk.0.ffn_norm.weight", (256,), "F32"),
        *((f"blk.0.ffn_{which}.weight", (256, 256), "Q4_K") for which in ("gate", "up", "down")),
    )


LLAMA: dict[str, MetadataValue] = {
    "general.architecture": "llama",
    "general.name": "Tiny Llama",
    "llama.block_count": 1,
    "llama.context_length": 128,
    "llama.embedding_length": 256,
    "llama.feed_forward_length": 256,
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 2.0**-17,
}


def tiny(n_vocab: int = N_VOCAB, **more: MetadataValue) -> ModelFile:
    metadata = LLAMA | {key.replace("__", "."): value for key, value in more.items()}
    return ModelFile(name="Tiny Llama", architecture="llama", metadata=metadata, tensors=llama_tensors(n_vocab))


@contextmanager
def loaded(path: Path) -> Iterator[llama_cpp.llama_model_p]:
    """The file loaded by llama.cpp without allocating its tensors."""
    params = llama_cpp.llama_model_default_params()
    params.no_alloc = True
    params.load_mode = 0  # LLAMA_LOAD_MODE_NONE: no mmap
    no_devices = (ctypes.c_void_p * 1)(None)  # of "all there are", one may be a stand-in of another test that is gone
    params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


def token_texts(model: llama_cpp.llama_model_p, text: bytes) -> list[bytes]:
    """``text`` as tokens, each as the bytes it stands for; beginning and end are shown as they are."""
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    tokens = (llama_cpp.llama_token * 64)()
    n_tokens = llama_cpp.llama_tokenize(vocabulary, text, len(text), tokens, 64, True, True)
    piece = ctypes.create_string_buffer(32)
    pieces = []
    for token in tokens[:n_tokens]:
        n_bytes = llama_cpp.llama_token_to_piece(vocabulary, token, piece, 32, 0, True)
        pieces.append(piece.raw[:n_bytes])
    return pieces


# --- Round trips ------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    model = tiny(
        tokenizer__ggml__model="gpt2",
        tokenizer__ggml__tokens=MetadataArray(item_type=8, n_items=3, values=("a", "ö", "")),
        tokenizer__ggml__scores=MetadataArray(item_type=6, n_items=2, values=(0.5, -1.0)),
        a__true=True,
        a__negative=-7,
        a__largest=2**32 - 1,
        a__u64=2**64 - 1,
        a__i64=-(2**63),
        a__infinite=math.inf,
        a__double=1e300,
        a__flags=MetadataArray(item_type=7, n_items=2, values=(True, False)),
        a__nothing=MetadataArray(item_type=4, n_items=0, values=()),
    )
    path = tmp_path / "tiny.gguf"
    sparse.write(model, path)
    assert gguf.read(path) == replace(model, paths=(str(path),))


def test_floats_are_rounded_to_f32(tmp_path: Path) -> None:
    sparse.write(tiny(a__epsilon=1e-6), tmp_path / "tiny.gguf")
    assert gguf.read(tmp_path / "tiny.gguf").metadata["a.epsilon"] == float(np.float32(1e-6))


def test_another_alignment(tmp_path: Path) -> None:
    model = replace(
        tiny(general__alignment=4096, tokenizer__ggml__model="none"),
        tensors=laid_out(("a", (1,), "F32"), ("b", (33,), "F16"), alignment=4096),
    )
    sparse.write(model, tmp_path / "tiny.gguf")
    assert gguf.read(tmp_path / "tiny.gguf") == replace(model, paths=(str(tmp_path / "tiny.gguf"),))
    assert (tmp_path / "tiny.gguf").stat().st_size == 3 * 4096


def test_the_gguf_package_reads_the_same(tmp_path: Path) -> None:
    model = tiny(
        a__negative=-7,
        a__true=True,
        a__strings=MetadataArray(item_type=8, n_items=2, values=("x", "y")),
        tokenizer__ggml__model="none",
    )
    path = tmp_path / "tiny.gguf"
    sparse.write(model, path)
    reader = gguf_package.GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert {name: field.contents() for name, field in fields.items()} == {
        **model.metadata,
        "a.strings": ["x", "y"],
    }
    assert {name: field.types[0].name for name, field in fields.items()} == {
        **{name: "UINT32" for name in LLAMA if name.startswith("llama.")},
        "general.architecture": "STRING",
        "general.name": "STRING",
        "llama.attention.layer_norm_rms_epsilon": "FLOAT32",
        "a.negative": "INT32",
        "a.true": "BOOL",
        "a.strings": "ARRAY",
        "tokenizer.ggml.model": "STRING",
    }
    assert [
        (tensor.name, tuple(int(n) for n in tensor.shape), tensor.tensor_type.name, int(tensor.n_bytes))
        for tensor in reader.tensors
    ] == [(tensor.name, tensor.shape, tensor.type, tensor.n_bytes) for tensor in model.tensors]


def test_split_files_become_one(tmp_path: Path) -> None:
    tensors = tuple(replace(tensor, offset=0, file_index=index) for index, tensor in enumerate(llama_tensors(N_VOCAB)))
    model = replace(tiny(split__no=0, split__count=11, tokenizer__ggml__model="none"), tensors=tensors)
    path = tmp_path / "one.gguf"
    sparse.write(model, path)
    assert gguf.read(path) == replace(tiny(tokenizer__ggml__model="none"), paths=(str(path),))


def test_a_huge_model_takes_kilobytes(tmp_path: Path) -> None:
    model = replace(tiny(), tensors=laid_out(("token_embd.weight", (256, 3 * 2**30), "Q4_K")))
    path = tmp_path / "huge.gguf"
    sparse.write(model, path)
    found = path.stat()
    assert found.st_size - 432 * GIB in range(4096)
    assert found.st_blocks * 512 <= 16_384
    assert gguf.read(path).n_bytes == 432 * GIB


def test_hand_over_imports_nothing_slow() -> None:
    slow = {"numpy", "gguf", "llama_cpp"}
    code = f"import sys, ktllama.model.sparse; print(sorted({slow} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


# --- Vocabularies -----------------------------------------------------------------------------------------------------


def test_without_a_vocabulary_llama_cpp_makes_dummy_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    sparse.write(tiny(), path)
    added: dict[str, MetadataValue] = {"tokenizer.ggml.model": "none", "llama.vocab_size": N_VOCAB}
    assert gguf.read(path).metadata == LLAMA | added
    with loaded(path) as model:
        assert llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)) == N_VOCAB


def test_a_vocabulary_that_was_not_kept_becomes_none(tmp_path: Path) -> None:
    model = tiny(
        llama__vocab_size=N_VOCAB,
        tokenizer__ggml__model="gpt2",
        tokenizer__ggml__tokens=MetadataArray(item_type=8, n_items=N_VOCAB),
        tokenizer__ggml__bos_token_id=1,
        a__long=MetadataArray(item_type=4, n_items=9999),
    )
    sparse.write(model, tmp_path / "tiny.gguf")
    expected: dict[str, MetadataValue] = {"llama.vocab_size": N_VOCAB, "tokenizer.ggml.model": "none"}
    assert gguf.read(tmp_path / "tiny.gguf").metadata == LLAMA | expected


def test_a_vocabulary_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    sparse.write(tiny(260, tokenizer__ggml__model="llama", tokenizer__chat_template="x"), path, vocabulary_size=260)
    metadata = gguf.read(path).metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, MetadataArray)
    assert tokens.values is not None
    assert len(set(tokens.values)) == 260
    assert tokens.values[65:69] == ("A", "B", "C", "D")
    assert tokens.values[256:] == ("ĀĀ", "Āā", "<begin>", "<end>")
    assert {key: value for key, value in metadata.items() if key not in LLAMA} == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": MetadataArray(item_type=5, n_items=260, values=(1,) * 258 + (3, 3)),
        "tokenizer.ggml.merges": MetadataArray(item_type=8, n_items=2, values=("Ā Ā", "Ā ā")),
        "tokenizer.ggml.bos_token_id": 258,
        "tokenizer.ggml.eos_token_id": 259,
    }


@pytest.mark.parametrize(
    ("n_vocab", "pieces"),
    [
        (3, []),
        (258, [b"H", b"i", b"!", b"\n", b"\xc3", b"\xb6", b"<end>"]),
        (70_000, [b"Hi", b"!", b"\n", b"\xc3\xb6", b"<end>"]),
    ],
)
def test_llama_cpp_loads_and_uses_the_vocabulary(tmp_path: Path, n_vocab: int, pieces: list[bytes]) -> None:
    path = tmp_path / "tiny.gguf"
    sparse.write(tiny(n_vocab), path, vocabulary_size=n_vocab)
    with loaded(path) as model:
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        assert llama_cpp.llama_vocab_n_tokens(vocabulary) == n_vocab
        assert llama_cpp.llama_vocab_bos(vocabulary) == n_vocab - 2
        assert llama_cpp.llama_vocab_eos(vocabulary) == n_vocab - 1
        if pieces:
            assert token_texts(model, "Hi!\nö<end>".encode()) == pieces


def test_a_vocabulary_as_large_as_r1s_is_fast(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    start = time.perf_counter()
    sparse.write(tiny(129_280), path, vocabulary_size=129_280)
    assert time.perf_counter() - start < 1
    assert gguf.read(path).metadata["tokenizer.ggml.merges"] == MetadataArray(item_type=8, n_items=129_022)


@pytest.mark.parametrize("n_tokens", [2, 0, -1])
def test_too_small_a_vocabulary(tmp_path: Path, n_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"^a vocabulary of {n_tokens} tokens; expected at least 3$"):
        sparse.write(tiny(), tmp_path / "tiny.gguf", vocabulary_size=n_tokens)
    assert list(tmp_path.iterdir()) == []


# --- Files that cannot be written -------------------------------------------------------------------------------------


def write_reason(path: Path, model: ModelFile) -> str:
    with pytest.raises(ModelFileError) as caught:
        sparse.write(model, path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_an_existing_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"precious")
    assert write_reason(path, tiny()) == "already exists; give a path that does not"
    assert path.read_bytes() == b"precious"


def test_no_such_folder(tmp_path: Path) -> None:
    assert write_reason(tmp_path / "none" / "x.gguf", tiny()) == "cannot be written: No such file or directory"


@pytest.mark.parametrize("n_tensors", [1, 4])  # 2^62 bytes: no file system; 2^64: no file size
def test_a_size_no_file_can_have_leaves_nothing_behind(tmp_path: Path, n_tensors: int) -> None:
    tensors = laid_out(*((f"t{index}", (2**60,), "F32") for index in range(n_tensors)))
    assert write_reason(tmp_path / "x.gguf", replace(tiny(), tensors=tensors)) == "cannot be written: File too large"
    assert list(tmp_path.iterdir()) == []
