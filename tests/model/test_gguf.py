from __future__ import annotations

import ctypes
import errno
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from struct import pack
from types import SimpleNamespace

import gguf as gguf_package
import llama_cpp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktllama.errors import ModelFileError
from ktllama.model import gguf
from ktllama.model.model_file import MetadataArray, ModelFile, Tensor
from tests.model import gguf_bytes as raw

GIB = 1024**3


def written(folder: Path, content: bytes, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def reason(path: str | Path, *, header_only: bool = False) -> str:
    """The sentence that reading ``path`` raises, without the path; the offset is part of it."""
    with pytest.raises(ModelFileError) as caught:
        gguf.read(path, header_only=header_only)
    assert caught.value.path == str(path)
    return str(caught.value).removeprefix(f"{path}: ")


# --- The table of types -----------------------------------------------------------------------------------------------


def test_types_are_those_of_the_pinned_llama_cpp() -> None:
    library = llama_cpp.llama_cpp._lib
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    expected = {}
    for number in range(43):  # GGML_TYPE_COUNT
        block_items = library.ggml_blck_size(number)
        if block_items:
            name = library.ggml_type_name(number).decode().upper()
            expected[name] = gguf.TensorType(number, name, block_items, library.ggml_type_size(number))
    assert dict(gguf.TENSOR_TYPES) == expected


def test_types_agree_with_the_gguf_package() -> None:
    ours = {kind.number: (kind.block_items, kind.block_bytes) for kind in gguf.TENSOR_TYPES.values()}
    theirs = {int(number): sizes for number, sizes in gguf_package.GGML_QUANT_SIZES.items()}
    differing = {number: sizes for number, sizes in theirs.items() if ours.get(number) != sizes}
    # Q8_1 is never stored; the package keeps a size that ggml's block_q8_1 had once.
    assert differing in ({9: (32, 40)}, {})


def test_type_names_are_those_of_the_gguf_package() -> None:
    ours = {kind.number: kind.name for kind in gguf.TENSOR_TYPES.values()}
    assert {int(number): number.name for number in gguf_package.GGMLQuantizationType}.items() <= ours.items()


@pytest.mark.parametrize(
    ("type_name", "shape", "n_bytes"),
    [("F32", (3, 5), 60), ("Q4_K", (512, 2), 576), ("Q8_0", (64, 1, 3), 204), ("IQ1_S", (256,), 50)],
)
def test_tensor_bytes(type_name: str, shape: tuple[int, ...], n_bytes: int) -> None:
    assert gguf.tensor_bytes(type_name, shape) == n_bytes


# --- Good files -------------------------------------------------------------------------------------------------------

ALL_KEYS = (
    *raw.LLAMA,
    raw.text("general.name", "Tiny Llama"),
    raw.u32("general.alignment", 64),
    raw.key("a.u8", raw.UINT8, b"\xff"),
    raw.key("a.i32", raw.INT32, pack("<i", -7)),
    raw.key("a.f32", raw.FLOAT32, pack("<f", 0.5)),
    raw.key("a.bool", raw.BOOL, b"\x01"),
    raw.key("a.u64", raw.UINT64, pack("<Q", 2**64 - 1)),
    raw.key("a.f64", raw.FLOAT64, pack("<d", 0.1)),
    raw.text("a.latin1", b"caf\xe9"),
    raw.strings("a.strings", "ä", "b"),
    raw.array("a.empty", raw.STRING, 0, b""),
    raw.array("a.kept", raw.INT32, 3, pack("<3i", 1, -2, 3)),
    raw.array("a.longest_kept", raw.BOOL, 4096, b"\x01" * 4096),
    raw.array("a.too_long", raw.FLOAT32, 4097, bytes(4 * 4097)),
    raw.strings("a.vocabulary", *(f"token {index}" for index in range(4097))),
)
ALL_TENSORS = (
    raw.tensor("token_embd.weight", (256, 2), type_number=raw.Q4_K),
    raw.tensor("scalar", (), offset=320),
    raw.tensor("blk.0.ffn_up_exps.weight", (32, 2, 2, 1), type_number=raw.Q4_0, offset=384),
)


@pytest.mark.parametrize("version", [2, 3])
def test_everything_in_a_header(tmp_path: Path, version: int) -> None:
    path = written(tmp_path, raw.complete(raw.header(ALL_KEYS, ALL_TENSORS, version=version), 384 + 72, 64))
    assert gguf.read(path) == ModelFile(
        name="Tiny Llama",
        architecture="llama",
        metadata={
            "general.architecture": "llama",
            "llama.block_count": 4,
            "general.name": "Tiny Llama",
            "general.alignment": 64,
            "a.u8": 255,
            "a.i32": -7,
            "a.f32": 0.5,
            "a.bool": True,
            "a.u64": 2**64 - 1,
            "a.f64": 0.1,
            "a.latin1": "caf\\xe9",
            "a.strings": MetadataArray(item_type=8, n_items=2, values=("ä", "b")),
            "a.empty": MetadataArray(item_type=8, n_items=0, values=()),
            "a.kept": MetadataArray(item_type=5, n_items=3, values=(1, -2, 3)),
            "a.longest_kept": MetadataArray(item_type=7, n_items=4096, values=(True,) * 4096),
            "a.too_long": MetadataArray(item_type=6, n_items=4097),
            "a.vocabulary": MetadataArray(item_type=8, n_items=4097),
        },
        tensors=(
            Tensor(name="token_embd.weight", shape=(256, 2), type="Q4_K", n_bytes=288),
            Tensor(name="scalar", shape=(1,), type="F32", n_bytes=4, offset=320),
            Tensor(name="blk.0.ffn_up_exps.weight", shape=(32, 2, 2, 1), type="Q4_0", n_bytes=72, offset=384),
        ),
        paths=(str(path),),
    )


@pytest.mark.parametrize(
    ("general_name", "file_name", "name"),
    [
        ("DeepSeek R1", "x.gguf", "DeepSeek R1"),
        ("", "some model.Q4_K_M.gguf", "some model.Q4_K_M"),
        ("  ", "x.gguf", "x"),
        ("a\x1b[31mred", "x.gguf", "x"),
        ("", "R1-00001-of-00001.gguf", "R1"),
    ],
)
def test_name(tmp_path: Path, general_name: str, file_name: str, name: str) -> None:
    keys = (*raw.LLAMA, raw.text("general.name", general_name))
    assert gguf.read(written(tmp_path, raw.complete(raw.header(keys)), file_name)).name == name


def test_name_without_general_name_is_the_files(tmp_path: Path) -> None:
    assert gguf.read(written(tmp_path, raw.complete(raw.header()), "tiny.gguf")).name == "tiny"


def test_a_sparse_file_of_405_gib(tmp_path: Path) -> None:
    n_values = 405 * GIB // 4
    path = written(tmp_path, raw.header(tensors=(raw.tensor("huge", (n_values,)),)))
    os.truncate(path, 4096 + 405 * GIB)
    assert gguf.read(path).n_bytes == 405 * GIB


def test_a_header_beyond_the_first_chunk(tmp_path: Path) -> None:
    vocabulary = raw.array("v", raw.STRING, 100_000, b"".join(raw.string("x" * (i % 100)) for i in range(100_000)))
    numbers = raw.array("n", raw.FLOAT32, 2_000_000, bytes(8_000_000))
    keys = (vocabulary, numbers, *raw.LLAMA)
    model = gguf.read(written(tmp_path, raw.complete(raw.header(keys))))
    assert model.metadata == {
        "v": MetadataArray(item_type=8, n_items=100_000),
        "n": MetadataArray(item_type=6, n_items=2_000_000),
        "general.architecture": "llama",
        "llama.block_count": 4,
    }


def test_data_that_only_a_header_needs_not(tmp_path: Path) -> None:
    path = written(tmp_path, raw.header())
    assert gguf.read(path, header_only=True).tensors == (
        Tensor(name="token_embd.weight", shape=(32,), type="F32", n_bytes=128),
    )


def test_the_last_tensor_needs_no_padding(tmp_path: Path) -> None:
    path = written(tmp_path, raw.complete(raw.header(tensors=(raw.tensor("t", (1,)),)), 4))
    assert gguf.read(path).n_bytes == 4


def test_import_is_light() -> None:
    slow = {"numpy", "gguf", "llama_cpp", "pydantic"}
    code = f"import sys, ktllama.model.gguf; print(sorted({slow} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


# --- No file to read --------------------------------------------------------------------------------------------------


def test_missing(tmp_path: Path) -> None:
    assert reason(tmp_path / "none.gguf") == "no such file"


def test_directory(tmp_path: Path) -> None:
    assert reason(tmp_path) == "is a directory; expected a GGUF file"


def test_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert reason(tmp_path / "pipe") == "is not a regular file; expected a GGUF file"


def test_device() -> None:
    assert reason("/dev/zero") == "is not a regular file; expected a GGUF file"


def test_empty(tmp_path: Path) -> None:
    assert reason(written(tmp_path, b"")) == "is empty; expected a GGUF file"


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    path = written(tmp_path, raw.complete(raw.header()))
    monkeypatch.setattr(Path, "open", refused)  # permissions would not stop root
    assert reason(path) == "cannot be read: Permission denied"


def test_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert reason(tmp_path / "loop") == "cannot be read: Too many levels of symbolic links"


def test_a_name_with_nul() -> None:
    assert reason("a\0b") == "is no possible file name"


def test_a_file_that_shrinks_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, raw.header()[:60])
    monkeypatch.setattr(os, "fstat", lambda _: SimpleNamespace(st_size=5000))
    assert reason(path) == "became shorter while it was read (at byte 60)"


