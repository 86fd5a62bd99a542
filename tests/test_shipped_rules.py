"""The rule files that come with ktllama: clean, and as large as their comments say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from ktllama import shipped_rules
from ktllama.errors import RuleFileError
from ktllama.lower.emit import to_command_line
from ktllama.model import sparse
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.verify import verify
from ktllama.shipped_rules import ShippedRules
from ktllama.translation import translate
from tests.cli.runner import ktllama

ROOT = Path(__file__).parents[1]
EVERY = shipped_rules.every()
VERIFIED = [shipped for shipped in EVERY if shipped.verified]
_CLAIM = re.compile(r"(\S+) (\S+), (\d+) tokens: (.+)")


@pytest.mark.parametrize("shipped", EVERY, ids=lambda shipped: shipped.name)
def test_file_is_clean_and_is_for_the_model_that_it_names(shipped: ShippedRules) -> None:
    translation = translate(shipped.path)
    assert [found for found in translation.diagnostics if found.severity != "note"] == []
    assert shipped.summary.endswith(".")
    for claim in shipped.verified:
        found = _CLAIM.fullmatch(claim)
        assert found is not None
        assert translation.assumed == found.group(1)


@pytest.mark.parametrize("shipped", VERIFIED, ids=lambda shipped: shipped.name)
def test_file_takes_the_memory_that_its_comment_says(shipped: ShippedRules, tmp_path: Path) -> None:
    for claim in shipped.verified:
        found = _CLAIM.fullmatch(claim)
        assert found is not None
        translation = translate(shipped.path, preset=found.group(1))
        assert translation.model.name.endswith(found.group(2))
        model = tmp_path / "model.gguf"
        sparse.write(translation.model, model)
        context = ContextOptions(n_ctx=int(found.group(3)))
        verification = verify(translation.placement, translation.settings, model, context)
        assert verification.mismatches == ()
        taken: dict[str, int] = {}
        for part in (verification.weight_bytes, verification.kv_bytes, verification.compute_bytes):
            for device, n_bytes in part.items():
                taken[device] = taken.get(device, 0) + n_bytes
        names = {
            translation.options.device_map.llama_name(name): name for name in ("cpu", *(f"cuda:{i}" for i in range(8)))
        }
        said = dict(re.findall(r"(\S+) ([0-9.]+) GiB", found.group(4)))
        assert {names[device]: pytest.approx(n_bytes / 2**30, abs=0.1) for device, n_bytes in taken.items()} == {
            device: float(size) for device, size in said.items()
        }


def test_every_folder_is_installed() -> None:
    listed = re.findall(
        r'"share/ktllama/rules/([^"]+)" = \["rules/\1/\*\.yaml"\]', (ROOT / "pyproject.toml").read_text()
    )
    assert sorted(listed) == sorted(path.name for path in (ROOT / "rules").iterdir() if path.is_dir())


def test_a_name_stands_for_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped_rules.find("deepseek-r1/1x24gb") == str(ROOT / "rules" / "deepseek-r1" / "1x24gb.yaml")
    here = tmp_path / "deepseek-r1"
    here.mkdir()
    (here / "1x24gb").write_text("[]")
    assert shipped_rules.find("deepseek-r1/1x24gb") == "deepseek-r1/1x24gb"


@pytest.mark.parametrize("name", ["../pyproject", "/etc/passwd", "nothing", "deepseek-r1/1x24gb.yml", ""])
def test_no_other_file_is_found_by_name(name: str) -> None:
    assert shipped_rules.find(name) == name


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(RuleFileError) as caught:
        shipped_rules.find("deepseek-r1/1x25gb")
    assert str(caught.value) == (
        "deepseek-r1/1x25gb: no such file, and no rule file of that name comes with ktllama; did you mean "
        "deepseek-r1/1x24gb or deepseek-r1/1x12gb or deepseek-r1/8x24gb?"
    )


def test_rules_lists_and_shows() -> None:
    listed, shown, missing = ktllama("rules"), ktllama("rules", "show", "llama/cpu"), ktllama("rules", "show", "nope")
    assert (listed.status, shown.status, missing.status) == (0, 0, 2)
    assert all(shipped.name in listed.out for shipped in EVERY)
    assert shown.out == (ROOT / "rules" / "llama" / "cpu.yaml").read_text()
    assert missing.err == "ktllama: nope: not the name of a shipped rule file; 'ktllama rules' lists them\n"


def test_every_family_translates_to_a_command() -> None:
    for shipped in EVERY:
        settings = translate(shipped.path).settings
        assert to_command_line(settings, "m.gguf").startswith("llama-server --model m.gguf --n-gpu-layers ")


def test_the_comparison_page_is_that_of_the_shipped_files() -> None:
    spec = importlib.util.spec_from_file_location("make_comparison", ROOT / "docs" / "make_comparison.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page()
