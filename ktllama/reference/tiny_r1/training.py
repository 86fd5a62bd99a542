"""The training loop: processes of one thread each, which share every step's gradients.

Threads of one process wait for each other at every operation; processes meet once a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor, distributed
from torch.nn import functional

from ktllama.reference.config import DeepSeekConfig
from ktllama.reference.deepseek import DeepSeek, initialise
from ktllama.reference.experts import MixtureOfExperts
from ktllama.reference.tiny_r1.mix import TASKS, Sample, sample
from ktllama.reference.tiny_r1.optimizer import Optimizer, Rates
from ktllama.reference.tiny_r1.packing import Batch, Encoded, batch, encode, pack, token_id
from ktllama.reference.tiny_r1.problem import draw
from ktllama.reference.tiny_r1.template import THINK_END, opened, reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast to learn.

    The rate rises for ``warm_up`` steps, stays until step ``hold``, and falls to nothing by 1 − √, fast at first: what
    is learned by then is there, but every answer still goes wrong somewhere. Problems grow harder for ``easing`` steps,
    and are harder still from step ``hardening`` on. A batch is ``n_rows`` rows of ``length`` tokens a process.
    ``n_checked`` problems of each task and process are checked now and then.
    """

    n_steps: int = 2500
    n_rows: int = 14
    length: int = 384
    warm_up: int = 66
    hold: int = 600
    easing: int = 660
    hardening: int = 1650
    bias_step: float = 0.003
    seed: int = 1
    say_every: int = 25
    check_every: int = 150
    n_checked: int = 20
    rates: Rates = field(default_factory=Rates)

    def fraction(self, step: int) -> float:
        """The share of the highest rate at ``step``."""
        if step < self.warm_up:
            return (step + 1) / (self.warm_up + 1)
        if step < self.hold:
            return 1.0
        return 1 - math.sqrt(min(1.0, (step - self.hold) / max(1, self.n_steps - self.hold)))

    def ease(self, step: int) -> float:
        """How much easier problems still are at ``step``, from 1 to 0; −1 where they are harder."""
        return -1.0 if step >= self.hardening else max(0.0, 1 - step / self.easing)


class ExpertLoad:
    """Counts the tokens that every expert gets, layer by layer; an observer of the model."""

    def __init__(self, config: DeepSeekConfig) -> None:
        self.counts = torch.zeros(config.n_layers, config.moe.n_experts)

    def layer(self, index: int, hidden: Tensor) -> None:
        """Nothing to count."""

    def routing(self, index: int, experts: Tensor, weights: Tensor) -> None:  # noqa: ARG002
        """Count what layer ``index`` chose."""
        self.counts[index] += experts.flatten().bincount(minlength=self.counts.shape[1])


