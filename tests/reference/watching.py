"""An observer that keeps everything."""

from __future__ import annotations

from torch import Tensor


class Watcher:
    def __init__(self) -> None:
        self.hidden: dict[int, Tensor] = {}
        self.experts: dict[int, Tensor] = {}
        self.weights: dict[int, Tensor] = {}

    def layer(self, index: int, hidden: Tensor) -> None:
        self.hidden[index] = hidden

    def routing(self, index: int, experts: Tensor, weights: Tensor) -> None:
        self.experts[index] = experts
        self.weights[index] = weights
