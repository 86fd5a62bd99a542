"""One pass, chunks, a token at a time, packed texts: the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ktllama import reference
from ktllama.reference import attention
from ktllama.reference.config import Config
from ktllama.reference.deepseek import NextTokenBlock
from ktllama.reference.names import kept_in_float32
from tests.reference import files
from tests.reference.files import deepseek_config, dense_config, random_module, random_tokens, yarn
from tests.reference.watching import Watcher

CONFIGS: dict[str, Config] = {
    "deepseek": deepseek_config(rope=yarn()),
    "without q_lora": deepseek_config(q_lora_rank=None, gating="softmax", selection_bias=False),
    "llama": dense_config(rope_factors=True),
    "qwen2": dense_config("qwen2"),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("chunks", [[1] * 40, [7, 1, 20, 12], [39, 1]])
def test_chunks_and_single_tokens_give_the_logits_of_one_pass(name: str, chunks: list[int]) -> None:
    module = random_module(CONFIGS[name]).double()
    tokens = torch.tensor([random_tokens(40), random_tokens(40, seed=1)])
    cache = module.new_cache()
    with torch.no_grad():
        whole = module(tokens)
        parts = [module(chunk, cache=cache) for chunk in torch.split(tokens, chunks, 1)]
    assert cache.n_tokens == 40
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("resident", [False, True])
def test_a_file_gives_the_same_in_chunks(resident: bool, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "model.gguf", deepseek_config(rope=yarn()))
    model = reference.load(path, torch.float64, resident=resident)
    tokens = torch.tensor([random_tokens(30)])
    cache = model.new_cache()
    parts = [model(chunk, cache=cache) for chunk in torch.split(tokens, [20, 1, 9], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_texts_do_not_see_each_other(name: str) -> None:
    module = random_module(CONFIGS[name]).double()
    first, second = torch.tensor([random_tokens(12)]), torch.tensor([random_tokens(20, seed=1)])
    packed = torch.cat((first, second), 1)
    segments = torch.tensor([[0] * 12 + [1] * 20])
    positions = torch.cat((torch.arange(12), torch.arange(20)))
    with torch.no_grad():
        together = module(packed, segments=segments, positions=positions)
        alone = torch.cat((module(first), module(second)), 1)
        unpacked = module(packed)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert (unpacked - alone)[:, 12:].abs().max() > 0.1


def test_segments_need_an_empty_cache() -> None:
    module = random_module(deepseek_config())
    tokens, cache = torch.tensor([random_tokens(4)]), module.new_cache()
    module(tokens, cache=cache)
    with pytest.raises(ValueError, match="segments need an empty cache"):
        module(tokens, cache=cache, segments=torch.zeros(1, 4))


def test_long_texts_are_attended_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    module = random_module(deepseek_config()).double()
    tokens = torch.tensor([random_tokens(50)])
    with torch.no_grad():
        whole = module(tokens)
        monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 16)
        torch.testing.assert_close(module(tokens), whole, rtol=0, atol=1e-12)


def test_the_observer_sees_every_layer_and_every_choice() -> None:
    config = deepseek_config()
    watcher = Watcher()
    module = random_module(config)
    tokens = torch.tensor([random_tokens(5), random_tokens(5, seed=1)])
    with torch.no_grad():
        logits = module(tokens, observe=watcher)
    assert {index: tuple(hidden.shape) for index, hidden in watcher.hidden.items()} == dict.fromkeys(
        range(3), (2, 5, 64)
    )
    assert {index: tuple(experts.shape) for index, experts in watcher.experts.items()} == {1: (10, 3), 2: (10, 3)}
    torch.testing.assert_close(watcher.weights[1].sum(-1), torch.full((10,), 2.5))
    torch.testing.assert_close(module.logits(module.normed(watcher.hidden[2])), logits)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_reach_every_weight_and_loss_falls(name: str) -> None:
    module = random_module(CONFIGS[name])
    tokens = torch.tensor([random_tokens(64)])
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(module(tokens)[0, :-1], tokens[0, 1:])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        missing = {name for name, p in module.named_parameters() if p.grad is None}
        optimizer.step()
        losses.append(loss.item())
    assert missing == {name for name, p in module.named_parameters() if name.endswith("exp_probs_b.bias")} | (
        {"rope_freqs.weight"} if name == "llama" else set()
    )
    assert losses[2] < losses[1] < losses[0]


def test_bfloat16_weights_with_float32_router_and_norms_train() -> None:
    module = random_module(deepseek_config())
    tokens = torch.tensor([random_tokens(64)])
    with torch.no_grad():
        exact = module(tokens)
    for name, parameter in module.named_parameters():
        if not kept_in_float32(name):
            parameter.data = parameter.data.bfloat16()
    logits = module(tokens)
    logits.float().square().mean().backward()
    assert logits.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters() if p.requires_grad)
    # rounding flips a few experts; most positions stay
    assert (logits - exact).float().abs().mean(-1).median() < 0.05


def test_the_multi_token_block_is_one_more_layer() -> None:
    """eh_proj[norm(embedding of the next token); norm(hidden)], a layer, the norm, the output."""
    config: Config = deepseek_config(n_mtp=1)
    module = random_module(config).double()
    assert isinstance(module, reference.DeepSeek)
    tokens = torch.tensor([random_tokens(21)])
    block = module.blk[3]
    assert isinstance(block, NextTokenBlock)
    with torch.no_grad():
        hidden = module.hidden(tokens[:, :-1])
        found = module.next_but_one(hidden, tokens[:, 1:])

        embedded = module.token_embd.weight[tokens[:, 1:]]
        norms = [_norm(embedded) * block.nextn.enorm.weight, _norm(hidden) * block.nextn.hnorm.weight]
        x = torch.cat(norms, -1) @ block.nextn.eh_proj.weight.T
        alone = reference.DeepSeek(deepseek_config(n_layers=1, n_dense=0)).double()
        alone.token_embd.weight.data = x[0]  # row t is what the layer begins with at position t
        alone.blk[0].load_state_dict({n: p for n, p in block.state_dict().items() if not n.startswith("nextn.")})
        alone.output_norm, alone.output = module.output_norm, module.output
        expected = alone(torch.arange(20)[None])
        main = module.logits(hidden)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert (found - main).abs().max() > 0.5


def _norm(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
