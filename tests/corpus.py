"""The corpus of ktransformers' rule files and its own results, where a checkout has it beside the project."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

CORPUS = Path(__file__).parents[2] / "shared" / "ktransformers"

needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason="the ktransformers corpus is not beside this checkout")

#: Module tree of the corpus → the preset that builds the same model.
PRESET_OF_TREE = {
    "DeepSeek-V2": "deepseek-v2",
    "DeepSeek-V2-Lite": "deepseek-v2-lite",
    "DeepSeek-V3": "deepseek-r1",
    "DeepSeek-V3-npu-serve": "deepseek-r1",
    "DeepSeek-V3-serve": "deepseek-r1",
    "DeepSeek-V3@kthead": "deepseek-r1",
    "GLM-4.5-Air-serve": "glm-4.5-air",
    "GLM-4.5-serve": "glm-4.5",
    "Internlm2_5-7b-1m": "internlm2.5-7b-1m",
    "Mixtral-8x7B": "mixtral-8x7b",
    "Moonlight-16B-A3B": "moonlight-16b-a3b",
    "Moonlight-16B-A3B-serve": "moonlight-16b-a3b",
    "Qwen2-57B-A14B": "qwen2-57b-a14b",
    "Qwen2-57B-A14B-serve": "qwen2-57b-a14b",
    "Qwen3-235B-A22B": "qwen3-235b-a22b",
    "Qwen3-235B-A22B-ktmodeling": "qwen3-235b-a22b",
    "Qwen3-235B-A22B-npu-serve": "qwen3-235b-a22b",
    "Qwen3-235B-A22B-serve": "qwen3-235b-a22b",
    "Qwen3-30B-A3B": "qwen3-30b-a3b",
    "Qwen3-30B-A3B-ktmodeling": "qwen3-30b-a3b",
    "Qwen3-30B-A3B-npu-serve": "qwen3-30b-a3b",
    "Qwen3-30B-A3B-serve": "qwen3-30b-a3b",
    "Qwen3-Next-80B-A3B-serve": "qwen3-next-80b-a3b",
    "SmallThinker-21B-A3B-serve": "smallthinker-21b-a3b",
}


def golden_pairs() -> list[tuple[str, str]]:
    """(rule file, module tree) pairs whose model ktllama knows."""
    found = [path.name.removesuffix(".json.gz").split("__") for path in (CORPUS / "golden").glob("*.json.gz")]
    pairs = [("__".join(parts[:-1]), parts[-1]) for parts in found]
    return sorted(pair for pair in pairs if pair[1] in PRESET_OF_TREE)


def rule_file(name: str) -> Path:
    return CORPUS / "rules" / name


@functools.cache
def read(kind: str, name: str) -> Any:
    """``golden``, ``winners`` or ``tree``."""
    return json.loads(gzip.decompress((CORPUS / kind / f"{name}.json.gz").read_bytes()))
