"""How a model revision wants to be spoken to: sampling, system prompt, thinking, tools."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ktllama.r1.control_text import ControlStrings
from ktllama.r1.errors import MetadataError
from ktllama.r1.tool_formats import FORMATS, ToolFormatName

SystemPolicy = Literal["merge", "keep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What is sampled with where the request says nothing; ``top_k`` 0, ``min_p`` 0 and a penalty of 1 are off."""

    temperature: float
    top_p: float
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One model revision.

    ``system``: ``merge`` moves the system prompt into the first user turn. ``think_tags`` is None where the model
    does not think. ``force_think``: the answer is made to begin with ``<think>\\n`` where the template does not do so.
    ``thinking_switches`` are the template's variables that turn thinking on and off. ``joins_turns``: messages of one
    role in a row become one.
    """

    name: str
    sampling: SamplingDefaults
    system: SystemPolicy
    force_think: bool
    think_tags: tuple[str, str] | None
    tool_format: ToolFormatName
    thinking_switches: tuple[str, ...] = ()
    joins_turns: bool = False


TAGS = ("<think>", "</think>")
#: DeepSeek-R1's README, and its generation_config.json: temperature 0.6 (0.5 to 0.7), top_p 0.95, nothing else.
_R1_SAMPLING = SamplingDefaults(temperature=0.6, top_p=0.95)
#: llama.cpp's own (common_params_sampling, common/common.h, llama-cpp-python 0.3.36).
_LLAMA_CPP_SAMPLING = SamplingDefaults(temperature=0.8, top_p=0.95, top_k=40, min_p=0.05)
#: llama_ftype of the quantizations below two bits, IQ1_S and IQ1_M (include/llama.h), for which min_p 0.05 helps R1.
_IQ1_FILE_TYPES = frozenset({24, 31})
_IQ1_MIN_P = 0.05

R1 = Profile(
    name="deepseek-r1",
    sampling=_R1_SAMPLING,
    system="merge",
    force_think=True,
    think_tags=TAGS,
    tool_format="deepseek-r1",
    joins_turns=True,
)
R1_DISTILL = replace(R1, name="deepseek-r1-distill")
R1_0528 = replace(R1, name="deepseek-r1-0528", system="keep", force_think=False)
#: The sampling of DeepSeek-V3-0324's model card.
V3 = replace(R1_0528, name="deepseek-v3", think_tags=None, sampling=SamplingDefaults(temperature=0.3, top_p=0.95))
V3_1 = replace(R1_0528, name="deepseek-v3.1", tool_format="deepseek-v3.1", thinking_switches=("thinking",))
#: The sampling of QwQ-32B's model card.
QWQ = Profile(
    name="qwq",
    sampling=SamplingDefaults(temperature=0.6, top_p=0.95, top_k=40),
    system="keep",
    force_think=False,
    think_tags=TAGS,
    tool_format="hermes",
)
#: The sampling of Qwen3's model cards for thinking.
QWEN3 = replace(
    QWQ,
    name="qwen3",
    sampling=SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20),
    thinking_switches=("enable_thinking",),
)
THINKING = replace(QWQ, name="thinking", sampling=_LLAMA_CPP_SAMPLING)
PLAIN = replace(THINKING, name="plain", think_tags=None)


def profile_of(metadata: Mapping[str, object], template: str | None) -> Profile:
    """The profile of a model file. ``metadata`` is its GGUF key-value part, ``template`` its chat template.

    The names in the metadata tell revisions that share a template; the template tells all else. Sampling that the
    file itself asks for (``general.sampling.*``) wins. Raises MetadataError for such a value that is no number.
    """
    names = " ".join(str(metadata.get(f"general.{key}", "")) for key in ("name", "basename", "finetune", "version"))
    found = _family(names.lower(), template or "")
    if re.search(r"\benable_thinking\b", template or "") and found.think_tags and not found.thinking_switches:
        found = replace(found, thinking_switches=("enable_thinking",))
    sampling = found.sampling
    if found.sampling is _R1_SAMPLING and metadata.get("general.file_type") in _IQ1_FILE_TYPES:
        sampling = replace(sampling, min_p=_IQ1_MIN_P)
    tool_format = _tool_format(template or "") or found.tool_format
    return replace(found, sampling=_asked_for(metadata, sampling), tool_format=tool_format)


def _family(names: str, template: str) -> Profile:
    says_think = "<think>" in template or "</think>" in template
    if "<｜Assistant｜>" in template:
        return _deepseek(names, template, says_think)
    if "qwen3" in names and re.search(r"\benable_thinking\b", template):
        return QWEN3
    if "qwq" in names:
        return QWQ
    return THINKING if says_think else PLAIN


def _deepseek(names: str, template: str, says_think: bool) -> Profile:
    if "0528" in names:
        return R1_0528
    if "distill" in names:
        return R1_DISTILL
    if re.search(r"\bthinking\b", template) and says_think:
        return V3_1
    if re.search(r"\br1\b", names):
        return R1
    if not says_think:
        return V3
    # No name: the template of January forces the tag, that of 0528 does not.
    return R1 if re.search(r"<think>(?:\\n|\n)", template) else R1_0528


def _tool_format(template: str) -> ToolFormatName | None:
    if "<｜tool▁call▁begin｜>" in template:
        return "deepseek-r1" if "```json" in template else "deepseek-v3.1"
    return "hermes" if "<tool_call>" in template else None


#: GGUF key -> field, least and greatest value (llama.cpp's LLM_KV_GENERAL_SAMPLING_*, src/llama-arch.cpp).
_SAMPLING_KEYS: tuple[tuple[str, str, float, float], ...] = (
    ("general.sampling.temp", "temperature", 0.0, 100.0),
    ("general.sampling.top_p", "top_p", 0.0, 1.0),
    ("general.sampling.top_k", "top_k", 0, 2**31 - 1),
    ("general.sampling.min_p", "min_p", 0.0, 1.0),
    ("general.sampling.penalty_repeat", "repeat_penalty", 0.0, 100.0),
)


def _asked_for(metadata: Mapping[str, object], sampling: SamplingDefaults) -> SamplingDefaults:
    found: dict[str, float] = {}
    for key, name, least, greatest in _SAMPLING_KEYS:
        value = metadata.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise MetadataError(key, "a number was expected")
        if not least <= value <= greatest:
            raise MetadataError(key, f"{value} is not between {least} and {greatest}")
        found[name] = int(value) if name == "top_k" else float(value)
    return replace(sampling, **found)  # type: ignore[arg-type]


def control_strings(
    control: frozenset[str], user_defined: frozenset[str], *, profile: Profile, template: str
) -> ControlStrings:
    """What a user's text may not become, of a vocabulary's ``control`` and ``user_defined`` tokens.

    Of the user-defined ones only those that the template or the profile uses as markers: others (runs of blanks,
    HTML tags) are how ordinary text is tokenized.
    """
    markers = {*(profile.think_tags or ()), *FORMATS[profile.tool_format].markers}
    return ControlStrings(
        control | {text for text in user_defined if text in markers or text in template} | {*(profile.think_tags or ())}
    )
