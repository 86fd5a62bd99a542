"""``ktllama translate`` and ``ktllama lint`` as a user sees them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ktllama.model import presets, sparse
from tests.cli.runner import ktllama
from tests.models import rule

RULES = Path(__file__).parents[2] / "rules"
ONE_CARD = str(RULES / "deepseek-r1" / "1x24gb.yaml")
GPU_FIRST = str(RULES / "deepseek-v2-lite" / "gpu-first-10.yaml")
EXPERTS = r"^blk\.([4-9]|[1-5][0-9]|60)\.ffn_(gate|up|down|gate_up)_exps\.weight$"


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    return tmp_path / "rules.yaml"


def test_text_shows_settings_devices_rules_and_findings() -> None:
    ran = ktllama("translate", ONE_CARD)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines()[:14] == [
        "DeepSeek R1 Q4_K_M  deepseek2, 61 layers, 1086 tensors, 377 GiB",
        "",
        "Settings",
        "  n_gpu_layers = 62",
        "  devices = CUDA0",
        "  tensor_split = 62",
        "  op_offload = True",
        "  no_host = False",
        f"  override  {EXPERTS}  →  CPU",
        "",
        "Devices",
        "  device  llama.cpp   weights  KV at 32k  KV cache of layers",
        "  cuda:0  CUDA0      16.1 GiB   2.14 GiB  0-60              ",
        "  cpu     CPU         361 GiB          -  -                 ",
    ]
    assert "Findings" in ran.out


def test_argv_is_one_shell_safe_line(tmp_path: Path) -> None:
    model = tmp_path / "it's a model.gguf"
    sparse.write(presets.load("deepseek-r1"), model)
    ran = ktllama("translate", ONE_CARD, "--format", "argv", "--model", str(model))
    assert ran.status == 0
    assert ran.out.count("\n") == 1
    assert shlex.split(ran.out) == [
        "llama-server",
        "--model",
        str(model),
        "--n-gpu-layers",
        "62",
        "--device",
        "CUDA0",
        "--override-tensor",
        f"{EXPERTS}=CPU",
        "--fit",
        "off",
    ]


def test_argv_of_a_cpu_only_plan_turns_every_device_off() -> None:
    ran = ktllama("translate", str(RULES / "deepseek-r1" / "cpu.yaml"), "--format", "argv")
    assert ran.out == "llama-server --model DeepSeek-R1-Q4_K_M.gguf --n-gpu-layers 0 --device none --fit off\n"


def test_ini_is_a_preset_of_llama_server() -> None:
    ran = ktllama("translate", str(RULES / "deepseek-r1" / "cpu-first-30.yaml"), "--format", "ini")
    assert ran.out.splitlines() == [
        "version = 1",
        "",
        "[DeepSeek-R1-Q4_K_M]",
        "model = DeepSeek-R1-Q4_K_M.gguf",
        "n-gpu-layers = 32",
        "device = CUDA0",
        "op-offload = false",
        "no-host = true",
        "fit = off",
    ]


def test_python_is_code_that_builds_the_same_settings() -> None:
    from ktllama import LlamaSettings
    from ktllama.translation import translate

    ran = ktllama("translate", GPU_FIRST, "--format", "python")
    code = ran.out.split("with ktllama.applied")[0].replace("import llama_cpp\n", "")
    names: dict[str, object] = {}
    exec(code, names)
    assert names["settings"] == translate(GPU_FIRST).settings
    assert isinstance(names["settings"], LlamaSettings)


def test_json_has_every_tensor() -> None:
    ran = ktllama("translate", ONE_CARD, "--format", "json")
    document = json.loads(ran.out)
    assert len(document["tensors"]) == 1086
    assert document["tensors"]["blk.7.ffn_up_exps.weight"] == {
        "device": "cpu",
        "module": "model.layers.7.mlp.experts",
        "rule": 1,
        "bytes": 2113929216,
    }
    assert document["kv"] == {str(layer): "cuda:0" for layer in range(61)}
    assert document["model"]["n_bytes"] == sum(tensor["bytes"] for tensor in document["tensors"].values())


@pytest.mark.parametrize("form", ["text", "argv", "ini", "python"])
def test_rules_with_errors_give_no_settings(form: str, rules: Path) -> None:
    rules.write_text(rule("lm_head", "gpu") + rule(cls="ktransformers.models.modeling_deepseek_v3.MoEGate"))
    ran = ktllama("translate", str(rules), "--format", form)
    assert ran.status == 1
    assert "bad-device" in ran.out + ran.err
    assert "n_gpu_layers" not in ran.out
    assert "n-gpu-layers" not in ran.out


def test_json_of_rules_with_errors_has_no_settings(rules: Path) -> None:
    rules.write_text("- match: [\n")
    document = json.loads(ktllama("translate", str(rules), "--format", "json").out)
    assert (document["model"], document["settings"]) == (None, None)
    assert document["diagnostics"][0]["code"] == "yaml-syntax"


def test_strict_makes_warnings_fail(rules: Path) -> None:
    rules.write_text(rule("", "cpu", cls=None) + rule("lm_head", "cuda:0"))
    plain, strict = (
        ktllama("translate", str(rules), "--preset", "deepseek-r1", "--format", "argv", *more)
        for more in ([], ["--strict"])
    )
    assert (plain.status, strict.status) == (0, 1)
    assert strict.out == ""
    assert "rule-shadowed" in strict.err


def test_without_a_model_the_rules_classes_tell_it() -> None:
    ran = ktllama("lint", GPU_FIRST)
    assert ran.out == (
        "note: sizes are those of deepseek-v2-lite in Q4_K_M; --model FILE.gguf takes them from a file, --preset NAME "
        "assumes another model [model-assumed]\n0 errors, 0 warnings, 1 note\n"
    )


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["translate", "no.yaml"], 2, "ktllama: no.yaml: no such file\n"),
        (["translate", str(RULES)], 2, f"ktllama: {RULES}: a directory, not a rule file\n"),
        (
            ["translate", ONE_CARD, "--model", "no.gguf"],
            2,
            "ktllama: no.gguf: no such file\n",
        ),
        (
            ["translate", ONE_CARD, "--preset", "r2"],
            2,
            f"ktllama: no preset is called 'r2'; known presets: {', '.join(presets.PRESETS)}\n",
        ),
        (
            ["translate", ONE_CARD, "--device-map", "gpu=CUDA0"],
            2,
            "ktllama: --device-map 'gpu=CUDA0': 'gpu' is no device of a rule; expected cpu, cuda:N, xpu:N or npu:N\n",
        ),
        (
            ["translate", ONE_CARD, "--device-map", "cuda:0"],
            2,
            "ktllama: --device-map 'cuda:0': expected RULE_DEVICE=LLAMA_DEVICE, for example cuda:0=Vulkan1\n",
        ),
        (
            ["translate", ONE_CARD, "--device-map", "cuda:0=CPU"],
            2,
            "ktllama: --device-map 'cuda:0=CPU': the CPU is no GPU; write cpu in the rules instead\n",
        ),
        (
            ["translate", ONE_CARD, "--preset", "deepseek"],
            2,
            "ktllama: no preset is called 'deepseek'; did you mean deepseek-r1 or deepseek-v3 or deepseek-v2 or "
            "deepseek-v2-lite?\n",
        ),
        (
            ["translate", "deepseek-v2-lite"],
            2,
            "ktllama: deepseek-v2-lite: no such file; of that family, ktllama has deepseek-v2-lite/1x8gb, "
            "deepseek-v2-lite/cpu, deepseek-v2-lite/gpu-first-10\n",
        ),
        (
            ["translate", ONE_CARD, "--default-device", "auto"],
            2,
            "ktllama: --default-device 'auto': no such device; expected cpu, cuda:N, xpu:N or npu:N\n",
        ),
        (
            ["lint", ONE_CARD, "--budget", "cuda:0=-1"],
            2,
            "ktllama: --budget 'cuda:0=-1': expected DEVICE=SIZE with a size above 0, for example cuda:0=24G\n",
        ),
    ],
)
def test_input_that_cannot_be_used(words: list[str], status: int, message: str) -> None:
    ran = ktllama(*words)
    assert (ran.status, ran.out, ran.err) == (status, "", message)


def test_rules_that_name_no_class_need_a_model(rules: Path) -> None:
    rules.write_text(rule("lm_head", "cpu"))
    ran = ktllama("translate", str(rules))
    assert ran.status == 2
    assert ran.err == (
        f"ktllama: {rules}: the rules name no class of a model that ktllama knows, so it cannot tell which model they "
        f"are for; give --model FILE.gguf or --preset NAME (known presets: {', '.join(presets.PRESETS)})\n"
    )


def test_lint_formats(rules: Path) -> None:
    rules.write_text(rule("layers.[4-10].", "cpu"))
    text, as_json, github = (ktllama("lint", str(rules), "--format", form) for form in ("text", "json", "github"))
    assert {text.status, as_json.status, github.status} == {1}
    assert text.out.startswith(f"{rules}:1:17: error: ")
    assert json.loads(as_json.out)[0]["code"] == "bad-regex"
    assert github.out.startswith(f"::error file={rules},line=1,col=17,title=bad-regex::")


def test_a_mistyped_command_is_met_with_a_guess() -> None:
    ran = ktllama("tranlsate")
    assert ran.status == 2
    assert "No such command 'tranlsate'. Did you mean 'translate'?" in ran.err


def test_translate_imports_neither_llama_cpp_nor_other_heavy_packages() -> None:
    code = (
        "import sys\nsys.modules['llama_cpp'] = None\nsys.argv = ['ktllama', 'translate', sys.argv[1], '--format', 'argv']\n"
        "from ktllama.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "heavy = {'numpy', 'torch', 'gguf', 'pydantic', 'rich'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, ONE_CARD], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("llama-server ")


def test_rpc_devices_are_named_as_llama_server_names_them() -> None:
    device_map = ["--device-map", "cuda:0=CUDA0", "--device-map", "cuda:1=RPC0[10.0.0.2:50052]"]
    ran = ktllama("translate", "deepseek-r1/2x24gb", *device_map, "--format", "argv")
    words = shlex.split(ran.out)
    assert words[words.index("--rpc") + 1] == "10.0.0.2:50052"
    assert words[words.index("--device") + 1] == "CUDA0,RPC0"


def test_an_rpc_device_without_its_endpoint_cannot_be_named() -> None:
    ran = ktllama("translate", ONE_CARD, "--device-map", "cuda:0=RPC0", "--format", "argv")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.splitlines()[-1] == (
        "ktllama: RPC0: llama-server names the memory of an RPC device by its endpoint; map the device to "
        "RPC0[HOST:PORT]"
    )


def test_python_keeps_the_load_mode() -> None:
    ran = ktllama("translate", ONE_CARD, "--format", "python", "--load-mode", "none")
    assert '    load_mode="none",' in ran.out.splitlines()


def test_argv_says_on_standard_error_what_was_assumed() -> None:
    ran = ktllama("translate", ONE_CARD, "--format", "argv")
    assert [line.rsplit(" ", 1)[1] for line in ran.err.splitlines()] == ["[unpinned]", "[model-assumed]"]


def test_a_mistyped_class_of_a_known_family_is_named_and_not_taken_for_another_model(rules: Path) -> None:
    rules.write_text(rule(cls="ktransformers.models.modeling_deepseek_v3.DeepseekV3Attn") + rule("", "cpu"))
    ran = ktllama("lint", str(rules))
    assert "no class is called DeepseekV3Attn; did you mean DeepseekV3Attention? [rule-matches-nothing]" in ran.out
    assert "rules-for-another-model" not in ran.out