# --- The first bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"PK\x03\x04rest", r"is not a GGUF file: it begins with b'PK\x03\x04', expected b'GGUF'"),
        (b"x", "is not a GGUF file: it begins with b'x', expected b'GGUF'"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a Git LFS pointer, not the model; run 'git lfs pull' or download the file itself",
        ),
        (b"GG", "is cut off or damaged: it ends within the magic number (at byte 0)"),
        (b"GGUF\3\0", "is cut off or damaged: it ends within the GGUF version (at byte 4)"),
        (
            raw.header(version=1),
            "has GGUF version 1; versions 2 and 3 can be read; convert the model again with a current llama.cpp "
            "(at byte 4)",
        ),
        (raw.header(version=0), "has GGUF version 0; versions 2 and 3 can be read (at byte 4)"),
        (raw.header(version=4), "has GGUF version 4; versions 2 and 3 can be read (at byte 4)"),
        (
            b"GGUF" + pack(">IQQ", 3, 1, 1),
            "is a big-endian GGUF file; only little-endian files can be read (at byte 4)",
        ),
    ],
)
def test_no_gguf_we_read(tmp_path: Path, content: bytes, expected: str) -> None:
    assert reason(written(tmp_path, content)) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            raw.header(n_tensors=2**63),
            "is cut off or damaged: it ends within a header with 9,223,372,036,854,775,808 tensors (at byte 8)",
        ),
        (
            raw.header(n_keys=2**40),
            "is cut off or damaged: it ends within a header with 1,099,511,627,776 metadata keys (at byte 16)",
        ),
        (
            raw.header((), (), n_tensors=10) + bytes(231),  # after the count: 8 + 231 bytes, one less than ten infos
            "is cut off or damaged: it ends within a header with 10 tensors (at byte 8)",
        ),
        (
            raw.header((), (), n_keys=10) + bytes(129),
            "is cut off or damaged: it ends within a header with 10 metadata keys (at byte 16)",
        ),
        (
            raw.header(n_tensors=262_145) + bytes(24 * 262_145),
            "has 262,145 tensors; at most 262,144 are read (at byte 8)",
        ),
        (raw.header(n_keys=4097) + bytes(13 * 4097), "has 4,097 metadata keys; at most 4,096 are read (at byte 16)"),
    ],
)
def test_absurd_counts(tmp_path: Path, content: bytes, expected: str) -> None:
    assert reason(written(tmp_path, content)) == expected


