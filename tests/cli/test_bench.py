"""``ktllama bench`` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.runner import Ran, ktllama
from tests.models import rule

SHORT = ("bench", "--depth", "0,32", "--prefill", "16", "--decode", "2", "--repeat", "1", "--threads", "1")


def test_two_placements_of_tiny_r1() -> None:
    ran = ktllama(*SHORT, "--rules", "tiny-r1/cpu", "--rules", "tiny-r1/1gpu", "--stand-ins")
    assert ran.status == 0
    assert ran.err.splitlines()[1:] == [  # what is no terminal gets lines instead of a bar
        "loading 2 placements",
        "measuring tiny-r1/cpu, 1 of 1",
        "measuring tiny-r1/1gpu, 1 of 1",
    ]
    lines = [line.rstrip() for line in ran.out.splitlines()]
    assert lines[0] == "tiny-r1.gguf  1 thread, KV cache f16, ubatch 512"
    headings = [line for line in lines if line in ("Memory", "Tokens/s", "Notes")]
    assert headings == ["Memory", "Tokens/s", "Notes"]
    table = lines[lines.index("Tokens/s") + 1 : lines.index("Notes") - 1]
    assert table[0].split() == ["depth", "placement", *(2 * ["prefill", "×", "first"])[:3], "decode", "×", "first"]
    assert [line.split()[:2] for line in table[1::2]] == [["0", "tiny-r1/cpu"], ["32", "tiny-r1/cpu"]]
    assert [line.split()[0] for line in table[2::2]] == ["tiny-r1/1gpu", "tiny-r1/1gpu"]
    assert lines[-1] == ("  CUDA0: the CPU stood in for devices that this machine lacks, so these speeds mean nothing")
    assert "  that is less than 95%: --repeat 6 is the least that gives it" in lines


def test_the_document_holds_every_measurement() -> None:
    ran = ktllama(*SHORT, "--json")
    document = json.loads(ran.out)
    assert ran.status == 0
    assert document["workload"] == {
        "depths": [0, 32], "prefill_tokens": 16, "decode_tokens": 2, "repetitions": 1,
    }  # fmt: skip
    assert (document["stand_ins"], document["notes"]) == ([], [])
    (placement,) = document["placements"]
    assert placement["name"] == "tiny-r1/cpu"
    assert [sample["depth"] for sample in placement["samples"]] == [0, 32]
    for speeds, sample in zip(placement["speeds"], placement["samples"], strict=True):
        rate = sample["decode_tokens"] / sample["decode_seconds"]
        assert speeds["decode"] == {"median": rate, "low": rate, "high": rate, "confidence": 0, "n": 1}
        assert speeds["decode_ratio"] is None


def refused(*words: str) -> Ran:
    ran = ktllama("bench", *words)
    assert (ran.status, ran.out) == (2, "")
    return ran


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--depth", "0,x"), "'0,x': expected numbers of tokens, such as 0,1024,4096"),
        (("--depth", "8,8"), "'8,8': a depth is there twice"),
        (("--prefill", "0", "--decode", "0"), "leave nothing to measure"),
        (("--model", "some.gguf"), "Which placement? Give --rules, once for each"),
        (("--model", "hf:some/repo", "--rules", "tiny-r1/cpu"), "must be a file on this machine: download it first"),
        (("--ctx", "256", "--depth", "1024"), "--ctx 256 is too small: these depths and tokens need 1280."),
        (("--depth", "100000"), "is longer than the"),
        (("--ctx", "100000"), "tiny-R1 was trained with: take a smaller --ctx or smaller depths."),
        (("--rules", "tiny-r1/1gpu"), "CUDA0"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(words: tuple[str, ...], said: str) -> None:
    assert said in " ".join(refused(*words).err.split())


def test_rules_with_errors_are_findings(tmp_path: Path) -> None:
    rules = tmp_path / "r.yaml"
    rules.write_text(rule("lm_head", "CUDA0"))
    ran = ktllama("bench", "--rules", str(rules))
    assert ran.status == 1
    assert "bad-device" in ran.err
