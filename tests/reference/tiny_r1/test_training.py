"""A few steps of training: the loss falls, and what is exported is what was trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from ktllama import reference
from ktllama.reference.deepseek import DeepSeek
from ktllama.reference.tiny_r1 import export, tokenizer, workers
from ktllama.reference.tiny_r1.mix import Sample, sample
from ktllama.reference.tiny_r1.optimizer import Optimizer, Rates, orthogonal
from ktllama.reference.tiny_r1.packing import Batch, Encoded, batch, encode, pack
from ktllama.reference.tiny_r1.shape import shape
from ktllama.reference.tiny_r1.training import Schedule, Trainer, train
from tests.reference import llama

#: Two layers, so that it takes seconds.
SMALL = Schedule(n_steps=30, n_rows=2, length=256, check_every=1000, warm_up=3)


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    return tokenizer.learn()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def trained(learned: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, list[float], Path]:
    folder = tmp_path_factory.mktemp("training")
    trainer = Trainer(shape(learned.get_vocab_size(), n_layers=2, width=64), learned, SMALL)
    losses = [trainer.step() for _ in range(SMALL.n_steps)]
    trainer.save(folder)
    return trainer, losses, folder


def test_the_loss_falls(trained: tuple[Trainer, list[float], Path]) -> None:
    _, losses, _ = trained
    assert losses[0] == pytest.approx(np.log(302), rel=0.25)
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]


def test_training_is_the_same_every_time(trained: tuple[Trainer, list[float], Path], learned: Tokenizer) -> None:
    again = Trainer(shape(learned.get_vocab_size(), n_layers=2, width=64), learned, SMALL)
    assert [again.step() for _ in range(3)] == trained[1][:3]


def test_experts_are_kept_busy(trained: tuple[Trainer, list[float], Path]) -> None:
    biases = [weight for name, weight in trained[0].model.named_parameters() if name.endswith("exp_probs_b.bias")]
    assert biases
    assert all(bias.dtype == torch.float32 and bias.abs().max() > 0 for bias in biases)


def test_what_is_exported_computes_the_same_in_llama_cpp(
    trained: tuple[Trainer, list[float], Path], learned: Tokenizer, tmp_path: Path
) -> None:
    trainer, _, folder = trained
    parameters = export.weights(folder)
    path = tmp_path / "model.gguf"
    float32 = gguf.GGMLQuantizationType.F32
    export.write(path, trainer.model.config, learned, parameters, quantization=float32)
    text = sample(Random(1), 0.0)
    tokens = learned.encode(text.given + text.said, add_special_tokens=False).ids
    read = reference.load(path)(torch.tensor([tokens]))[0]
    assert np.abs(llama.run(path, tokens).logits - read.numpy()).max() < 5e-5 * max(1.0, float(read.std()))
    model = DeepSeek(trainer.model.config)
    model.load_state_dict(parameters)
    with torch.no_grad():
        assert torch.allclose(model(torch.tensor([tokens]))[0], read, atol=1e-4)


def test_training_goes_on_where_it_was_left(
    trained: tuple[Trainer, list[float], Path], learned: Tokenizer, tmp_path: Path
) -> None:
    first = Trainer(shape(learned.get_vocab_size(), n_layers=2, width=64), learned, SMALL)
    for _ in range(3):
        first.step()
    first.save(tmp_path)
    expected = first.step()
    second = Trainer(shape(learned.get_vocab_size(), n_layers=2, width=64), learned, SMALL)
    second.restore(tmp_path)
    assert (second.step_number, second.n_tokens) == (3, 3 * 2 * 256)
    assert second.step() == expected


def test_two_processes_learn_one_model(learned: Tokenizer, tmp_path: Path) -> None:
    learned.save(str(tmp_path / "tokenizer.json"))
    schedule = Schedule(n_steps=2, n_rows=1, length=192, check_every=2, n_checked=1)
    workers.run(tmp_path, schedule, n_processes=2)
    parameters = export.weights(tmp_path)
    model = DeepSeek(shape(learned.get_vocab_size()))
    assert parameters.keys() == dict(model.named_parameters()).keys()


def test_a_run_says_how_it_goes(learned: Tokenizer, tmp_path: Path) -> None:
    schedule = Schedule(n_steps=1, n_rows=1, length=192, n_checked=1, say_every=1)
    lines: list[str] = []
    train(Trainer(shape(learned.get_vocab_size(), n_layers=2, width=64), learned, schedule), tmp_path, lines.append)
    assert lines[0].startswith("step 1 of 1: loss ")
    assert lines[1] == "  " + "  ".join(
        f"{task} 0"
        for task in (
            "addition", "subtraction", "multiplication", "comparison", "counting", "reversal", "sorting numbers",
            "sorting words", "chat",
        )
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["state-0.pt"]


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    schedule = Schedule(n_steps=100, warm_up=10, hold=50, easing=30, hardening=80)
    fractions = [schedule.fraction(step) for step in (0, 9, 10, 49, 50, 62.5, 98)]  # type: ignore[arg-type]
    assert fractions == pytest.approx([1 / 11, 10 / 11, 1, 1, 1, 0.5, 1 - 0.96**0.5])
    assert schedule.fraction(100) == 0
    assert [schedule.ease(step) for step in (0, 15, 60, 80)] == [1, 0.5, 0, -1]


def test_a_conversation_as_tokens(learned: Tokenizer) -> None:
    made = encode(
        learned, Sample(given="<｜User｜>a<｜Assistant｜>b<｜User｜>c<｜Assistant｜>", said="<think>\n", gap=10)
    )
    assert len(made.tokens) == 9
    assert made.n_given == 7
    assert made.positions == [0, 1, 2, 3, 14, 15, 16, 17, 18]


def test_conversations_are_packed_into_rows() -> None:
    ones = iter([5, 4, 3, 9, 1, *[9] * 100])

    def one() -> Encoded:
        n = next(ones)
        return Encoded(tokens=[n] * n, positions=list(range(n)), n_given=1)

    made = pack(one, n_rows=2, length=8)
    assert made.tokens.tolist() == [[5, 5, 5, 5, 5, 3, 3, 3], [4, 4, 4, 4, 1, 0, 0, 0]]
    assert made.segments.tolist() == [[1, 1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 2, 0, 0, 0]]
    assert made.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 0, 0, 0]]
    assert made.learned.int().tolist() == [[0, 1, 1, 1, 1, 0, 1, 1], [0, 1, 1, 1, 0, 0, 0, 0]]


def test_packed_conversations_do_not_see_each_other(
    trained: tuple[Trainer, list[float], Path], learned: Tokenizer
) -> None:
    random = Random(6)
    ones = [encode(learned, sample(random, 0.0)) for _ in range(3)]

    def logits(made: Batch) -> torch.Tensor:
        return model(made.tokens, positions=made.positions, segments=made.segments)  # type: ignore[no-any-return]

    model = DeepSeek(trained[0].model.config)
    model.load_state_dict(export.weights(trained[2]))
    with torch.no_grad():
        together = logits(batch([ones], sum(len(one.tokens) for one in ones)))[0]
        alone = torch.cat([logits(batch([[one]], len(one.tokens)))[0] for one in ones])
    assert torch.allclose(together, alone, atol=1e-4)


def test_muon_makes_singular_values_alike() -> None:
    made = orthogonal(torch.randn(2, 48, 16, generator=torch.Generator().manual_seed(1)))
    values = torch.linalg.svdvals(made)
    assert values.shape == (2, 16)
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.5


def test_every_parameter_is_brought_forward_by_one_process() -> None:
    names = []
    for rank in (0, 1):
        model = DeepSeek(shape(40, n_layers=2, width=64))
        for weight in model.parameters():
            weight.data.zero_()
        names.append({share.name for share in Optimizer(model, Rates(), rank=rank, n_processes=2).shares})
    assert not names[0] & names[1]
    assert names[0] | names[1] == {name for name, weight in model.named_parameters() if weight.requires_grad}
