"""Small models made of names and shapes only, for tests that need no weights."""

from __future__ import annotations

from collections.abc import Iterable

from ktllama.model.model_file import MetadataValue, ModelFile, Tensor

MIB = 1 << 20

_ATTENTION = ("attn_norm", "attn_q_a", "attn_q_a_norm", "attn_q_b", "attn_kv_a_mqa", "attn_kv_a_norm", "attn_output")
_SPLIT_KV_B = ("attn_k_b", "attn_v_b")
_EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
_SHARED = ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
_DENSE = ("ffn_gate", "ffn_up", "ffn_down")


def model(
    names: Iterable[str], *, n_layers: int, architecture: str = "deepseek2", **hyperparameters: MetadataValue
) -> ModelFile:
    """A model of tensors of one MiB each."""
    metadata: dict[str, MetadataValue] = {
        f"{architecture}.block_count": n_layers,
        f"{architecture}.attention.head_count": 4,
        f"{architecture}.attention.key_length": 96,
        f"{architecture}.attention.value_length": 64,
        f"{architecture}.attention.kv_lora_rank": 64,
        f"{architecture}.attention.head_count_kv": 1,
        f"{architecture}.attention.key_length_mla": 64,
        f"{architecture}.attention.value_length_mla": 64,
        **{f"{architecture}.{key}": value for key, value in hyperparameters.items()},
    }
    return ModelFile(
        name="tiny",
        architecture=architecture,
        metadata=metadata,
        tensors=tuple(Tensor(name=name, shape=(512, 512), type="F32", n_bytes=MIB) for name in names),
    )


def deepseek(
    n_layers: int = 4,
    *,
    n_dense: int = 1,
    n_mtp: int = 0,
    fused: bool = False,
    legacy_kv_b: bool = False,
    tied: bool = False,
    n_experts: int = 4,
    extra: Iterable[str] = (),
) -> ModelFile:
    """A V3-shaped model with ``n_layers`` blocks, the last ``n_mtp`` of them MTP blocks."""
    names = ["token_embd.weight"]
    for layer in range(n_layers):
        stems = [*_ATTENTION, *(("attn_kv_b",) if legacy_kv_b else _SPLIT_KV_B), "ffn_norm"]
        if layer < n_dense:
            stems += _DENSE
        else:
            stems += ["ffn_gate_inp", *(("ffn_gate_up_exps", "ffn_down_exps") if fused else _EXPERTS), *_SHARED]
        if layer >= n_layers - n_mtp:
            stems += ["nextn.eh_proj", "nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm"]
        names += [f"blk.{layer}.{stem}.weight" for stem in stems]
        names += [] if layer < n_dense else [f"blk.{layer}.exp_probs_b.bias"]
    names += ["output_norm.weight", *([] if tied else ["output.weight"]), *extra]
    return model(names, n_layers=n_layers, nextn_predict_layers=n_mtp, expert_count=n_experts, expert_gating_func=2)


def rule(
    name: str | None = None,
    device: str = "cpu",
    *,
    cls: str | None = None,
    replace: str = "default",
    recursive: bool = True,
    **kwargs: str,
) -> str:
    """One rule as YAML text."""
    match = ", ".join([*([f"name: '{name}'"] if name is not None else []), *([f"class: {cls}"] if cls else [])])
    said = {"generate_device": device, "prefill_device": device, **kwargs}
    written = ", ".join(f'{key}: "{value}"' for key, value in said.items())
    end = "" if recursive else "  recursive: false\n"
    return f"- match: {{{match}}}\n  replace: {{class: {replace}, kwargs: {{{written}}}}}\n{end}"
