"""Training in several processes on one machine."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import distributed
from torch.multiprocessing.spawn import start_processes

from ktllama.reference.tiny_r1.shape import shape
from ktllama.reference.tiny_r1.training import Schedule, Trainer, train


def run(folder: Path, schedule: Schedule, *, n_processes: int, resume: bool = False, afresh: bool = False) -> None:
    """Train with the tokenizer in ``folder``, where every process leaves its state.

    ``resume`` goes on from the states there; with ``afresh`` the schedule begins anew.
    """
    meeting = folder / "meeting"
    meeting.unlink(missing_ok=True)
    arguments = (folder, schedule, n_processes, resume, afresh)
    start_processes(_work, arguments, nprocs=n_processes)  # type: ignore[no-untyped-call]


def _work(rank: int, folder: Path, schedule: Schedule, n_processes: int, resume: bool, afresh: bool) -> None:
    torch.set_num_threads(1)
    meeting = (folder / "meeting").absolute().as_uri()
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=n_processes)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    trainer = Trainer(shape(tokenizer.get_vocab_size()), tokenizer, schedule, rank=rank, n_processes=n_processes)
    if resume:
        trainer.restore(folder, from_step=0 if afresh else None)
        distributed.barrier()
    train(trainer, folder, _say)
    distributed.destroy_process_group()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
