"""Files that llama.cpp would abort the process over are refused before it sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktllama.errors import ModelFileError
from ktllama.lower.settings import LlamaSettings
from ktllama.model.model_file import MetadataArray, MetadataValue, ModelFile
from ktllama.runtime import preconditions
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.dry_run import dry_run
from ktllama.runtime.dry_run_session import DryRunSession
from ktllama.runtime.load import load

USUAL: dict[str, MetadataValue] = {
    "block_count": 4,
    "expert_count": 16,
    "expert_used_count": 4,
    "expert_group_count": 4,
    "expert_group_used_count": 2,
    "rope.scaling.type": "yarn",
}


def model(architecture: str = "deepseek2", /, **changes: MetadataValue | None) -> ModelFile:
    values = {**USUAL, **{key.replace("__", "."): value for key, value in changes.items()}}
    metadata = {f"{architecture}.{key}": value for key, value in values.items() if value is not None}
    return ModelFile(name="m", architecture=architecture, metadata=metadata, tensors=(), paths=("m.gguf",))


@pytest.mark.parametrize(
    "sound",
    [
        model(),
        model(expert_group_count=None, expert_group_used_count=None),
        model(expert_group_count=1, expert_group_used_count=1),
        model(expert_used_count=MetadataArray(item_type=4, n_items=3, values=(0, 4, 4))),
        model(expert_count=None, expert_used_count=None, expert_group_count=None),
        model("hunyuan-moe", expert_count=1, expert_used_count=1, expert_group_count=1),
        model(nextn_predict_layers=1),
    ],
)
def test_what_llama_cpp_takes_is_taken(sound: ModelFile) -> None:
    preconditions.check(sound)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("expert_group_used_count", 4, "is 4, over which llama.cpp would abort; expected 1 to 3, fewer than the 4 groups"),
        ("expert_group_used_count", None, "is missing, over which llama.cpp would abort; expected 1 to 3, fewer than the 4 groups"),
        ("expert_group_count", 3, "is 3, over which llama.cpp would abort; expected a divisor of the 16 experts that leaves each group two or more"),
        ("expert_group_count", 16, "is 16, over which llama.cpp would abort; expected a divisor of the 16 experts that leaves each group two or more"),
        ("expert_used_count", 17, "is 17, over which llama.cpp would abort; expected 1 to 16"),
        ("expert_used_count", None, "is missing, over which llama.cpp would abort; expected 1 to 16"),
        ("expert_used_count", MetadataArray(item_type=4, n_items=2, values=(4, 17)), "is an array of 2 items, over which llama.cpp would abort; expected 1 to 16"),
        ("rope.scaling.type", "wide", "is 'wide', over which llama.cpp would abort; expected one of none, linear, yarn, longrope"),
        ("nextn_predict_layers", 5, "is 5, over which llama.cpp would abort; expected no more than the 4 layers"),
    ],
)  # fmt: skip
def test_what_it_would_abort_over_is_named(key: str, value: MetadataValue | None, expected: str) -> None:
    with pytest.raises(ModelFileError) as raised:
        preconditions.check(model(**{key.replace(".", "__"): value}))
    assert str(raised.value) == f"m.gguf: metadata key 'deepseek2.{key}' {expected}"


@pytest.mark.parametrize("key", ["expert_used_count", "expert_group_count"])
def test_a_model_without_experts_uses_and_groups_none(key: str) -> None:
    none: dict[str, MetadataValue | None] = {
        "expert_count": None,
        "expert_used_count": None,
        "expert_group_count": None,
    }
    with pytest.raises(ModelFileError, match="expected 0, as there are no experts"):
        preconditions.check(model(**{**none, key: 4}))


def test_every_entrance_to_llama_cpp_asks_first(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the model is written from the reference")
    from tests.reference import files

    config = files.deepseek_config()
    path = files.write_random(tmp_path / "model.gguf", config, metadata={"expert_group_used_count": 4})
    settings, context = LlamaSettings(n_gpu_layers=0), ContextOptions(n_ctx=256)
    said = (
        f"{path}: metadata key 'deepseek2.expert_group_used_count' is 4, over which llama.cpp would abort; expected 1 to "
        "3, fewer than the 4 groups"
    )
    for enter in (load, dry_run):
        with pytest.raises(ModelFileError) as raised:
            enter(path, settings, context)
        assert str(raised.value) == said
    with DryRunSession(()) as session, pytest.raises(ModelFileError) as raised:
        session.run(path, settings, context)
    assert str(raised.value) == said


def test_what_cannot_be_read_is_left_to_llama_cpp(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no model")
    preconditions.check_file(path)