# --- Metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (raw.text(b"\xff\xfe", "x"), "the name of metadata key 0 is not UTF-8 (at byte 24)"),
        (raw.text("", "x"), "metadata key 0 has an empty name (at byte 24)"),
        (
            raw.text("x" * 65_536, "x"),
            "the name of metadata key 0 is 65,536 bytes long; at most 65,535 are allowed (at byte 24)",
        ),
        (
            pack("<Q", 2**62),
            "is cut off or damaged: it ends within the name of metadata key 0 (at byte 24)",
        ),
        (raw.key("k\n\x1b", 13, b""), r"metadata key 'k\n\x1b' has the unknown value type 13 (at byte 35)"),
        (raw.key("k" * 81, 13, b""), f"metadata key '{'k' * 80}…' has the unknown value type 13 (at byte 113)"),
        (raw.array("k", 13, 1, b""), "metadata key 'k' has the unknown item type 13 (at byte 37)"),
        (
            raw.array("k", raw.ARRAY, 1, b""),
            "metadata key 'k' is an array of arrays, which llama.cpp does not read either (at byte 37)",
        ),
        (
            raw.array("k", raw.UINT8, 10**9, b""),
            "is cut off or damaged: it ends within metadata key 'k' with 1,000,000,000 items (at byte 41)",
        ),
        (
            raw.array("k", raw.STRING, 2**64 - 1, b""),
            "is cut off or damaged: it ends within metadata key 'k' with 18,446,744,073,709,551,615 items (at byte 41)",
        ),
        (
            raw.key("k", raw.STRING, pack("<Q", 2**64 - 1)),
            "is cut off or damaged: it ends within metadata key 'k' (at byte 45)",
        ),
    ],
)
def test_bad_key(tmp_path: Path, bad: bytes, expected: str) -> None:
    path = written(tmp_path, raw.complete(raw.header((bad, *raw.LLAMA))))
    assert reason(path) == expected


