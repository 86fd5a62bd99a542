"""The page of a plan: it stands alone, and every number of its pictures is also in a table."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from ktllama.planner import curves
from ktllama.planner.page import render
from ktllama.planner.survey import Survey
from ktllama.units import format_bytes, format_number
from tests.pages.reader import read
from tests.planner.surveys import lite_plan, survey


@pytest.fixture(scope="module")
def made() -> Survey:
    return survey()


@pytest.fixture(scope="module")
def text(made: Survey) -> str:
    return render(made, "model.gguf", "rules.yaml")


def test_the_page_loads_nothing_and_says_what_runs_the_plan(text: str) -> None:
    reader, _ = read(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttpRequest|import\(", text.replace("// ---", ""))
    assert not [tag for tag, given in reader.elements if {"src", "href", "srcset", "action"} & given.keys()]
    policy = next(given["content"] for tag, given in reader.elements if "http-equiv" in given)
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "ktllama run rules.yaml --model model.gguf --ctx 8192 --prompt Hello" in text


def test_the_layers_are_those_of_the_plan_with_its_cache(text: str) -> None:
    _, data = read(text)
    plan = lite_plan()
    assert data["devices"] == ["cuda:0", "cpu"]
    assert data["context"]["shown"] == 8192
    (drawn,) = data["plans"]
    assert {int(kv["column"]): kv["device"] for kv in drawn["kv"]} == plan.translation.placement.kv
    # V2-Lite's cache is 512 + 64 values of latent attention a token and layer
    assert {kv["bytes_per_token"] for kv in drawn["kv"]} == {(512 + 64) * 2}


def test_every_part_of_a_devices_memory_is_a_part_of_its_bar(text: str) -> None:
    reader, _ = read(text)
    drawn = [given["aria-label"] for tag, given in reader.elements if (given.get("class") or "").startswith("seg ")]
    expected = []
    for one in lite_plan().memory:
        assert one.budget is not None
        parts = {**one.parts, "margin": one.margin, "free": one.free or 0}
        expected += [f"{name}; {one.device} {format_bytes(size)}; of its memory {size / one.budget:.1%}"
                     for name, size in parts.items() if size]  # fmt: skip
    assert len(drawn) == len(expected)
    assert all(label is not None and label.startswith(said) for label, said in zip(drawn, expected, strict=True))
    widths = [float(found) for found in re.findall(r"flex-grow:([0-9.]+)", text)]
    assert sum(widths) == pytest.approx(1000 * len(lite_plan().memory), abs=0.1)


def test_plans_that_do_not_fit_are_drawn_as_such_and_say_why(text: str) -> None:
    reader, _ = read(text)
    dots = [
        given for tag, given in reader.elements if (given.get("class") or "").startswith("dot") and "style" in given
    ]
    kinds = [(given["class"] or "").split()[1] for given in dots]
    assert kinds == ["refused", "here", "plain", "plain", "plain", "plain", "plain", "here", "plain", "refused"]
    assert dots[0]["aria-label"] == "4 GiB, in place of cuda:0: does not fit; M <b> does not fit"
    assert (dots[0]["style"] or "").endswith("bottom:0.00%")
    assert (dots[2]["aria-label"] or "").startswith("16 GiB, in place of cuda:0; decode ")
    assert "50% faster; at its start " in (dots[2]["aria-label"] or "")
    assert all(given["tabindex"] == "0" for given in dots)


def test_what_other_cards_and_contexts_give_is_said_in_words(made: Survey) -> None:
    base = made.plan.prediction.decode_tokens_per_second
    assert list(curves.card_sentences(made)) == [
        f"One more card of 8 GiB: {format_number(base * 1.25)} tokens/s, 25% faster.",
        f"A card of 16 GiB in place of cuda:0: {format_number(base * 1.5)} tokens/s, 50% faster.",
        f"A card of 80 GiB in place of cuda:0: {format_number(base * 3)} tokens/s, 3.0 times as fast.",
    ]
    assert list(curves.context_sentences(made)) == [
        f"16384 tokens instead of 8192: {format_number(base * 0.8)} tokens/s, 20% slower with half of it full; {format_number(base)} at its "
        "start.",
        "32768 tokens do not fit: the buffers are too large.",
    ]


def test_where_no_card_helps_that_is_all_that_is_said(made: Survey) -> None:
    full = replace(made, replaced=made.replaced[:2], added=())
    assert list(curves.card_sentences(full)) == [
        "No card, neither a larger one nor one more, makes decoding noticeably faster."
    ]


def test_a_chart_of_nothing_but_refusals_is_drawn(made: Survey) -> None:
    text = curves.card_chart(replace(made, replaced=made.replaced[:1], added=()))
    assert re.findall(r'<i class="dot (\w+) line-0" style', text) == ["refused"]


def test_the_numbers_of_the_charts_are_in_tables(made: Survey) -> None:
    base = made.plan.prediction.decode_tokens_per_second
    assert cells(curves.card_table(made)) == [
        ["card", "decode", "change", "at its start", "prefill", "ubatch"],
        ["4 GiB in place of cuda:0", "does not fit", "3 GiB of host memory too little", "", "", ""],
        [
            "8 GiB in place of cuda:0, this plan",
            format_number(base),
            "as fast",
            format_number(base * 1.1),
            "100",
            "512",
        ],
        ["16 GiB in place of cuda:0", format_number(base * 1.5), "50% faster", format_number(base * 1.5), "100", "512"],
        [
            "80 GiB in place of cuda:0",
            format_number(base * 3),
            "3.0 times as fast",
            format_number(base * 3),
            "100",
            "512",
        ],
        ["8 GiB beside it", format_number(base * 1.25), "25% faster", format_number(base * 1.25), "100", "512"],
        ["16 GiB beside it", format_number(base * 1.252), "25% faster", format_number(base * 1.252), "100", "512"],
    ]
    assert cells(curves.context_table(made))[1:] == [
        ["4096", format_number(base * 1.1), "10% faster", format_number(base * 1.2), "100", "512"],
        ["8192, this plan", format_number(base), "as fast", format_number(base * 1.1), "100", "512"],
        ["16384", format_number(base * 0.8), "20% slower", format_number(base), "100", "512, streamed"],
        ["32768", "does not fit", "the buffers are too large", "", "", ""],
    ]


def cells(table: str) -> list[list[str]]:
    """The texts of a table's cells, row by row."""
    return [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
