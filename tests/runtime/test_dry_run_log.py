"""The log parser, on lines that llama-cpp-python 0.3.36 printed."""

from __future__ import annotations

from ktllama.runtime.dry_run_log import CacheSize, LoadLog, Override, parse
from ktllama.runtime.log_capture import DEBUG, ERROR, INFO, WARN, LogLine

MIB = 1024 * 1024

RECORDED = [
    (INFO, "llama_model_loader: loaded meta data with 36 key-value pairs and 91 tensors from m.gguf (version GGUF V3)"),
    (INFO, "llama_prepare_model_devices: using device RPC0 (127.0.0.1:43741) (unknown id) - 24105 MiB free"),
    (INFO, "llama_prepare_model_devices: using device CPU (AMD EPYC) (unknown id) - 24105 MiB free"),
    (INFO, "load_tensors: loading model tensors, this can take a while... (load_mode = none)"),
    (DEBUG, "load_tensors: layer   0 assigned to device RPC0, is_swa = 0"),
    (DEBUG, "load_tensors: layer   1 assigned to device CPU, is_swa = 1"),
    (DEBUG, "create_tensor: loading tensor token_embd.weight"),
    (DEBUG, "create_tensor: loading tensor output.weight"),
    (DEBUG, "create_tensor: loading tensor token_embd.weight"),
    (DEBUG, "create_tensor: loading tensor blk.0.ffn_up_exps.weight"),
    (DEBUG, "tensor blk.0.ffn_up_exps.weight (0 MiB q8_0) buffer type overridden to CPU_REPACK"),
    (DEBUG, "create_tensor: loading tensor blk.1.ffn_up_exps.weight"),
    (DEBUG, "tensor blk.1.ffn_up_exps.weight (2520 MiB q4_K) buffer type overridden to RPC0[127.0.0.1:43741]"),
    (DEBUG, "create_tensor: loading tensor blk.4.attn_norm.weight"),
    (WARN, "model has unused tensor blk.4.attn_norm.weight (size = 256 bytes) -- ignoring"),
    (
        DEBUG,
        "done_getting_tensors: tensor 'token_embd.weight' (f16) (and 6 others) cannot be used with preferred buffer "
        "type CPU_REPACK, using CPU instead",
    ),
    (INFO, "load_tensors: offloaded 6/6 layers to GPU"),
    (INFO, "load_tensors:   CPU_Mapped model buffer size =    43.00 MiB"),
    (INFO, "load_tensors: RPC0[127.0.0.1:43741] model buffer size =     1.50 MiB"),
    (INFO, "load_tensors: RPC0[127.0.0.1:43741] model buffer size =     0.25 MiB"),
    (INFO, "llama_context: flash_attn            = auto"),
    (INFO, "llama_context:        CPU  output buffer size =     0.19 MiB"),
    (DEBUG, "llama_kv_cache: layer   0: dev = RPC0"),
    (DEBUG, "llama_kv_cache: layer   1: dev = CPU"),
    (DEBUG, "llama_kv_cache: layer   4: filtered"),
    (INFO, "llama_kv_cache:        CPU KV buffer size =     3.75 MiB"),
    (INFO, "llama_kv_cache: RPC0[127.0.0.1:43741] KV buffer size =     1.88 MiB"),
    (
        INFO,
        "llama_kv_cache: size =   11.25 MiB (   512 cells,  30 layers,  1/1 seqs), K (f16):    5.62 MiB, "
        "V (f16):    5.63 MiB",
    ),
    (INFO, "resolve_fused_ops: Flash Attention enabled"),
    (INFO, "sched_reserve: RPC0[127.0.0.1:43741] compute buffer size =    97.12 MiB"),
    (INFO, "sched_reserve: RPC0[127.0.0.1:43741] compute buffer size =    97.12 MiB"),
    (INFO, "sched_reserve:        CPU compute buffer size =    12.89 MiB"),
    (
        INFO,
        "sched_reserve: graph (pp bs=512, tg bs=1): nodes = 937, splits = 7 / 11, input objects = 5, "
        "input tensors = 152",
    ),
    (INFO, "sched_reserve: reserve took 8.00 ms, sched copies = 4"),
    (ERROR, "something went wrong"),
]


