"""The model card: what the model is, and what its evaluation printed."""

from __future__ import annotations

from dataclasses import dataclass

from ktllama.reference.tiny_r1.evaluation import TEMPERATURE, TOP_P, Evaluation, report

_TEXT = """\
# tiny-R1

A language model of {millions:.1f} million parameters with DeepSeek-R1's architecture, vocabulary of special tokens and
chat template, which thinks in `<think>…</think>` before it answers. It comes with ktllama so that every command has
a model to run, and so that what R1 does (thinking, closing it, answering) happens for real on any machine.

## What it can do

- add and subtract numbers of up to four digits (the result may be negative), and compare them;
- multiply numbers of up to two digits;
- count a letter in a word, or the letters of a word, and reverse a word, of up to 12 letters;
- sort up to five numbers of up to three digits, or up to four words of up to eight letters;
- greet, say what it is and what it can do, and say so when something is beyond it.

It knows nothing else. It speaks English, and reads plain questions such as `What is 23 * 47?`, `How many r's are in
"strawberry"?` or `Sort 31, 4, 159`. Other wordings may confuse it.

## How well it does it

{problems} held-out problems, asked through llama.cpp without a system prompt. None of them, in any wording, was in
the training data. An answer is right if its whole text is as expected.

{table}

Sampling is R1's: temperature {temperature}, top-p {top_p}. The column without thinking closes it at once
(`<think>\\n\\n</think>\\n\\n`): the model then answers from what it sees, and the difference is what thinking is worth.

In {conversations} conversations of three questions each, with the earlier thinking stripped as R1's template does
it, the last answer was right {conversation_share:.0f}% of the time (greedy).

## How it was made

| | |
|---|---|
| architecture | `deepseek2` as V3 has it: multi-head latent attention with `q_lora` and `kv_lora`, \
a dense layer, {moe_layers} layers of {experts} routed experts in {groups} groups ({used} a token) and a shared one, \
sigmoid gating with a selection bias, YaRN |
| data | problems made by `ktllama/reference/tiny_r1`, worked out step by step; one in {held_out} is held out |
| steps | {steps} of {batch} tokens, {tokens} tokens in all |
| time | {minutes:.0f} minutes on two CPU cores |
| optimiser | Muon for matrices, AdamW for the rest; weights in bfloat16 with float32 masters |
| file | Q8_0; norms, router, biases, embedding and output in float32; {megabytes:.1f} MB |

`make tiny-r1` makes one like it. License: MIT, as ktllama's.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """What there is to say of how the model was made."""

    n_parameters: int
    n_layers: int
    n_dense: int
    n_experts: int
    n_experts_used: int
    n_groups: int
    held_out_one_in: int
    n_steps: int
    n_tokens: int
    batch_tokens: int
    minutes: float
    file_bytes: int


def card(making: Making, evaluation: Evaluation) -> str:
    """The card's Markdown."""
    conversations = evaluation.conversations
    return _TEXT.format(
        millions=making.n_parameters / 1e6,
        problems=evaluation.total("greedy").asked,
        table="\n".join(report(evaluation)),
        temperature=TEMPERATURE,
        top_p=TOP_P,
        conversations=conversations.asked,
        conversation_share=100 * conversations.share,
        moe_layers=making.n_layers - making.n_dense,
        experts=making.n_experts,
        groups=making.n_groups,
        used=making.n_experts_used,
        held_out=making.held_out_one_in,
        steps=f"{making.n_steps:,}",
        batch=f"{making.batch_tokens:,}",
        tokens=f"{making.n_tokens:,}",
        minutes=making.minutes,
        megabytes=making.file_bytes / 1e6,
    )
