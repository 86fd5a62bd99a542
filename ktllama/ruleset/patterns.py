"""``match.name``: is it a Python regular expression, and does it say what its writer seems to mean?"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

from ktllama.ranges import numbers_pattern
from ktllama.ruleset.findings import Findings, Place
from ktllama.ruleset.wording import printable, shown
from ktllama.ruleset.yaml_faults import pointed

MAX_PATTERN_CHARACTERS = 10_000

#: A class that looks like numbers: ``0-29``, ``10-20``, ``0-9|10-20``, ``1,12``.
_NUMBERS = re.compile(r"\d{1,3}(?:-\d{1,3})?(?:[|, ]+\d{1,3}(?:-\d{1,3})?)*", re.ASCII)
_NUMBER_OR_RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)

_EDGE = r"(?<![A-Za-z0-9_])"
_END = r"(?![A-Za-z0-9_])"
#: GGUF tensor names in a pattern, and the Hugging Face module that each is. The longer name comes first.
_GGUF_NAMES: tuple[tuple[str, str], ...] = (
    (r"blk(?:\\?\.)", "model.layers."),
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("ffn_(?:gate|up|down|gate_up)_exps", "mlp.experts"),
    ("ffn_(?:gate|up|down)_shexp", "mlp.shared_experts"),
    ("ffn_gate_inp(?:_shexp)?", "mlp.gate"),
    ("exp_probs_b", "mlp.gate"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_norm", "input_layernorm"),
    ("attn_q_a_norm", "self_attn.q_a_layernorm"),
    ("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
    ("attn_q_a", "self_attn.q_a_proj"),
    ("attn_q_b", "self_attn.q_b_proj"),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
    ("attn_(?:kv|k|v)_b", "self_attn.kv_b_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    (r"output(?:\\?\.weight)", "lm_head"),
)
_ANY_GGUF_NAME = re.compile(
    _EDGE + "(?:" + "|".join(f"({gguf})" for gguf, _ in _GGUF_NAMES) + ")" + f"(?:(?<=\\.)|{_END})"
)


def check_pattern(pattern: str, place: Place, findings: Findings) -> None:
    """Report what is wrong with ``pattern``, which stands at ``place``."""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        findings.add(
            "bad-regex",
            f"the pattern has {len(pattern)} characters; expected at most {MAX_PATTERN_CHARACTERS}",
            place,
        )
        return
    if _compiles(pattern, place, findings):
        _report_number_classes(pattern, place, findings)
    _report_gguf_names(pattern, place, findings)


def _compiles(pattern: str, place: Place, findings: Findings) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "possible nested set" is about Python's future, not about the rule
            re.compile(pattern)
    except re.error as fault:
        offset = fault.pos or 0
        message = f"'{shown(pattern)}' is no Python regular expression: {shown(fault.msg)}"
        hint = _reversed_range_hint(pattern, offset) if "bad character range" in fault.msg else ""
        findings.add("bad-regex", f"{message} at character {offset + 1}{hint}", place, pointed(pattern, offset))
        return False
    except (RecursionError, OverflowError, MemoryError) as fault:
        findings.add(
            "bad-regex", f"'{shown(pattern)}' is too deep or too large for Python: {type(fault).__name__}", place
        )
        return False
    return True


def _reversed_range_hint(pattern: str, offset: int) -> str:
    """The alternation that was meant where ``[4-10]`` was written."""
    opening = pattern.rfind("[", 0, offset + 1)
    content, bracket, _ = pattern[opening + 1 :].partition("]")
    numbers = _numbers(content) if opening >= 0 and bracket else None
    if numbers is None:
        return ""
    return f"; a class matches one character: for the numbers {shown(content)} write {numbers_pattern(numbers)}"


def _report_number_classes(pattern: str, place: Place, findings: Findings) -> None:
    for start, content in _classes(pattern):
        numbers = _numbers(content)
        if numbers is None or not findings.takes_more():
            continue
        matched = ", ".join(char for char in map(chr, range(32, 127)) if re.fullmatch(f"[{content}]", char))
        findings.add(
            "number-range",
            f"'[{shown(content)}]' matches one character ({matched}), not the numbers {shown(content)}; "
            f"write {numbers_pattern(numbers)}",
            place,
            pointed(pattern, start),
        )


def _classes(pattern: str) -> Iterator[tuple[int, str]]:
    """Where each character class of a valid pattern begins, and its content."""
    at = 0
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 2
            continue
        if pattern[at] == "[":
            end = _class_end(pattern, at)
            yield at, pattern[at + 1 : end]
            at = end
        at += 1


def _class_end(pattern: str, start: int) -> int:
    """The index of the ``]`` that closes the class opened at ``start``."""
    at = start + 1
    if pattern[at : at + 1] == "^":
        at += 1
    at += 1  # a ']' that comes first is a member
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at


def _numbers(content: str) -> set[int] | None:
    """The numbers that a class's content seems to mean, or None if it is an honest class.

    ``[3456]``, ``[0-9]`` and ``[12]`` are honest. A dash or a separator together with a number of two digits is not;
    nor is ``[12-5]``, a range that falls.
    """
    if len(content) > 100 or not _NUMBERS.fullmatch(content) or not re.search(r"[-|, ]", content):
        return None
    numbers: set[int] = set()
    for found in _NUMBER_OR_RANGE.finditer(content):
        first, last = int(found.group(1)), int(found.group(2) or found.group(1))
        if first > last:
            return None
        numbers.update(range(first, last + 1))
    return numbers if re.search(r"\d\d", content) else None


def _report_gguf_names(pattern: str, place: Place, findings: Findings) -> None:
    meant: dict[str, str] = {}
    for found in _ANY_GGUF_NAME.finditer(pattern):
        meant[found.group(0)] = _GGUF_NAMES[(found.lastindex or 1) - 1][1]
    if not meant:
        return
    pairs = ", ".join(f"'{module}' for '{printable(gguf)}'" for gguf, module in meant.items())
    findings.add(
        "gguf-name",
        f"rules match Hugging Face module names, and this names tensors of a GGUF file; write {pairs}",
        place,
    )
