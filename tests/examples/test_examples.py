"""Every example runs with the real package, and its model is where the rules put it."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from ktllama.devices import DeviceMap
from ktllama.runtime import child_process
from ktllama.runtime.verify import planned_devices
from ktllama.translation import translate
from tests.models import rule
from tests.runtime import smollm2

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDED = {
    "plain_llama.py": (),
    "langchain_chat.py": ("langchain_community",),
    "llama_index_llm.py": ("llama_index.llms.llama_cpp",),
    "llm_plugin.py": ("llm_gguf",),
    "server.py": ("fastapi", "uvicorn", "pydantic_settings", "sse_starlette", "starlette_context"),
}


@pytest.fixture
def model() -> Path:
    return smollm2.path()


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(rule(r"^model\.layers\.[0-9]\.", "cuda:0") + rule("", "cpu"))
    return path


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(NEEDED)


@pytest.mark.parametrize("example", [name for name in NEEDED if name != "server.py"])
def test_an_example_answers_and_is_placed(example: str, model: Path, rules: Path, tmp_path: Path) -> None:
    _require(example)
    report = tmp_path / "report.json"
    done = subprocess.run(
        _command(report, example, str(model), str(rules)), env=_environment(tmp_path), capture_output=True, timeout=240
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.strip()
    _check_report(report, model, rules)


def test_the_server_answers_and_is_placed(model: Path, rules: Path, tmp_path: Path) -> None:
    _require("server.py")
    report, log = tmp_path / "report.json", tmp_path / "log.txt"
    with log.open("wb") as output:
        server = subprocess.Popen(
            _command(report, "server.py", str(model), str(rules), "0"),
            env=_environment(tmp_path),
            stdout=output,
            stderr=output,
        )
    with server:
        try:
            answer = _ask(_address(server, log), {"model": "placed", "prompt": "A colour:", "max_tokens": 4})
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
    assert server.returncode == 0
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    _check_report(report, model, rules)


def _require(example: str) -> None:
    for package in NEEDED[example]:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            pytest.skip(f"examples/{example} needs {package}: pip install 'ktllama[examples]'")


def _command(report: Path, example: str, *arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("probe.py")), str(report), str(EXAMPLES / example), *arguments]


def _environment(folder: Path) -> dict[str, str]:
    """A home of its own, because the packages write caches and settings there; and no network for model hubs."""
    return child_process.environment(HOME=str(folder), LLM_USER_PATH=str(folder), HF_HUB_OFFLINE="1")


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    while server.poll() is None:
        found = re.search(r"running on (http://127\.0\.0\.1:[0-9]+)", log.read_text(errors="replace"))
        if found:
            return found[1]
        try:
            server.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(log.read_text(errors="replace"))


def _ask(address: str, body: Mapping[str, object]) -> dict[str, object]:
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer: dict[str, object] = json.load(response)
    return answer


def _check_report(report: Path, model: Path, rules: Path) -> None:
    (found,) = json.loads(report.read_text())
    planned = planned_devices(translate(rules, model).placement, DeviceMap())
    # the stand-in is this process's only GPU, so it is cuda:0
    assert {name: found[name].replace("RPC0", "CUDA0") for name in planned} == {
        name: device for name, (device,) in ((name, tuple(devices)) for name, devices in planned.items())
    }
    counted = Counter(found.values())
    assert counted["RPC0"] == 90
    assert set(counted) == {"CPU", "RPC0"}