@pytest.mark.parametrize("length", [10**6, 2**63, 2**64 - 1])
@pytest.mark.parametrize("at", [0, 2500, 4999])
def test_a_long_array_whose_string_reaches_past_the_end(tmp_path: Path, length: int, at: int) -> None:
    items = b"".join(pack("<Q", length) if index == at else raw.string("") for index in range(5000))
    path = written(tmp_path, raw.complete(raw.header((raw.array("k", raw.STRING, 5000, items), *raw.LLAMA))))
    n_bytes = path.stat().st_size
    assert reason(path) == f"is cut off or damaged: it ends within metadata key 'k' (at byte {n_bytes})"


def test_duplicate_key(tmp_path: Path) -> None:
    head = raw.header((*raw.LLAMA, raw.u32("twice", 1), raw.u32("twice", 1)))
    at = head.rindex(raw.string("twice"))
    assert reason(written(tmp_path, raw.complete(head))) == f"metadata key 'twice' is there twice (at byte {at})"


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        (raw.u32("general.alignment", 0), "0"),
        (raw.u32("general.alignment", 48), "48"),
        (raw.key("general.alignment", raw.UINT64, pack("<Q", 2**32)), "4294967296"),
        (raw.key("general.alignment", raw.BOOL, b"\1"), "True"),
        (raw.text("general.alignment", "32"), "'32'"),
        (raw.array("general.alignment", raw.UINT32, 1, pack("<I", 32)), "an array of 1 items"),
    ],
)
def test_bad_alignment(tmp_path: Path, bad: bytes, shown: str) -> None:
    expected = f"general.alignment is {shown}; expected a power of two below 2^32"
    assert reason(written(tmp_path, raw.complete(raw.header((*raw.LLAMA, bad))))) == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ((), "general.architecture is missing; expected a name such as 'deepseek2'"),
        (
            (raw.text("general.architecture", ""),),
            "general.architecture is ''; expected a name such as 'deepseek2'",
        ),
        (
            (raw.text("general.architecture", "a\x07"),),
            r"general.architecture is 'a\x07'; expected a name such as 'deepseek2'",
        ),
        ((raw.u32("general.architecture", 3),), "general.architecture is 3; expected a name such as 'deepseek2'"),
        ((raw.LLAMA[0],), "metadata key 'llama.block_count' is missing; expected 1 to 512 layers"),
        (
            (raw.LLAMA[0], raw.u32("llama.block_count", 0)),
            "metadata key 'llama.block_count' is 0; expected 1 to 512 layers",
        ),
        (
            (raw.LLAMA[0], raw.u32("llama.block_count", 513)),
            "metadata key 'llama.block_count' is 513; expected 1 to 512 layers",
        ),
        (
            (raw.LLAMA[0], raw.key("llama.block_count", raw.BOOL, b"\1")),
            "metadata key 'llama.block_count' is True; expected 1 to 512 layers",
        ),
        (
            (raw.LLAMA[0], raw.key("llama.block_count", raw.FLOAT32, pack("<f", 2))),
            "metadata key 'llama.block_count' is 2.0; expected 1 to 512 layers",
        ),
    ],
)
def test_no_model(tmp_path: Path, keys: tuple[bytes, ...], expected: str) -> None:
    assert reason(written(tmp_path, raw.complete(raw.header(keys)))) == expected