def test_every_kind_of_line_is_read() -> None:
    assert parse(LogLine(*line) for line in RECORDED) == LoadLog(
        devices=("RPC0", "CPU"),
        layers={0: "RPC0", 1: "CPU"},
        kv={0: "RPC0", 1: "CPU"},
        asked=(
            "token_embd.weight",
            "output.weight",
            "token_embd.weight",
            "blk.0.ffn_up_exps.weight",
            "blk.1.ffn_up_exps.weight",
            "blk.4.attn_norm.weight",
        ),
        unused=("blk.4.attn_norm.weight",),
        overrides=(
            Override(tensor="blk.0.ffn_up_exps.weight", buffer_type="CPU_REPACK"),
            Override(tensor="blk.1.ffn_up_exps.weight", buffer_type="RPC0[127.0.0.1:43741]"),
        ),
        model_bytes={"CPU_Mapped": 43 * MIB, "RPC0[127.0.0.1:43741]": round(1.75 * MIB)},
        n_model_buffers={"CPU_Mapped": 1, "RPC0[127.0.0.1:43741]": 2},
        kv_bytes={"CPU": round(3.75 * MIB), "RPC0[127.0.0.1:43741]": round(1.88 * MIB)},
        caches=(
            CacheSize(
                n_cells=512, n_layers=30, n_seqs=1, n_streams=1, k_bytes=round(5.62 * MIB), v_bytes=round(5.63 * MIB)
            ),
        ),
        compute_bytes={"RPC0[127.0.0.1:43741]": round(97.12 * MIB), "CPU": round(12.89 * MIB)},
        graph_splits=(7, 11),
        graph_nodes=(937, 937),
        sched_copies=4,
        flash_attention=True,
        load_mode="none",
        warnings=("model has unused tensor blk.4.attn_norm.weight (size = 256 bytes) -- ignoring",),
        errors=("something went wrong",),
    )


def test_equal_graphs_are_printed_once() -> None:
    line = "sched_reserve: graph: nodes = 937, splits = 1, input objects = 5, input tensors = 152"
    found = parse([LogLine(INFO, line)])
    assert (found.graph_splits, found.graph_nodes) == ((1, 1), (937, 937))


def test_graphs_that_differ_have_both_numbers_of_nodes() -> None:
    line = (
        "sched_reserve: graph (pp bs=512, tg bs=1): nodes = 1200 / 1184, splits = 7 / 11, input objects = 5 / 5, "
        "input tensors = 152 / 152"
    )
    found = parse([LogLine(INFO, line)])
    assert (found.graph_splits, found.graph_nodes) == ((7, 11), (1200, 1184))


def test_flash_attention_that_was_asked_for_or_refused() -> None:
    assert parse([LogLine(INFO, "llama_context: flash_attn            = disabled")]).flash_attention is False
    assert parse([LogLine(INFO, "llama_context: flash_attn            = enabled")]).flash_attention is True
    assert parse([LogLine(WARN, "resolve_fused_ops: Flash Attention not supported, set to disabled")]) == LoadLog(
        flash_attention=False, warnings=("resolve_fused_ops: Flash Attention not supported, set to disabled",)
    )


def test_missing_tensor_data_is_told_from_other_errors() -> None:
    line = (
        "llama_model_load: error loading model: tensor 'output.weight' data is not within the file bounds, "
        "model is corrupted or incomplete"
    )
    assert parse([LogLine(ERROR, line)]).data_is_missing
    assert not parse([LogLine(ERROR, "llama_model_load: error loading model: missing tensor")]).data_is_missing


def test_recurrent_states_are_read_beside_the_cache_of_a_hybrid_model() -> None:
    log = parse(
        LogLine(level, text)
        for level, text in (
            (DEBUG, "llama_kv_cache: layer   0: filtered"),
            (DEBUG, "llama_kv_cache: layer   3: dev = CPU"),
            (DEBUG, "llama_memory_recurrent, layer   0: dev = RPC0"),
            (DEBUG, "llama_memory_recurrent: layer   3: skipped"),
            (INFO, "llama_memory_recurrent:        CPU RS buffer size =   150.75 MiB"),
            (
                INFO,
                "llama_memory_recurrent: size =  150.75 MiB (     2 cells,  48 layers,  2 seqs  0 rs_seq), "
                "R (f32):    6.75 MiB, S (f32):  144.00 MiB, P (f32):    0.00 MiB",
            ),
        )
    )
    assert log == LoadLog(kv={3: "CPU"}, recurrent={0: "RPC0"}, state_bytes=round(150.75 * MIB))
