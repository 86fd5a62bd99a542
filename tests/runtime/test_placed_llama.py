"""``ktllama.Llama``: llama-cpp-python's class with rules."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ktllama
from tests.runtime.own_process import in_own_process, process
from tests.runtime.test_hook import ALL_ON_CPU, ALL_ON_GPU, CPU_RULES, GPU_RULES, _hooks, _llama, _on, _rules


@pytest.fixture(scope="module")
def own_process() -> Iterator[ProcessPoolExecutor]:
    with process() as pool:
        yield pool


def _placed(path: Path, rules: str, **keywords: Any) -> Any:
    return ktllama.Llama(path, rules=rules, stand_ins=True, n_ctx=64, n_threads=1, n_threads_batch=1, **keywords)


def test_importing_ktllama_imports_no_llama_cpp() -> None:
    code = "import sys, ktllama; ktllama.translate, ktllama.Options; sys.exit('llama_cpp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@in_own_process
def test_it_is_llama_cpps_class_and_placed(llama: Path, tmp_path: Path) -> None:
    import llama_cpp

    before = _hooks()
    with _closing(_placed(llama, _rules(tmp_path, GPU_RULES))) as llm:
        assert isinstance(llm, llama_cpp.Llama)
        assert _on(llm) == ALL_ON_GPU
        assert llm.context_params.op_offload is False
        assert (
            llm("hello", max_tokens=4, temperature=0)["choices"]
            == (_llama(llama)("hello", max_tokens=4, temperature=0)["choices"])
        )
    assert _hooks() == before


@in_own_process
def test_its_own_rules_win_over_a_block(llama: Path, tmp_path: Path) -> None:
    with ktllama.placement(_rules(tmp_path, CPU_RULES, "cpu.yaml"), llama):
        assert _on(_placed(llama, _rules(tmp_path, GPU_RULES))) == ALL_ON_GPU
        assert _on(_llama(llama)) == ALL_ON_CPU


@in_own_process
def test_pickles_and_copies_are_placed_too(llama: Path, tmp_path: Path) -> None:
    llm = _placed(llama, _rules(tmp_path, GPU_RULES), seed=7, n_batch=32)
    for again in (pickle.loads(pickle.dumps(llm)), copy.deepcopy(llm)):
        assert type(again) is ktllama.Llama
        assert _on(again) == ALL_ON_GPU
        assert (again._seed, again.n_batch, again.n_ctx()) == (7, 32, llm.n_ctx())


@in_own_process
def test_from_pretrained_takes_rules(llama: Path, tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")

    class Files:
        def ls(self, repository: str, *, recursive: bool) -> list[str]:
            return [f"{repository}/{llama.name}"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub, "HfFileSystem", Files)
        patch.setattr(huggingface_hub, "hf_hub_download", lambda **_: str(llama))
        llm = ktllama.Llama.from_pretrained(
            "someone/model",
            "*.gguf",
            local_dir=llama.parent,
            rules=_rules(tmp_path, GPU_RULES),
            stand_ins=True,
            n_ctx=64,
        )
    assert _on(llm) == ALL_ON_GPU


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"n_gpu_layers": 0}, ("n_gpu_layers", 0, 4)),
        ({"n_gpu_layers": 3}, ("n_gpu_layers", 3, 4)),
        ({"op_offload": True}, ("op_offload", True, False)),
        ({"tensor_split": [1.0, 1.0]}, ("tensor_split", [1.0, 1.0], [4])),
        ({"offload_kqv": False}, ("offload_kqv", False, True)),
        ({"n_gpu_layers": -1, "op_offload": False, "tensor_split": [4]}, None),
    ],
)
@in_own_process
def test_arguments_against_the_rules_are_refused(
    llama: Path, tmp_path: Path, keywords: dict[str, Any], said: tuple[str, object, object] | None
) -> None:
    rules = _rules(tmp_path, GPU_RULES)
    if said is None:
        assert _on(_placed(llama, rules, **keywords)) == ALL_ON_GPU
        return
    with pytest.raises(ktllama.SettingsConflictError) as raised:
        _placed(llama, rules, **keywords)
    assert (raised.value.option, raised.value.given, raised.value.wanted) == said


@in_own_process
def test_an_argument_that_llama_cpp_would_drop_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError) as raised:
        _placed(llama, _rules(tmp_path, GPU_RULES), n_gpu_layer=4)
    assert str(raised.value) == "Llama() got an unexpected keyword argument 'n_gpu_layer'"


@in_own_process
def test_a_failed_load_leaves_nothing_behind(llama: Path, tmp_path: Path) -> None:
    before = _hooks()
    with pytest.raises(ktllama.RulesetError):
        _placed(llama, _rules(tmp_path, "- match: {}\n"))
    with pytest.raises(ktllama.ModelFileError):
        _placed(tmp_path / "none.gguf", _rules(tmp_path, GPU_RULES))
    assert _hooks() == before


def _closing(llm: Any) -> Any:
    import contextlib

    return contextlib.closing(llm)
