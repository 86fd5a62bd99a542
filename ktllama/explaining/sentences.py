"""What explanations say, in words that the command line and the picture share."""

from __future__ import annotations

from ktllama.explaining.explanation import Llama, Why
from ktllama.placing.resolve import DEFAULT_DEVICE
from ktllama.ruleset.rules import DEFAULT_CLASS, Rule
from ktllama.ruleset.wording import shown


def match_text(rule: Rule) -> str:
    """What a rule matches: its pattern and its class, both made printable."""
    parts = []
    if rule.name is not None:
        parts.append(shown(rule.name) if rule.name else "(every name)")
    if rule.class_path is not None:
        parts.append(f"class {shown(rule.class_path)}")
    return "  ".join(parts)


def replace_text(rule: Rule) -> str:
    """What a rule asks for besides its ``generate_device``."""
    parts = [] if rule.replace_class == DEFAULT_CLASS else [shown(rule.replace_class.rpartition(".")[2])]
    if rule.prefill_device not in (None, rule.generate_device):
        parts.append(f"prefill on {rule.prefill_device}")
    if not rule.recursive:
        parts.append("recursive: false")
    return ", ".join(parts)


def why_text(why: Why, default_device: str = DEFAULT_DEVICE) -> str:
    """Why something has its device, in one line."""
    rule = "no rule" if why.rule is None else f"rule {why.rule}"
    return {
        "rule": f"{rule} says so",
        "rule-without-device": f"{rule} names no generate_device, so the default device",
        "experts-operator": f"{rule} names no generate_device, and its operator keeps experts on the CPU",
        "default-device": "no rule matches, so the default device",
        "cut": f"follows {why.cut_by}, where {rule} says recursive: false",
        "embedding": f"the embedding stays on the CPU, though {rule} says {why.said}"
        if why.rule is not None
        else f"the embedding stays on the CPU; no rule matches, and the default device is {default_device}",
        "most-experts": "one tensor holds all experts of the layer, and most of them belong here",
        "follows-attention": f"no module owns it, so it follows {why.followed}",
        "no-module": "no module owns it, so the default device",
    }[why.reason]


def llama_text(llama: Llama) -> str:
    """What llama.cpp does for a tensor, in one line."""
    return {
        "override": f"{llama.device} by the override {llama.pattern}",
        "layer": f"{llama.device}, the device of layer {llama.layer}",
        "output-layer": f"{llama.device}, the device of the output layer",
        "input": f"{llama.device}, where llama.cpp keeps the embedding",
        "every-layer": "a copy on the device of every layer",
        "not-loaded": "left on disk: llama.cpp does not load MTP blocks unless it is told to",
    }[llama.means]
