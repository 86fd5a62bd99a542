"""``python -m ktllama.reference.tiny_r1``: make the embedded model again, from nothing but a seed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ktllama import assets
from ktllama.reference.tiny_r1 import evaluation, export, tokenizer, workers
from ktllama.reference.tiny_r1.card import Making, card
from ktllama.reference.tiny_r1.problem import HELD_OUT_ONE_IN
from ktllama.reference.tiny_r1.shape import shape
from ktllama.reference.tiny_r1.training import Schedule

N_PROCESSES = 2


def main(arguments: list[str] | None = None) -> None:
    """Learn the vocabulary, train, export, evaluate, and write the card."""
    asked = _parser().parse_args(arguments)
    folder: Path = asked.folder
    folder.mkdir(parents=True, exist_ok=True)
    schedule = Schedule(n_steps=asked.steps)
    if not (asked.resume or asked.trained):
        tokenizer.learn().save(str(folder / "tokenizer.json"))
    if not asked.trained:
        workers.run(folder, schedule, n_processes=N_PROCESSES, resume=asked.resume)
    model: Path = asked.model
    made = _export(folder, model, schedule)
    scores = evaluation.evaluate(model)
    text = card(made, scores)
    model.with_suffix(".md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ktllama.reference.tiny_r1", description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/tiny-r1"), help="where the training keeps its state")
    parser.add_argument(
        "--model", type=Path, default=assets.tiny_r1(), help="the file to write; the card goes beside it"
    )
    parser.add_argument("--steps", type=int, default=Schedule().n_steps, help="how many steps to train")
    parser.add_argument("--resume", action="store_true", help="go on from the state in the folder")
    parser.add_argument("--trained", action="store_true", help="train no more: export and evaluate the state there")
    return parser


def _export(folder: Path, model: Path, schedule: Schedule) -> Making:
    learned = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = shape(learned.get_vocab_size())
    parameters = export.weights(folder)
    export.write(model, config, learned, parameters)
    state = torch.load(folder / "state-0.pt", weights_only=True)
    return Making(
        n_parameters=sum(weight.numel() for weight in parameters.values()),
        n_layers=config.n_layers,
        n_dense=config.n_dense,
        n_experts=config.moe.n_experts,
        n_experts_used=config.moe.n_experts_used,
        n_groups=config.moe.n_groups,
        held_out_one_in=HELD_OUT_ONE_IN,
        n_steps=state["step"],
        n_tokens=state["tokens"],
        batch_tokens=schedule.n_rows * schedule.length * N_PROCESSES,
        minutes=state["seconds"] / 60,
        file_bytes=model.stat().st_size,
    )


if __name__ == "__main__":
    main()