def test_vocabulary_only(tmp_path: Path) -> None:
    expected = "has no tensors; it holds a vocabulary at most, not a model"
    assert reason(written(tmp_path, raw.complete(raw.header(tensors=())))) == expected


# --- Tensor infos -----------------------------------------------------------------------------------------------------

TENSORS_AT = len(raw.header(tensors=()))


@pytest.mark.parametrize(
    ("bad", "expected", "after"),
    [
        (raw.tensor(b"\xff"), "the name of tensor 0 is not UTF-8", 0),
        (raw.tensor(""), "tensor 0 has an empty name", 0),
        (raw.tensor("a\tb\u202e"), r"tensor name 'a\tb\u202e' holds unprintable characters", 0),
        (raw.tensor("x" * 64), "the name of tensor 0 is 64 bytes long; at most 63 are allowed", 0),
        (raw.tensor("t", (1, 1, 1, 1, 1)), "tensor 't' has 5 dimensions; ggml has at most 4", 9),
        (raw.string("t") + pack("<I", 2**32 - 1), "tensor 't' has 4,294,967,295 dimensions; ggml has at most 4", 9),
        (raw.tensor("t", (4, 0)), "tensor 't' has the shape [4, 0]; every dimension must be at least 1", 9),
        (
            raw.tensor("t", (2**32, 2**31)),
            "tensor 't' has the shape [4294967296, 2147483648], which is more values than ggml can count",
            9,
        ),
        (
            raw.tensor("t", (2**31, 2**31)),
            "tensor 't' has the shape [2147483648, 2147483648], which is more bytes than ggml can count",
            29,
        ),
        (
            raw.tensor("t", type_number=4),
            "tensor 't' has type number 4, which the supported llama.cpp does not have",
            21,
        ),
        (
            raw.tensor("t", type_number=2**32 - 1),
            "tensor 't' has type number 4294967295, which the supported llama.cpp does not have",
            21,
        ),
        (
            raw.tensor("t", (100, 256), type_number=raw.Q4_K),
            "tensor 't' has rows of 100 values; type Q4_K needs a multiple of 256",
            29,
        ),
        (
            raw.tensor("t", offset=32),
            "tensor 't' has offset 32, expected 0, right after the tensor before",
            25,
        ),
    ],
)
def test_bad_tensor(tmp_path: Path, bad: bytes, expected: str, after: int) -> None:
    path = written(tmp_path, raw.complete(raw.header(tensors=(bad, raw.tensor("next")))))
    assert reason(path) == f"{expected} (at byte {TENSORS_AT + after})"