class Trainer:
    """A model on its way, in one of ``n_processes`` processes."""

    def __init__(
        self, config: DeepSeekConfig, tokenizer: Tokenizer, schedule: Schedule, *, rank: int = 0, n_processes: int = 1
    ) -> None:
        self.tokenizer, self.schedule = tokenizer, schedule
        self.rank, self.n_processes = rank, n_processes
        self.model = DeepSeek(config)
        initialise(self.model, schedule.seed)
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if "attn.output" in name or "ffn.down" in name:
                    weight.zero_()  # every layer begins as nothing added
        self.optimizer = Optimizer(self.model, schedule.rates, rank=rank, n_processes=n_processes)
        self.step_number = 0
        self.n_tokens = 0
        self.seconds = 0.0

    def step(self) -> float:
        """Learn from one batch; its loss."""
        began = time.monotonic()
        schedule, fraction = self.schedule, self.schedule.fraction(self.step_number)
        load = ExpertLoad(self.model.config)
        made = self.batch()
        loss = self.loss(made, load)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step(fraction)
        if self.n_processes > 1:
            distributed.all_reduce(load.counts)
        self.balance(load.counts, schedule.bias_step * min(1.0, 2 * fraction))
        self.step_number += 1
        self.n_tokens += made.tokens.numel() * self.n_processes
        self.seconds += time.monotonic() - began
        return loss.item()

    def batch(self) -> Batch:
        """The conversations of this step and process; they depend on nothing but the seed."""
        random = Random(f"{self.schedule.seed} {self.step_number} {self.rank}")
        ease = self.schedule.ease(self.step_number)

        def one() -> Encoded:
            return encode(self.tokenizer, sample(random, ease))

        return pack(one, self.schedule.n_rows, self.schedule.length)

    def loss(self, made: Batch, load: ExpertLoad | None = None) -> Tensor:
        """The mean cross-entropy of the tokens to be said."""
        hidden = self.model.hidden(made.tokens, positions=made.positions, segments=made.segments, observe=load)
        said = made.learned[:, 1:]
        logits = self.model.logits(hidden[:, :-1][said]).float()
        return functional.cross_entropy(logits, made.tokens[:, 1:][said])

    def balance(self, counts: Tensor, step: float) -> None:
        """Make experts with fewer tokens than the mean a little more eligible, and those with more a little less."""
        for index, block in enumerate(self.model.blk):
            ffn = block.ffn
            if isinstance(ffn, MixtureOfExperts) and ffn.exp_probs_b is not None:
                ffn.exp_probs_b.bias.data += step * (counts[index].mean() - counts[index]).sign()

    @torch.no_grad()
    def accuracy(self, n_each: int, seed: int = 0) -> dict[str, float]:
        """The share of held-out problems of each task whose every token is the likeliest, as greedy decoding needs."""
        shares = {}
        for task, (maker, _) in TASKS.items():
            random = Random(f"check {seed} {task} {self.rank}")
            problems = [draw(maker, random, 0.0, held_out=True) for _ in range(n_each)]
            samples = [Sample(given=opened(p.question), said=reply(p.thought, p.answer)) for p in problems]
            right = torch.tensor(float(sum(self.certain(encode(self.tokenizer, one), task) for one in samples)))
            if self.n_processes > 1:
                distributed.all_reduce(right)
            shares[task] = right.item() / (n_each * self.n_processes)
        return shares

    def certain(self, one: Encoded, task: str) -> bool:
        """Whether every token to be said is the likeliest; of chat only the answer, since its thinking is free."""
        made = batch([[one]], len(one.tokens))
        best = self.model(made.tokens, positions=made.positions)[0, :-1].argmax(-1)
        begin = one.n_given
        if task == "chat":
            begin = one.tokens.index(token_id(self.tokenizer, THINK_END), begin)
        wanted = made.tokens[0, begin:]
        return bool((best[begin - 1 :] == wanted).all())

    def save(self, folder: Path) -> None:
        """This process's part of the state, to go on from or to export."""
        biases = {name: weight for name, weight in self.model.named_parameters() if not weight.requires_grad}
        state = {
            "step": self.step_number,
            "tokens": self.n_tokens,
            "seconds": self.seconds,
            "biases": biases,
            "shares": self.optimizer.state(),
        }
        part = folder / f"state-{self.rank}.pt"
        torch.save(state, part.with_suffix(".new"))
        part.with_suffix(".new").rename(part)

    def restore(self, folder: Path, *, from_step: int | None = None) -> None:
        """Go on from what all processes saved; ``from_step`` begins the schedule anew there."""
        parts = [torch.load(path, weights_only=True) for path in sorted(folder.glob("state-*.pt"))]
        shares = {name: kept for part in parts for name, kept in part["shares"].items()}
        self.n_tokens, self.seconds = parts[0]["tokens"], parts[0]["seconds"]
        self.step_number = parts[0]["step"] if from_step is None else from_step
        self.optimizer.restore(shares, parts[0]["step"])
        for name, bias in parts[0]["biases"].items():
            self.model.get_parameter(name).data.copy_(bias)


def train(trainer: Trainer, folder: Path, say: Callable[[str], None]) -> None:
    """Run the trainer's schedule to its end, saying how it goes and saving now and then."""
    schedule = trainer.schedule
    losses: list[float] = []
    while trainer.step_number < schedule.n_steps:
        losses.append(trainer.step())
        step = trainer.step_number
        if step % schedule.say_every == 0 and trainer.rank == 0:
            loss = sum(losses[-schedule.say_every :]) / len(losses[-schedule.say_every :])
            say(f"step {step} of {schedule.n_steps}: loss {loss:.4f}, {trainer.seconds / 60:.1f} minutes")
        if step % schedule.check_every == 0 or step == schedule.n_steps:
            shares = trainer.accuracy(schedule.n_checked, step)
            if trainer.rank == 0:
                say("  " + "  ".join(f"{task} {100 * share:.0f}" for task, share in shares.items()))
            trainer.save(folder)
