from __future__ import annotations

import pytest

from ktllama.ruleset.loader import loads

REPLACE = "  replace: {class: default, kwargs: {generate_device: cpu}}\n"


def pattern_findings(pattern: str) -> list[str]:
    ruleset = loads(f"- match: {{name: '{pattern}'}}\n{REPLACE}", "r.yaml")
    return [str(diagnostic) for diagnostic in ruleset.diagnostics]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (
            "^a(b",
            "error: '^a(b' is no Python regular expression: missing ), unterminated subpattern at character 3 "
            "[bad-regex]\n    ^a(b\n      ^",
        ),
        (
            "*",
            "error: '*' is no Python regular expression: nothing to repeat at character 1 [bad-regex]\n    *\n    ^",
        ),
        (
            "layers.[4-10]",
            "error: 'layers.[4-10]' is no Python regular expression: bad character range 4-1 at character 9; a class "
            "matches one character: for the numbers 4-10 write ([4-9]|10) [bad-regex]\n    layers.[4-10]\n"
            "            ^",
        ),
        (
            "[z-a]",
            "error: '[z-a]' is no Python regular expression: bad character range z-a at character 2 [bad-regex]\n"
            "    [z-a]\n     ^",
        ),
        (
            "l.([0-29])",
            "warning: '[0-29]' matches one character (0, 1, 2, 9), not the numbers 0-29; write ([0-9]|[12][0-9]) "
            "[number-range]\n    l.([0-29])\n       ^",
        ),
        (
            "[10-20]",
            "warning: '[10-20]' matches one character (0, 1, 2), not the numbers 10-20; write (1[0-9]|20) "
            "[number-range]\n    [10-20]\n    ^",
        ),
        (
            "[30-60]",
            "warning: '[30-60]' matches one character (0, 1, 2, 3, 4, 5, 6), not the numbers 30-60; write "
            "([3-5][0-9]|60) [number-range]\n    [30-60]\n    ^",
        ),
        (
            "[0-9|10-12]",
            "warning: '[0-9|10-12]' matches one character (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, |), not the numbers "
            "0-9|10-12; write ([0-9]|1[0-2]) [number-range]\n    [0-9|10-12]\n    ^",
        ),
        (
            r"blk\.[0-9]+\.ffn_gate_exps",
            r"warning: rules match Hugging Face module names, and this names tensors of a GGUF file; write "
            r"'model.layers.' for 'blk\.', 'mlp.experts' for 'ffn_gate_exps' [gguf-name]",
        ),
        (
            "token_embd|output_norm|attn_q_a|attn_q",
            "warning: rules match Hugging Face module names, and this names tensors of a GGUF file; write "
            "'model.embed_tokens' for 'token_embd', 'model.norm' for 'output_norm', 'self_attn.q_a_proj' for "
            "'attn_q_a', 'self_attn.q_proj' for 'attn_q' [gguf-name]",
        ),
        (
            "x" * 10_001,
            "error: the pattern has 10001 characters; expected at most 10000 [bad-regex]",
        ),
        (
            "x" * 200 + "(",
            "error: '" + "x" * 117 + "...' is no Python regular expression: missing ), unterminated subpattern at "
            "character 201 [bad-regex]\n    " + "x" * 50 + "(\n    " + " " * 50 + "^",
        ),
    ],
)
def test_what_is_wrong_with_a_pattern(pattern: str, expected: str) -> None:
    assert pattern_findings(pattern) == [f"r.yaml:1:17: {expected}"]


@pytest.mark.parametrize("pattern", ["(" * 4000 + ")" * 4000, "a{99999999999999999999}"])
def test_a_pattern_too_deep_or_large_for_python_is_an_error(pattern: str) -> None:
    (message,) = pattern_findings(pattern)
    assert message.startswith("r.yaml:1:17: error: ")
    assert message.split("\n")[0].endswith("[bad-regex]")


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "[0-9]",
        "[1-9]",
        "[3456][0-9]",
        "[12][0-9]",
        "[012]",
        "[12-5]",
        "[0-9a-f]",
        r"\[0-29]",
        "[]0-29]",
        "[[a]",
        "[^10-20]",
        "self_attn",
        "^model.layers.(?!.*kv_b_proj).*$",
        "mlp.gate",
        "my_attn_q_x",
    ],
)
def test_an_honest_pattern_is_left_alone(pattern: str) -> None:
    assert pattern_findings(pattern) == []