@pytest.mark.parametrize(
    ("offset", "shown"),
    [(0, "0"), (100, "100"), (132, "132"), (192, "192"), (2**64 - 32, "18,446,744,073,709,551,584")],
    ids=["same place", "overlapping", "unaligned", "gap", "out of range"],
)
def test_bad_offset(tmp_path: Path, offset: int, shown: str) -> None:
    head = raw.header(tensors=(raw.tensor("a", (33,)), raw.tensor("b", offset=offset)))
    expected = f"tensor 'b' has offset {shown}, expected 160, right after the tensor before (at byte {len(head) - 8})"
    assert reason(written(tmp_path, raw.complete(head, 512))) == expected


def test_duplicate_tensor(tmp_path: Path) -> None:
    head = raw.header(tensors=(raw.tensor("same"), raw.tensor("same", offset=128)))
    at = head.rindex(raw.string("same"))
    assert reason(written(tmp_path, raw.complete(head, 256))) == f"tensor 'same' is there twice (at byte {at})"


@pytest.mark.parametrize(("data_bytes", "has", "missing"), [(127, 287, 1), (1, 161, 127), (0, 160, 128)])
def test_incomplete(tmp_path: Path, data_bytes: int, has: int, missing: int) -> None:
    path = written(tmp_path, raw.complete(raw.header(), data_bytes))
    assert reason(path) == f"is incomplete: {has} of 288 bytes, {missing} are missing; download it again"


def test_incomplete_before_the_data(tmp_path: Path) -> None:
    head = raw.header()
    path = written(tmp_path, head)
    missing = 288 - len(head)
    assert reason(path) == f"is incomplete: {len(head)} of 288 bytes, {missing} are missing; download it again"


def test_every_truncation_is_told(tmp_path: Path) -> None:
    content = raw.complete(raw.header((*raw.LLAMA, raw.strings("s", "a", "b"), raw.text("general.name", "n"))))
    path = written(tmp_path, content)
    assert gguf.read(path).n_bytes == 128
    for n_bytes in range(len(content)):
        path.write_bytes(content[:n_bytes])
        said = reason(path)
        assert said.startswith(("is empty;", "is cut off or damaged: it ends within ", "is incomplete: ")), said


def test_a_header_without_end(tmp_path: Path) -> None:
    head = raw.header((*raw.LLAMA, raw.array("k", raw.STRING, 2**30, b"")), ())
    path = written(tmp_path, head)
    os.truncate(path, 405 * GIB)
    empty_strings = (134_217_728 - len(head)) // 8
    start = time.perf_counter()
    assert reason(path) == (
        "is damaged: with metadata key 'k' its header is over 134,217,728 bytes "
        f"(at byte {len(head) + 8 * empty_strings})"
    )
    assert time.perf_counter() - start < 10


def test_a_text_as_long_as_the_file(tmp_path: Path) -> None:
    keys = (*raw.LLAMA, raw.key("k", raw.STRING, pack("<Q", 100 * GIB)))
    path = written(tmp_path, raw.header(keys))
    os.truncate(path, 405 * GIB)
    at = len(raw.header(keys, ()))
    assert reason(path) == f"is damaged: with metadata key 'k' its header is over 134,217,728 bytes (at byte {at})"


# --- Split files ------------------------------------------------------------------------------------------------------


def part(
    number: int,
    count: int = 3,
    *,
    tensor_name: str | None = None,
    total: int = 3,
    more: tuple[bytes, ...] | None = None,
) -> bytes:
    """Part ``number`` (from 1) of ``count`` with one tensor."""
    split = (raw.u16("split.no", number - 1), raw.u16("split.count", count))
    total_key = raw.key("split.tensors.count", raw.INT32, pack("<i", total))
    keys = (*split, total_key, *(raw.LLAMA if number == 1 else ())) if more is None else more
    return raw.complete(raw.header(keys, (raw.tensor(tensor_name or f"blk.{number}.weight"),)))


def split_files(folder: Path, *contents: bytes) -> list[Path]:
    return [
        written(folder, content, f"R1-{index:05d}-of-{len(contents):05d}.gguf")
        for index, content in enumerate(contents, start=1)
    ]


