"""Muon for matrices and AdamW for the rest, shared between processes.

Weights and gradients are bfloat16 views of two flat buffers. Every process keeps the float32 masters and the moments
of its own part of them, brings those forward, and sends the rounded weights to the others.

Source of Muon: Keller Jordan's description (kellerjordan.github.io/posts/muon), with its Newton–Schulz coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Learning rates at their highest, and the moments' decay."""

    matrices: float = 0.02
    vectors: float = 0.003
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-10
    clip: float = 1.0


class Share:
    """One parameter that this process brings forward: its float32 master and moments."""

    def __init__(self, name: str, weight: nn.Parameter) -> None:
        self.name = name
        self.weight = weight
        self.master = weight.detach().float().clone()
        self.first = torch.zeros_like(self.master)
        self.is_matrix = is_matrix(name, weight)
        self.second = torch.zeros(0) if self.is_matrix else torch.zeros_like(self.master)

    def forward(self, rates: Rates, fraction: float, step: int) -> None:
        """One step of descent along the parameter's gradient, at ``fraction`` of the highest rate."""
        assert self.weight.grad is not None
        gradient = self.weight.grad.float()
        if self.is_matrix:
            self.first.mul_(rates.momentum).add_(gradient, alpha=1 - rates.momentum)
            ahead = gradient.lerp(self.first, rates.momentum)
            rows, columns = ahead.shape[-2:]
            update = orthogonal(ahead) * max(1.0, rows / columns) ** 0.5
            self.master.add_(update, alpha=-rates.matrices * fraction)
        else:
            beta1, beta2 = rates.betas
            self.first.lerp_(gradient, 1 - beta1)
            self.second.lerp_(gradient.square(), 1 - beta2)
            deviation = (self.second / (1 - beta2**step)).sqrt_().add_(rates.epsilon)
            self.master.addcdiv_(self.first, deviation, value=-rates.vectors * fraction / (1 - beta1**step))
        self.weight.data.copy_(self.master)


class Optimizer:
    """All parameters of a model, divided among ``n_processes``; this one is ``rank``."""

    def __init__(self, model: nn.Module, rates: Rates, *, rank: int = 0, n_processes: int = 1) -> None:
        self.rates, self.rank, self.n_processes = rates, rank, n_processes
        self.step_number = 0
        owners = _owners(model, n_processes)
        named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        ordered = [[(name, named[name]) for name in owned] for owned in owners]
        self.parts = [sum(weight.numel() for _, weight in part) for part in ordered]
        self.weights = torch.empty(sum(self.parts), dtype=torch.bfloat16)
        self.gradients = torch.zeros_like(self.weights)
        self.shares = [Share(name, weight) for name, weight in ordered[rank]]
        start = 0
        for _, weight in (entry for part in ordered for entry in part):
            view = slice(start, start + weight.numel())
            self.weights[view] = weight.detach().flatten()
            weight.data = self.weights[view].view(weight.shape)
            weight.grad = self.gradients[view].view(weight.shape)
            start = view.stop

    def step(self, fraction: float) -> float:
        """Bring all parameters forward at ``fraction`` of the highest rates and forget the gradients; their norm."""
        self.step_number += 1
        if self.n_processes > 1:
            distributed.all_reduce(self.gradients)
            self.gradients.div_(self.n_processes)
        norm = float(self.gradients.float().norm())
        if norm > self.rates.clip:
            self.gradients.mul_(self.rates.clip / norm)
        for share in self.shares:
            share.forward(self.rates, fraction, self.step_number)
        if self.n_processes > 1:
            for owner, part in enumerate(torch.split(self.weights, self.parts)):
                distributed.broadcast(part, owner)
        self.gradients.zero_()
        return norm

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Masters and moments of this process's part, by parameter."""
        return {
            share.name: {"master": share.master, "first": share.first, "second": share.second} for share in self.shares
        }

    def restore(self, state: dict[str, dict[str, Tensor]], step_number: int) -> None:
        """Go on from :meth:`state` of all processes."""
        self.step_number = step_number
        for share in self.shares:
            kept = state[share.name]
            share.master, share.first, share.second = kept["master"], kept["first"], kept["second"]
            share.weight.data.copy_(share.master)
        if self.n_processes > 1:
            for owner, part in enumerate(torch.split(self.weights, self.parts)):
                distributed.broadcast(part, owner)


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether Muon is for the parameter: matrices and stacks of them, but embedding, output and router."""
    return weight.ndim >= 2 and not name.startswith(("token_embd", "output")) and "gate_inp" not in name


def orthogonal(matrices: Tensor) -> Tensor:
    """The matrices (…, M, N) with their singular values brought near 1."""
    a, b, c = _NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    made: Tensor = x.mT if tall else x
    return made.float()


def _owners(model: nn.Module, n_processes: int) -> list[list[str]]:
    """The names that each process brings forward, so that all have about as much to do."""
    owners: list[list[str]] = [[] for _ in range(n_processes)]
    work = [0] * n_processes
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    for name, weight in sorted(named, key=lambda entry: -entry[1].numel()):
        least = work.index(min(work))
        owners[least].append(name)
        work[least] += weight.numel() * (10 if is_matrix(name, weight) else 1)
    return owners
