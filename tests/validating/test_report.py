"""The outcome as sentences, as JSON that fits its schema, and as a page."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from ktllama.validating import page
from ktllama.validating.comparison import Source
from ktllama.validating.document import report_document
from ktllama.validating.layers import LayerErrors
from ktllama.validating.positions import compare_positions
from ktllama.validating.report import (
    Report,
    devices_by_layer,
    flips,
    number,
    percentage,
    sources,
    suspicion,
    totals,
    verdict,
    worst_positions,
)
from tests.models import deepseek
from tests.runtime.plans import plan
from tests.validating.reports import calm_report, report

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "validation.schema.json").read_text(encoding="utf-8"))

#: Logits (0, 2, 0) against (2, 0, 0): one position of three differs.
KL = 2 * (math.exp(2) - 1) / (math.exp(2) + 2)


def test_the_verdict_has_both_numbers() -> None:
    assert verdict(report()) == f"mean KL divergence {number(KL / 3)}, PAST the limit of 0.001"
    assert verdict(calm_report()) == "mean KL divergence 0, within the limit of 0.001"


def test_a_layer_that_goes_wrong_fails_though_the_logits_hardly_show_it() -> None:
    wrong = report(positions=calm_report().positions)
    assert (wrong.within, wrong.ok) == (True, False)
    assert verdict(wrong) == "mean KL divergence 0, within the limit of 0.001, but a layer goes WRONG"
    asked = replace(wrong, limit_given=True)
    assert asked.ok
    assert verdict(asked) == "mean KL divergence 0, within the limit of 0.001"


def test_rounding_that_calm_layers_carried_on_is_told_from_a_fault() -> None:
    whole = report()
    alike = replace(whole.comparison, rounded=(True,) * 4)
    calm = replace(whole, layers=whole.layers[:2], comparison=alike, max_kl=0.4)
    assert (calm.mean_kl > 0.4, calm.carried, calm.ok) == (True, False, False)  # more than rounding does
    near = calm_report()
    logits = np.array([[2, 1, 0], [0, 2, 0], [1, 1, 3]], np.float32)
    theirs = np.array([[2.2, 1, 0], [0.2, 2, 0], [1.2, 1, 3]], np.float32)
    positions = compare_positions(logits, theirs, (0, 1, 2))
    near = replace(near, comparison=alike, positions=positions)
    assert 1e-3 < near.mean_kl < 2e-2
    assert near.carried
    assert near.ok
    assert near.suspect is None
    assert verdict(near) == (
        f"mean KL divergence {number(near.mean_kl)}, past 0.001, but every layer is right given the same input: "
        "rounding that was carried on, within 0.02"
    )
    assert report_document(near)["carried"] is True
    one = np.array([0.0, 0.06, 0.0])  # a single token that is far off
    assert not replace(near, layers=(LayerErrors(layer=0, relative=one, own=one),)).ok
    # not where the reference leaves one layer exact, where a layer is wrong, or where a limit was given
    assert not replace(near, comparison=replace(alike, rounded=(True, True, True, False))).ok
    assert not replace(near, layers=whole.layers).ok
    blunt = replace(alike, alike=(Source(what="a quantized KV cache", relative=0.01),))
    assert not replace(near, comparison=blunt).ok
    assert not replace(near, limit_given=True).ok


def test_the_suspect_is_named_with_its_device() -> None:
    assert suspicion(report()) == (
        "layer 2 on cuda:1 goes wrong first: given the same input, it is off by 0.4 of what it adds, where about 0.005 "
        "is expected"
    )
    assert suspicion(calm_report()) is None


def test_the_output_may_be_the_suspect() -> None:
    whole = report()
    said = suspicion(report(layers=whole.layers[:2], output=np.array([0.5, 0.5])))
    assert said is not None
    assert said.startswith("the output (output_norm, output) on cpu goes wrong first: ")


def test_the_first_layer_may_have_got_it_from_the_embedding() -> None:
    wrong = report().layers[2]
    moved = type(wrong)(layer=0, relative=wrong.relative, own=wrong.own)
    said = suspicion(report(layers=(moved,)))
    assert said is not None
    assert said.startswith("layer 0 on cuda:0 goes wrong first (or the embedding before it): ")


def test_a_failure_without_a_suspect_says_where_the_error_is_largest() -> None:
    whole = report()
    assert suspicion(report(layers=whole.layers[:2])) == (
        "no layer stands out; the largest error is added by layer 0 on cuda:0: 0.02 for one token, expected about 0.005"
    )
    calm = np.full(3, 0.004)
    none = report(layers=(LayerErrors(layer=0, relative=calm, own=calm),))
    assert (none.ok, none.suspect) == (False, None)
    assert suspicion(none) == "no layer stands out: each adds no more than is expected of it"


def test_flips_say_what_was_chosen_and_what_they_did() -> None:
    assert flips(report()) == (
        "flipped experts: 1 of 3 choices differ, at 1 of 3 positions; first in layer 1 at position 1, expert 7 instead "
        "of expert 2; without these positions the mean KL divergence is 0; the largest difference, at position 1, "
        "follows a flip in layer 1"
    )
    assert flips(calm_report()) is None


def test_reasons_and_figures() -> None:
    assert sources(report()) == ["sums: about 0.003", "rounding: about 0.004"]
    found = dict(totals(report()))
    assert found["KL divergence, worst"] == f"{number(KL)} at position 1"
    assert found["|Δ logit|, worst"] == "2 at position 1"
    assert found["same most likely token"] == "66.67%"
    assert worst_positions(report(), 2) == [1, 0]


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100%"), (0.0, "0%"), (0.5, "50.00%"), (0.99999, "99.99%"), (2 / 3, "66.67%")]
)
def test_only_all_is_a_hundred_percent(share: float, text: str) -> None:
    assert percentage(share) == text


def test_a_layers_devices_begin_with_that_of_its_cache() -> None:
    model = deepseek(3)
    placement = plan(model, ["CUDA0", "CUDA1", "CUDA0", "CPU"], {r"_exps": "CPU", r"blk\.1\.attn_q": "CUDA0"})
    assert devices_by_layer(placement) == {
        0: ("cuda:0",),
        1: ("cuda:1", "cuda:0", "cpu"),
        2: ("cuda:0", "cpu"),
    }


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def infinite() -> Report:
    logits = np.array([[1, 2], [1, 2], [1, 2]], np.float32)
    wrong = np.array([[1, math.nan], [1, 2], [1, 2]], np.float32)
    return report(positions=compare_positions(logits, wrong, (0, 1, 0)), output=np.array([math.inf]))


@pytest.mark.parametrize("made", [report(), calm_report(), infinite(), report(output=np.array([0.9]))])
def test_documents_fit_the_schema(made: Report) -> None:
    document = json.loads(json.dumps(report_document(made), allow_nan=False))
    assert [fault.message for fault in Draft202012Validator(SCHEMA).iter_errors(document)] == []


def test_the_document_says_what_the_report_does() -> None:
    document = report_document(report())
    assert document["ok"] is False
    assert document["suspect"] == {"layer": 2, "devices": ["cuda:1"], "error": 0.4, "share": 1.0, "certain": True}
    assert document["flips"] == {
        "choices": 3,
        "flipped": 1,
        "positions": 1,
        "first": {"layer": 1, "position": 1, "reference": [2], "llama_cpp": [7]},
    }
    layers, positions = document["layers"], document["positions"]
    assert isinstance(layers, list)
    assert isinstance(positions, dict)
    assert layers[1] == {
        "layer": 1,
        "devices": ["cuda:0", "cpu"],
        "median": 0.02,
        "worst": 0.04,
        "worst_position": 1,
        "own": 0.01,
        "expected": 0.005,
        "flipped": 1,
        "own_flipped": 1,
    }
    assert positions["top1"] == [True, False, True]
    assert positions["flipped_layer"] == [None, 1, None]
    assert positions["nll"][-1] is None


class _Balance(HTMLParser):
    """Checks that every element that opens closes."""

    _VOID = frozenset({"meta", "circle", "line", "path", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self._VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("made", [report(), calm_report(), infinite()])
def test_the_page_stands_alone(made: Report) -> None:
    text = page.render(made)
    parser = _Balance()
    parser.feed(text)
    assert parser.open == []
    assert parser.seen.count("svg") >= 3
    assert not {"script", "img", "link", "b"} & set(parser.seen)
    assert "{{" not in text
    assert not re.search(r"https?://", text)
    assert "nan" not in re.findall(r'(?:cx|cy|y1|y2|d)="([^"]*)"', text)


def test_the_page_draws_every_layer_in_its_devices_colour() -> None:
    text = page.render(report())
    dots = re.findall(r'class="dot f-(\w+) s-(\w+)"', text)
    assert dots == [("gpu0", "gpu0"), ("gpu0", "cpu"), ("gpu1", "gpu1"), ("cpu", "cpu")]
    assert text.count('class="ring"') == 1
    assert "layer 2 goes wrong first" in text
    assert text.count('class="flip"') == 1
    assert "Tiny &lt;b&gt;model&lt;/b&gt;" in text


def test_the_page_of_a_calm_report_marks_nothing() -> None:
    text = page.render(calm_report())
    assert 'class="ring"' not in text
    assert 'class="flip"' not in text
    assert '<p class="verdict good">' in text