def test_split_files_are_one_model(tmp_path: Path) -> None:
    paths = split_files(tmp_path, part(1), part(2), part(3))
    assert gguf.read(paths[0]) == ModelFile(
        name="R1",
        architecture="llama",
        metadata={
            "split.no": 0,
            "split.count": 3,
            "split.tensors.count": 3,
            "general.architecture": "llama",
            "llama.block_count": 4,
        },
        tensors=tuple(
            Tensor(name=f"blk.{index + 1}.weight", shape=(32,), type="F32", n_bytes=128, file_index=index)
            for index in range(3)
        ),
        paths=tuple(str(path) for path in paths),
    )


def test_split_files_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split_files(tmp_path, part(1, 2, total=2), part(2, 2, total=2))
    monkeypatch.chdir(tmp_path)
    assert gguf.read("R1-00001-of-00002.gguf").paths == ("R1-00001-of-00002.gguf", "R1-00002-of-00002.gguf")


def test_first_part_without_tensors(tmp_path: Path) -> None:
    split = (raw.u16("split.no", 0), raw.u16("split.count", 2), raw.u16("split.tensors.count", 1))
    paths = split_files(tmp_path, raw.header((*split, *raw.LLAMA), ()), part(2, 2))
    assert [tensor.file_index for tensor in gguf.read(paths[0]).tensors] == [1]


def test_another_part_than_the_first(tmp_path: Path) -> None:
    paths = split_files(tmp_path, part(1), part(2), part(3))
    assert reason(paths[1]) == f"is part 2 of 3; give the first part instead: {paths[0]}"


