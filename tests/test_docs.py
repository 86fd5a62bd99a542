"""What the documents say is what the code does."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from ktllama.document import translation_document
from ktllama.lower import emit
from ktllama.model.architecture import Architecture, Node
from ktllama.model.architectures import ARCHITECTURES
from ktllama.ruleset import loader
from ktllama.ruleset.catalogue import DEVICE_KWARGS, OPERATOR_KWARGS, THRESHOLD_KWARG
from ktllama.translation import Options, Translation, analyse

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ("pipeline.md", "rules.md", "mapping.md", "diagnostics.md", "json.md")


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def section(text: str, heading: str) -> str:
    """The text below ``heading`` up to the next heading of its level or above."""
    level = heading.partition(" ")[0]
    _, found, below = text.partition(f"\n{heading}\n")
    assert found, heading
    return re.split(rf"^#{{2,{len(level)}}} ", below, maxsplit=1, flags=re.M)[0]


# The diagnostics


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_diagnostics", DOCS / "make_diagnostics.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_diagnostics_is_what_its_script_writes() -> None:
    assert page("diagnostics.md") == script().page()


# The mapping


def owners(nodes: Iterable[Node], prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for node in nodes:
        name = f"{prefix}{node.name}"
        if node.stems:
            yield name.replace(".experts.0.", ".experts.E."), node.stems
        yield from owners(node.children, f"{name}.")


def owning_modules(architecture: Architecture) -> list[tuple[str, tuple[str, ...]]]:
    return [
        *owners(architecture.before_layers, "model."),
        *owners((*architecture.layer, *architecture.mtp), "model.layers.N."),
        *owners(architecture.after_layers, "model."),
        *owners(architecture.head, ""),
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_mapping_lists_every_module_with_its_tensors(name: str) -> None:
    rows = re.findall(r"^\| `([^`]+)` \| \w+ \| (.+) \|$", section(page("mapping.md"), f"### {name}"), flags=re.M)
    written = [(module, tuple(re.findall(r"`([^`]+)`", stems))) for module, stems in rows]
    assert written == owning_modules(ARCHITECTURES[name])


def test_the_rules_page_lists_every_argument_that_is_looked_at() -> None:
    listed = section(page("rules.md"), "## Arguments")
    for argument in (*DEVICE_KWARGS, *OPERATOR_KWARGS, "transfer_map", THRESHOLD_KWARG):
        assert f"`{argument}`" in listed


# The example


def example(options: Options | None = None) -> Translation:
    text = fenced(section(page("rules.md"), "## A complete file"), "yaml")
    assert len(text) == 1
    return analyse(loader.loads(text[0], "v3-experts-on-cpu.yaml"), preset="deepseek-v3", options=options)


def test_the_example_compiles_to_the_command_that_is_shown() -> None:
    translation = example(Options(target="llama-server"))
    command = emit.to_command_line(translation.settings, "DeepSeek-V3-Q4_K_M.gguf")
    shown = fenced(section(page("rules.md"), "## A complete file"), "console")
    assert shown[1].splitlines()[1:] == [command, *(str(found) for found in translation.diagnostics)]


def test_the_example_compiles_to_the_settings_that_are_shown() -> None:
    settings = example().settings
    override = settings.tensor_overrides[0]
    shown = fenced(section(page("rules.md"), "## A complete file"), "console")[0]
    listed = shown.partition("\nSettings\n")[2].partition("\n\n")[0]
    assert [line.strip() for line in listed.splitlines()] == [
        f"n_gpu_layers = {settings.n_gpu_layers}",
        f"devices = {', '.join(settings.devices)}",
        f"tensor_split = {', '.join(str(count) for count in settings.tensor_split)}",
        f"op_offload = {settings.op_offload}",
        f"no_host = {settings.no_host}",
        f"override  {override.pattern}  →  {override.device}",
    ]
    assert len(settings.tensor_overrides) == 1


def test_the_json_example_is_an_abridged_real_document() -> None:
    shown: dict[str, Any] = json.loads(fenced(page("json.md"), "json")[0])
    real: dict[str, Any] = json.loads(json.dumps(translation_document(example())))
    for part in ("tensors", "kv"):
        assert shown[part]
        real[part] = {key: real[part][key] for key in shown[part]}
    assert shown == real
    schema = json.loads(page("translation.schema.json"))
    assert list(Draft202012Validator(schema).iter_errors(shown)) == []


# Links


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "path", [*(DOCS / name for name in PAGES), ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name
)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        linked = path if not file else path.parent / file
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), target
