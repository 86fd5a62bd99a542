"""The mixture of experts: which experts a token goes to, with what weights, and what they make of it.

Source: DeepSeek-V2 (arXiv 2405.04434, section 2.2), DeepSeek-V3 (arXiv 2412.19437, section 2.1.2), and
``llm_graph_context::build_moe_ffn`` in ``src/llama-graph.cpp`` of the llama.cpp in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ktllama.reference.activations import product
from ktllama.reference.attention import wide
from ktllama.reference.config import MoeConfig
from ktllama.reference.parts import Bias, Product, Stack, linear, swiglu

#: The smallest number of float16, below which llama.cpp does not let a sum of weights fall.
_LEAST_SUM = 6.103515625e-5

#: The matrices of one expert: gate (F, D), up (F, D), down (D, F).
Expert: TypeAlias = tuple[Product, Product, Product]


def route(logits: Tensor, bias: Tensor | None, config: MoeConfig) -> tuple[Tensor, Tensor]:
    """The experts of every token and their weights, both (N, k), best first, from the router's ``logits`` (N, E).

    The bias takes part in the choice only; the weights come from the unbiased scores.
    """
    scores, rated = rate(logits, bias, config)
    if config.n_groups > 1:
        rated = _within_best_groups(rated, config)
    experts = rated.topk(config.n_experts_used, dim=-1).indices
    weights = scores.gather(-1, experts)
    if config.normalize:
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(_LEAST_SUM)
    return experts, weights * config.scale


def rate(logits: Tensor, bias: Tensor | None, config: MoeConfig) -> tuple[Tensor, Tensor]:
    """Every expert's score, and what it is chosen by, both (N, E)."""
    scores = logits.softmax(-1) if config.gating == "softmax" else logits.sigmoid()
    return scores, scores if bias is None else scores + bias


def _within_best_groups(rated: Tensor, config: MoeConfig) -> Tensor:
    """``rated`` (N, E) with −∞ outside the best groups of every token.

    V3's own code masks with 0, which differs where a biased score is negative; llama.cpp has −∞, as the paper means it.
    """
    grouped = rated.view(len(rated), config.n_groups, -1)  # (N, G, E/G)
    best = grouped.amax(-1) if config.group_score == "max" else grouped.topk(2, dim=-1).values.sum(-1)
    chosen = best.topk(config.n_groups_used, dim=-1).indices
    left_out = torch.ones_like(best, dtype=torch.bool).scatter(-1, chosen, False)
    return grouped.masked_fill(left_out[..., None], -torch.inf).flatten(-2)


def combine(x: Tensor, experts: Tensor, weights: Tensor, matrices: Iterable[Expert], counts: list[int]) -> Tensor:
    """The weighted sum of what its experts make of every token: x (N, D), experts and weights (N, k); (N, D).

    Tokens are sorted by expert, so that each expert is one product. ``matrices`` gives the experts that have tokens,
    in ascending order; ``counts`` says of all experts how many tokens each has.
    """
    n_tokens, k = experts.shape
    order = experts.flatten().argsort(stable=True)
    groups = torch.split(x[order // k], [n for n in counts if n])
    made = torch.cat([swiglu(group, *expert) for group, expert in zip(groups, matrices, strict=True)])
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    by_token = made[back].view(n_tokens, k, -1)
    return (by_token * weights[..., None].to(x.dtype)).sum(1)


class MixtureOfExperts(nn.Module):
    """Routed experts, and shared experts that see every token."""

    def __init__(self, width: int, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.gate_inp = linear(width, config.n_experts)
        self.exp_probs_b = Bias(config.n_experts) if config.selection_bias else None
        self.gate_exps = Stack(config.n_experts, config.expert_ffn, width)
        self.up_exps = Stack(config.n_experts, config.expert_ffn, width)
        self.down_exps = Stack(config.n_experts, width, config.expert_ffn)
        if config.n_shared:
            self.gate_shexp = linear(width, config.n_shared * config.expert_ffn)
            self.up_shexp = linear(width, config.n_shared * config.expert_ffn)
            self.down_shexp = linear(config.n_shared * config.expert_ffn, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) to (N, D), and the experts and weights (N, k) that were chosen."""
        experts, weights = self.choose(x)
        counts = experts.flatten().bincount(minlength=self.config.n_experts).tolist()
        y = combine(x, experts, weights, self.used(counts), counts)
        if self.config.n_shared:
            y = y + swiglu(x, self.gate_shexp, self.up_shexp, self.down_shexp)
        return y, experts, weights

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The experts and weights of every token, in float32 at least."""
        return route(*self._router(x), self.config)

    def ratings(self, x: Tensor) -> Tensor:
        """What experts are chosen by, and how far that moves if ``x`` is off by all its length in some direction.

        Both are (N, E); the latter is the slope of the score times |x|·|w|/√D, which is what a random direction of D
        has in common with an expert's row w of the router.
        """
        logits, bias = self._router(x)
        scores, rated = rate(logits, bias, self.config)
        rows = self.gate_inp.weight.to(logits.dtype).norm(dim=-1)
        lengths = x.to(logits.dtype).norm(dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
        return torch.stack((rated, scores * (1 - scores) * lengths * rows))

    def _router(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The router's logits (N, E), in float32 at least, and its bias."""
        logits = product(x.to(wide(x)), self.gate_inp.weight.to(wide(x)), self.gate_inp.rounding)
        return logits, None if self.exp_probs_b is None else self.exp_probs_b.bias.to(logits.dtype)

    def used(self, counts: list[int]) -> Iterable[Expert]:
        """The matrices of the experts that have tokens."""
        by_expert = zip(*(_matrices(stack) for stack in (self.gate_exps, self.up_exps, self.down_exps)), strict=True)
        return (expert for expert, n in zip(by_expert, counts, strict=True) if n)


def _matrices(stack: Stack) -> Iterator[Product]:
    """Unbound at once: selecting one by one would fill a gradient of all experts for each."""
    for index, weight in enumerate(stack.weight.unbind(0)):
        yield partial(product, weight=weight, rounding=stack.rounding and stack.rounding.of(index))