@pytest.mark.parametrize(("gone", "more"), [((2,), ""), ((1, 2), " (and 1 more parts)")])
def test_missing_part(tmp_path: Path, gone: tuple[int, ...], more: str) -> None:
    paths = split_files(tmp_path, part(1), part(2), part(3))
    for index in gone:
        paths[index].unlink()
    with pytest.raises(ModelFileError) as caught:
        gguf.read(paths[0])
    assert str(caught.value) == f"{paths[gone[0]]}: no such file; it is one of the 3 parts of this model{more}"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "R1-00001-of-00003.gguf",
            raw.complete(raw.header()),
            "is named as one of 3 parts, but its metadata has no split.count above 1",
        ),
        (
            "renamed.gguf",
            part(1),
            "is part 1 of 3; its file name must end in -00001-of-00003.gguf, and all parts must lie in one folder",
        ),
        (
            "R1-00001-of-00005.gguf",
            part(1),
            "is part 1 of 3; its file name must end in -00001-of-00003.gguf, and all parts must lie in one folder",
        ),
        (
            "R1-00001-of-00003.gguf",
            part(2),
            "is part 2 of 3; its file name must end in -00002-of-00003.gguf, and all parts must lie in one folder",
        ),
        (
            "R1-00001-of-00003.gguf",
            part(1, more=(raw.u16("split.count", 3), *raw.LLAMA)),
            "metadata key 'split.no' is missing; expected a whole number",
        ),
        (
            "R1-00001-of-00003.gguf",
            part(1, more=(raw.text("split.count", "3"), *raw.LLAMA)),
            "metadata key 'split.count' is '3'; expected a whole number",
        ),
    ],
)
def test_splits_that_disagree_with_their_name(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    assert reason(written(tmp_path, content, name)) == expected


@pytest.mark.parametrize(
    ("contents", "at", "expected"),
    [
        ((part(1), part(3), part(3)), 1, "its metadata says part 3 of 3, expected part 2 of 3"),
        ((part(1), part(2, 4), part(3)), 1, "its metadata says part 2 of 4, expected part 2 of 3"),
        (
            (part(1), part(2, more=raw.LLAMA), part(3)),
            1,
            "metadata key 'split.no' is missing; expected a whole number",
        ),
        ((part(1, total=4), part(2), part(3)), 0, "its parts hold 3 tensors; split.tensors.count says 4"),
        ((part(1), part(2), b"GG"), 2, "is cut off or damaged: it ends within the magic number (at byte 0)"),
    ],
)
def test_parts_that_disagree(tmp_path: Path, contents: tuple[bytes, ...], at: int, expected: str) -> None:
    paths = split_files(tmp_path, *contents)
    with pytest.raises(ModelFileError) as caught:
        gguf.read(paths[0])
    assert str(caught.value) == f"{paths[at]}: {expected}"


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    paths = split_files(tmp_path, part(1), part(2), part(3, tensor_name="blk.1.weight"))
    with pytest.raises(ModelFileError) as caught:
        gguf.read(paths[0])
    assert str(caught.value) == f"{paths[2]}: tensor 'blk.1.weight' is also in {paths[0]}"


def test_an_incomplete_part(tmp_path: Path) -> None:
    contents = (part(1), part(2)[:-5], part(3))
    paths = split_files(tmp_path, *contents)
    with pytest.raises(ModelFileError) as caught:
        gguf.read(paths[0])
    full = len(part(2))
    assert str(caught.value) == (
        f"{paths[1]}: is incomplete: {full - 5} of {full} bytes, 5 are missing; download it again"
    )
    assert len(gguf.read(paths[0], header_only=True).tensors) == 3


# --- Anything at all --------------------------------------------------------------------------------------------------

VALID = raw.complete(
    raw.header(
        (
            *raw.LLAMA,
            raw.text("general.name", "n"),
            raw.strings("tokens", "a", "b", "c"),
            raw.array("types", raw.INT32, 3, bytes(12)),
            raw.u32("general.alignment", 32),
        ),
        (raw.tensor("a", (256, 2), type_number=raw.Q4_K), raw.tensor("b", (33,), offset=288)),
    ),
    420,
)


def outcome(path: Path, content: bytes) -> ModelFile | ModelFileError:
    path.write_bytes(content)
    try:
        return gguf.read(path)
    except ModelFileError as error:
        message = str(error)
        assert message
        assert message.removeprefix(str(path)).isprintable()
        return error


def overwrite(content: bytes, at: int, patch: bytes) -> bytes:
    return content[:at] + patch + content[at + len(patch) :]


EXTREMES = [
    pack("<Q", number) for number in (0, 1, 255, 2**16, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
]
patches = st.tuples(
    st.integers(0, len(VALID) - 1), st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(EXTREMES))
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.gguf"


def test_the_unchanged_file_is_read(scratch: Path) -> None:
    assert isinstance(outcome(scratch, VALID), ModelFile)


@settings(max_examples=400, deadline=None)
@given(edits=st.lists(patches, min_size=1, max_size=4), cut=st.one_of(st.none(), st.integers(0, len(VALID))))
def test_mutated_bytes_never_surprise(scratch: Path, edits: list[tuple[int, bytes]], cut: int | None) -> None:
    content = VALID
    for at, patch in edits:
        content = overwrite(content, at, patch)
    outcome(scratch, content[:cut])


@settings(max_examples=200, deadline=None)
@given(tail=st.binary(max_size=400))
def test_any_bytes_never_surprise(scratch: Path, tail: bytes) -> None:
    outcome(scratch, b"GGUF\3\0\0\0" + tail)


def test_every_64_bit_extreme_at_every_place(scratch: Path) -> None:
    for patch in EXTREMES[3:]:
        for at in range(len(VALID) - 420):
            outcome(scratch, overwrite(VALID, at, patch))


def limited_to(n_bytes: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))


def test_hostile_lengths_allocate_nothing(tmp_path: Path) -> None:
    keys = (*raw.LLAMA, raw.array("k", raw.UINT8, 4 * GIB, b""))
    path = written(tmp_path, raw.header(keys))
    os.truncate(path, 405 * GIB)
    code = (
        "import sys\nfrom ktllama.errors import ModelFileError\nfrom ktllama.model import gguf\n"
        "try:\n    gguf.read(sys.argv[1])\nexcept ModelFileError as error:\n    print(error.reason)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True, text=True, check=True, preexec_fn=limited_to(GIB // 2),
    )  # fmt: skip
    assert found.stdout == "is damaged: with metadata key 'k' its header is over 134,217,728 bytes\n"
