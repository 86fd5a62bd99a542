from __future__ import annotations

import pytest

from ktllama.ruleset.loader import loads

EXPECTED_DEVICE = "expected cpu, cuda, cuda:N, xpu, xpu:N, npu, npu:N or auto"


def kwargs_findings(kwargs: str) -> list[str]:
    ruleset = loads(f"- match: {{name: a}}\n  replace:\n    kwargs:\n{kwargs}", "r.yaml")
    return [str(diagnostic) for diagnostic in ruleset.diagnostics]


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("gpu", f"'gpu' is no device; {EXPECTED_DEVICE}; did you mean 'cuda'?"),
        ("gpu:1", f"'gpu:1' is no device; {EXPECTED_DEVICE}; did you mean 'cuda:1'?"),
        ("cuda0", f"'cuda0' is no device; {EXPECTED_DEVICE}; did you mean 'cuda:0'?"),
        ("CUDA:0", f"'CUDA:0' is no device; {EXPECTED_DEVICE}; did you mean 'cuda:0'?"),
        ("CPU", f"'CPU' is no device; {EXPECTED_DEVICE}; did you mean 'cpu'?"),
        ("' cuda'", f"' cuda' is no device; {EXPECTED_DEVICE}; did you mean 'cuda'?"),
        ("cdua", f"'cdua' is no device; {EXPECTED_DEVICE}; did you mean 'cuda'?"),
        ("cuda:-1", f"'cuda:-1' is no device; {EXPECTED_DEVICE}"),
        ("cuda:1.5", f"'cuda:1.5' is no device; {EXPECTED_DEVICE}"),
        ("meta", f"'meta' is no device; {EXPECTED_DEVICE}"),
        ("None", f"'None' is no device; {EXPECTED_DEVICE}"),
        ("CUDA0", "'CUDA0' is no device; that is llama.cpp's name; in rules write cuda:0"),
        ("SYCL1", "'SYCL1' is no device; that is llama.cpp's name; in rules write xpu:1"),
        (
            "vulkan",
            "'vulkan' is no device; a rule says cuda:N for the N-th GPU of any kind, and "
            "--device-map names the backend",
        ),
        (
            "{cuda: 0}",
            'YAML reads this as a mapping because of the space after the colon; write "cuda:0"',
        ),
        ("{a: b}", f"found a mapping; {EXPECTED_DEVICE}"),
        ("[cpu]", f"found a list; {EXPECTED_DEVICE}"),
        ("null", f"found nothing (null); {EXPECTED_DEVICE}"),
        ("0", f"found the number 0; {EXPECTED_DEVICE}"),
        ("yes", f"found the boolean true; {EXPECTED_DEVICE}"),
        ('"\\e[31m"', f"'\\x1b[31m' is no device; {EXPECTED_DEVICE}"),
        ("x" * 200, f"'{'x' * 117}...' is no device; {EXPECTED_DEVICE}"),
    ],
)
def test_what_is_no_device(written: str, complaint: str) -> None:
    assert kwargs_findings(f"      generate_device: {written}\n") == [
        f"r.yaml:4:24: error: generate_device: {complaint} [bad-device]"
    ]


