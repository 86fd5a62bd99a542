"""Rules with ``auto`` say which command decides them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktllama import devices
from ktllama.ruleset import loader
from ktllama.translation import Options, analyse
from tests.models import deepseek, rule

OPEN = rule(r"\.experts$", "auto", recursive=False) + rule("embed", "cpu") + rule("", "auto")


def messages(options: Options | None = None, *, file: str = "my rules.yaml", **model: str) -> list[tuple[int, str]]:
    """Line and message of every error."""
    read = loader.loads(OPEN, file=file)
    done = analyse(read, None if model else deepseek(), options=options, **model)
    return [
        (found.position.line, found.message)
        for found in done.diagnostics
        if found.code == "auto-device" and found.severity == "error" and found.position is not None
    ]


def decided_by(command: str) -> str:
    return f"'auto' leaves the place to the planner: `{command}` decides it; or name a device"


def test_the_first_says_what_to_run_and_the_others_that_they_are_open_too() -> None:
    assert messages(preset="deepseek-r1") == [
        (2, decided_by("ktllama plan --rules 'my rules.yaml' --preset deepseek-r1 --vram detected --ram detected "
                       "-o planned.yaml")),
        (7, "'auto' leaves this place to the planner too"),
    ]  # fmt: skip


def test_budgets_devices_and_the_model_are_those_that_were_given(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, '
                      '"intermediate_size": 128, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "vocab_size": 100}')  # fmt: skip
    options = Options(
        budgets={"cuda:0": 24 << 30, "cuda:1": 1536 << 20, "cpu": 256 << 30},
        device_map=devices.parse_device_map(["cuda:1=Vulkan0"]),
        quantization="Q8_0",
    )
    (_, message), _ = messages(options, file="r.yaml", config=str(config))
    assert message == decided_by(
        f"ktllama plan --rules r.yaml --config {config} --quant Q8_0 --vram cuda:0=24G,cuda:1=1536M --ram 256G "
        "--device-map cuda:1=Vulkan0 -o planned.yaml"
    )


@pytest.mark.parametrize("text", [rule("", "cuda:0"), rule("", "cpu")])
def test_rules_that_leave_nothing_open_have_no_such_finding(text: str) -> None:
    assert "auto-device" not in {found.code for found in analyse(loader.loads(text), deepseek()).diagnostics}
