from __future__ import annotations

from dataclasses import replace

import pytest

from ktllama.r1 import profile as profiles
from ktllama.r1.control_text import ControlStrings
from ktllama.r1.errors import MetadataError
from ktllama.r1.profile import Profile, SamplingDefaults, control_strings, profile_of
from ktllama.r1.template import CHATML
from ktllama.r1.tool_formats import ToolFormatName
from tests.r1.templates import QWEN3, R1, R1_UNFORCED, V3_1

V3 = R1_UNFORCED.replace(".split('</think>')[-1]", "")
MODELS: list[tuple[str, str | None, Profile]] = [
    ("DeepSeek R1", R1, profiles.R1),
    ("DeepSeek R1", R1_UNFORCED, profiles.R1),  # the first files of January 2025
    ("DeepSeek R1 BF16", R1, profiles.R1),
    ("DeepSeek R1 0528", R1_UNFORCED, profiles.R1_0528),
    ("DeepSeek R1 0528 Qwen3 8B", R1_UNFORCED, profiles.R1_0528),
    ("DeepSeek R1 Distill Llama 70B", R1, profiles.R1_DISTILL),
    ("DeepSeek V3 0324", V3, profiles.V3),
    ("DeepSeek V3.1", V3_1, profiles.V3_1),
    ("", R1, profiles.R1),
    ("", R1_UNFORCED, profiles.R1_0528),
    ("QwQ 32B", "<|im_start|>assistant\n<think>\n", profiles.QWQ),
    ("Qwen3 8B", QWEN3, profiles.QWEN3),
    ("other", QWEN3, replace(profiles.THINKING, thinking_switches=("enable_thinking",))),
    ("other", "<think>", profiles.THINKING),
    ("SmolLM2 135M", CHATML, profiles.PLAIN),
    ("no template", None, profiles.PLAIN),
]


@pytest.mark.parametrize(("name", "template", "expected"), MODELS)
def test_the_profile_follows_from_names_and_template(name: str, template: str | None, expected: Profile) -> None:
    found = profile_of({"general.name": name}, template)
    assert replace(found, tool_format=expected.tool_format) == expected


def test_r1s_values_are_those_of_its_readme() -> None:
    assert profiles.R1.sampling == SamplingDefaults(temperature=0.6, top_p=0.95, top_k=0, min_p=0.0, repeat_penalty=1.0)
    assert (profiles.R1.system, profiles.R1.force_think) == ("merge", True)
    assert (profiles.R1_0528.system, profiles.R1_0528.force_think) == ("keep", False)


TOOL_FORMATS: list[tuple[str, ToolFormatName]] = [
    ("<｜Assistant｜> <｜tool▁call▁begin｜>\n```json", "deepseek-r1"),
    ("<｜Assistant｜> <｜tool▁call▁begin｜>", "deepseek-v3.1"),
    ("<｜Assistant｜>", "deepseek-r1"),
    ("<tool_call>", "hermes"),
    ("", "hermes"),
]


@pytest.mark.parametrize(("template", "expected"), TOOL_FORMATS)
def test_the_tool_format_is_the_templates(template: str, expected: ToolFormatName) -> None:
    assert profile_of({}, template).tool_format == expected


def test_the_files_own_sampling_wins() -> None:
    metadata = {
        "general.name": "DeepSeek R1",
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 30.0,
        "general.sampling.penalty_repeat": 1.1,
    }
    assert profile_of(metadata, R1).sampling == SamplingDefaults(
        temperature=0.5, top_p=0.95, top_k=30, repeat_penalty=1.1
    )


@pytest.mark.parametrize(("file_type", "min_p"), [(24, 0.05), (31, 0.05), (15, 0.0)])
def test_r1_below_two_bits_gets_min_p(file_type: int, min_p: float) -> None:
    metadata = {"general.name": "DeepSeek R1", "general.file_type": file_type}
    assert profile_of(metadata, R1).sampling.min_p == min_p
    assert profile_of({"general.file_type": file_type}, CHATML).sampling.min_p == 0.05  # llama.cpp's own


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.sampling.temp", "hot", "the model file's general.sampling.temp: a number was expected"),
        ("general.sampling.temp", float("nan"), "the model file's general.sampling.temp: a number was expected"),
        ("general.sampling.temp", True, "the model file's general.sampling.temp: a number was expected"),
        ("general.sampling.top_p", 2, "the model file's general.sampling.top_p: 2 is not between 0.0 and 1.0"),
    ],
)
def test_sampling_that_cannot_be_is_told(key: str, value: object, message: str) -> None:
    with pytest.raises(MetadataError) as caught:
        profile_of({key: value}, None)
    assert str(caught.value) == message


def test_control_strings_are_control_tokens_and_markers() -> None:
    found = control_strings(
        frozenset({"<eos>", "x"}),
        frozenset({"</think>", "<tool_call>", "<table>", "\n\n"}),
        profile=profiles.QWQ,
        template="{{ '\n\n' }}",
    )
    assert found.strings == {"<eos>", "<think>", "</think>", "<tool_call>"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("<ab>", "<|ab>"),
        ("x<ab><ab>y", "x<|ab><|ab>y"),
        ("<<ab>", "<<|ab>"),
        ("bab<ab", "bab<ab|"),
        ("b<", "b<|"),
        ("<ab> and bcb", "<|ab> and b|cb|"),
    ],
)
def test_cutting(text: str, expected: str) -> None:
    assert ControlStrings(["<ab>", "bcb", " ", "|"]).cut(text, "|") == expected


def test_control_strings_that_begin_alike_are_all_found() -> None:
    strings = ["<a", "<ab>", "<b>", "<b1>", "<b12>", "(+)", "(+]", "cd", "<｜no▁1｜>", "<｜no▁10｜>"]
    control = ControlStrings(strings)
    assert [control.cut(f"-{text}.", "|") for text in strings] == [f"-{text[0]}|{text[1:]}." for text in strings]
    assert ControlStrings(["<a>"]).cut("<a><b>", "|") == "<|a><b>"
    assert control.cut("<｜no▁2｜> <c> (+", "|") == "<｜no▁2｜> <c> (+|"