@pytest.mark.parametrize(
    ("written", "device"),
    [("cpu", "cpu"), ("cpu:0", "cpu"), ("cuda", "cuda:0"), ("xpu:3", "xpu:3"), ("npu", "npu:0"), ("auto", "auto")],
)
def test_what_is_a_device(written: str, device: str) -> None:
    (rule,) = loads(f"- match: {{name: a}}\n  replace: {{kwargs: {{prefill_device: '{written}'}}}}\n").rules
    assert rule.prefill_device == device


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        (
            "      prefil_device: cpu\n      per_layer_prefill_input_threshold: 0\n      zzz: 0\n",
            [
                "r.yaml:4:7: warning: no operator has an argument 'prefil_device'; it has no effect; did you mean "
                "'prefill_device'? [unknown-kwarg]",
                "r.yaml:5:7: warning: no operator has an argument 'per_layer_prefill_input_threshold'; it has no "
                "effect; did you mean 'per_layer_prefill_intput_threshold'? [unknown-kwarg]",
                "r.yaml:6:7: warning: no operator has an argument 'zzz'; it has no effect [unknown-kwarg]",
            ],
        ),
        (
            "      device: cpu\n      recursive: False\n      generate_linear_type: x\n      5: 6\n",
            [
                "r.yaml:4:7: warning: 'device' has no effect here; write generate_device, and prefill_device if it "
                "differs [misplaced-key]",
                "r.yaml:5:7: warning: 'recursive' has no effect inside kwargs; move it to the rule, beside match and "
                "replace [misplaced-key]",
                "r.yaml:6:7: warning: argument 'generate_linear_type' is from an old ktransformers; write generate_op "
                "[old-name]",
                "r.yaml:7:7: error: an argument in kwargs must have a name, found the number 5 as its key [wrong-type]",
            ],
        ),
        (
            "      transfer_map: {30: cuda, '31': gpu, x: cpu, yes: cpu, -1: cpu}\n",
            [
                "r.yaml:4:32: note: layer '31' is a quoted text and is read as 31; remove the quotes "
                "[transfer-map-key]",
                f"r.yaml:4:38: error: transfer_map 31: 'gpu' is no device; {EXPECTED_DEVICE}; did you mean 'cuda'? "
                "[bad-device]",
                "r.yaml:4:43: error: transfer_map expects layer numbers from 0 to 9999 as keys, found the text 'x' "
                "[bad-transfer-map]",
                "r.yaml:4:51: error: transfer_map expects layer numbers from 0 to 9999 as keys, found the boolean true "
                "[bad-transfer-map]",
                "r.yaml:4:61: error: transfer_map expects layer numbers from 0 to 9999 as keys, found the number -1 "
                "[bad-transfer-map]",
            ],
        ),
        (
            "      transfer_map: [cpu]\n",
            [
                "r.yaml:4:21: error: transfer_map expects a mapping of layers to devices such as "
                '{30: "cuda:1"}, found a list [bad-transfer-map]'
            ],
        ),
        (
            "      per_layer_prefill_intput_threshold: 100\n",
            [
                "r.yaml:4:43: note: per_layer_prefill_intput_threshold 100 asks for layer-wise "
                "prefill, which llama.cpp "
                "does not have; write 0 to switch it off [layerwise-prefill]"
            ],
        ),
        (
            "      per_layer_prefill_intput_threshold: 'x'\n",
            [
                "r.yaml:4:43: error: per_layer_prefill_intput_threshold expects a number, found the text 'x' "
                "[wrong-type]"
            ],
        ),
        (
            "      generate_device: cpu\n      generate_op: KLinearMarlin\n",
            [
                "r.yaml:5:20: warning: KLinearMarlin runs on CUDA only; on cpu the base implementation runs "
                "[operator-device]"
            ],
        ),
        (
            "      prefill_device: cuda\n      prefill_op: KExpertsCPU\n",
            [
                "r.yaml:5:19: warning: KExpertsCPU runs on the CPU only; on cuda:0 the base implementation runs "
                "[operator-device]"
            ],
        ),
        (
            "      generate_op: KLinearMarlinn\n      prefill_op: MLPCPUExperts\n",
            [
                "r.yaml:4:20: warning: generate_op: ktransformers has no operator 'KLinearMarlinn'; did you mean "
                "'KLinearMarlin'? [unknown-operator]",
                "r.yaml:5:19: warning: operator 'MLPCPUExperts' is from an old ktransformers; write KExpertsCPU "
                "[old-name]",
            ],
        ),
        (
            "      generate_op: [x]\n      prefill_op: 5\n",
            [
                "r.yaml:4:20: error: generate_op expects an operator's name, found a list [wrong-type]",
                "r.yaml:5:19: error: prefill_op expects an operator's name, found the number 5 [wrong-type]",
            ],
        ),
        ("      prefill_device: cpu\n      prefill_op: KExpertsTorch\n      generate_op:\n", []),
        ("      generate_device: auto\n      generate_op: KLinearMarlin\n      transfer_map:\n", []),
    ],
)
def test_what_is_wrong_with_kwargs(kwargs: str, expected: list[str]) -> None:
    assert kwargs_findings(kwargs) == expected
