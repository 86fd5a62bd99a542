"""``ktllama serve`` as a user types it: what is refused, and the real thing with SmolLM2's weights."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import click
import msgspec
import pytest

from ktllama import assets
from ktllama.cli import engine as shared
from ktllama.cli.serve import Terminal, command, curl
from ktllama.engine.heartbeat import Heartbeat
from ktllama.server.access import KeyFileError
from ktllama.server.settings import ServeSettings
from tests.cli.runner import Ran, ktllama
from tests.runtime import smollm2
from tests.server.recording import MODEL
from tests.server.served import ROOT, Served, events, say


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("KTLLAMA_")]:
        monkeypatch.delenv(name)


def refused(*words: str) -> Ran:
    """The command that must not get as far as an engine."""
    with mock.patch("ktllama.server.serving.serve", side_effect=AssertionError("it began to serve")):
        return ktllama("serve", *words)


def test_every_setting_has_a_flag_of_its_name_and_the_other_way_round() -> None:
    flags = {parameter.name for parameter in command.params if isinstance(parameter, click.Option)}
    assert flags - {"config"} == set(ServeSettings.model_fields)


def test_every_default_that_help_shows_is_the_settings() -> None:
    shown = {"host": "127.0.0.1", "port": "8080", "ubatch": "512", "queue_limit": "2048", "stream_interval": "0.01", "max_body": "32M",
             "max_header": "32K", "max_messages": "4096", "max_connections": "4096", "header_timeout": "15",
             "body_timeout": "60", "write_timeout": "60", "keep_alive": "75", "silence_timeout": "20", "step_timeout": "300", "hang_timeout": "900", "max_tokens": "32768", "kv_type": "f16"}  # fmt: skip
    defaults = ServeSettings()
    sizes = {"32M": 32 << 20, "32K": 32 << 10}
    for parameter in command.params:
        assert isinstance(parameter, click.Option)
        if parameter.name in shown:
            text = shown[parameter.name]
            assert f"[default: {text}]" in (parameter.help or "")
            assert str(getattr(defaults, parameter.name)).removesuffix(".0") == str(sizes.get(text, text))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_machines_are_served_only_with_a_key_or_on_purpose(host: str) -> None:
    ran = refused("--host", host)
    assert ran.status == 2
    assert f"--host {host} can be reached from other machines: give --api-key-file, or --insecure" in ran.err


def test_settings_that_cannot_be_used_are_lines_not_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("prot = 1\nctx = 0\n")
    monkeypatch.setenv("KTLLAMA_PARALEL", "2")
    ran = refused("--config", str(file))
    assert ran.status == 2
    assert ran.err.splitlines() == [
        "ktllama: KTLLAMA_PARALEL: no such setting; did you mean KTLLAMA_PARALLEL?",
        f"{file}: prot: no such setting; did you mean port?",
        f"{file}: ctx: input should be greater than or equal to 1, got 0",
    ]


def test_a_key_file_that_cannot_be_used(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-one two\n")
    ran = refused("--api-key-file", str(keys))
    assert (ran.status, ran.err) == (2, f"ktllama: {KeyFileError(str(keys), 'a key is one word of printable ASCII characters', line=1)}\n")  # fmt: skip


def test_rules_with_errors_are_refused_before_an_engine_starts(tmp_path: Path) -> None:
    rules = tmp_path / "r.yaml"
    rules.write_text('- match:\n    name: "("\n  replace:\n    kwargs:\n      generate_device: "cpu"\n')
    ran = refused("--model", str(smollm2.path()), "--rules", str(rules))
    assert ran.status == 1
    assert "[bad-regex]" in ran.err
    assert str(rules) in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "none.gguf", "--rules", "llama/cpu"), "none.gguf: no such file"),
        (("--model", "hf:a/b", "--rules", "llama/cpu"), "must be a file on this machine"),
        (("--rules", "llama/cpus"), "did you mean llama/cpu?"),
        (("--device-map", "cuda:0"), "expected RULE_DEVICE=LLAMA_DEVICE"),
        (("--budget", "cuda:0=lots"), "expected DEVICE=SIZE"),
        (("--max-body", "big"), "--max-body: 'big' is no size"),
        (("--cors-origin", "example.org"), "'example.org' is no origin"),
        (("--kv-type", "q9"), "'q9' is not one of"),
        (("--prot", "1"), "No such option"),
        (("--config", "none.toml"), "none.toml: No such file"),
    ],
)
def test_wrong_words_are_told(words: tuple[str, ...], said: str) -> None:
    ran = refused(*words)
    assert ran.status in (1, 2)
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_a_missing_extra_is_one_line() -> None:
    with mock.patch("importlib.util.find_spec", side_effect=lambda name: None if name == "uvicorn" else object()):
        ran = ktllama("serve")
    assert ran.status == 2
    assert ran.err == "ktllama: this needs uvicorn, which is not installed: pip install 'ktllama[serve]'\n"


def test_without_a_model_it_is_the_embedded_one_under_its_own_rules() -> None:
    made = shared.plan(ServeSettings())
    assert (made.model, Path(str(made.rules)).parts[-2:]) == (str(assets.tiny_r1()), ("tiny-r1", "cpu.yaml"))


def test_an_installation_without_the_embedded_model_says_what_to_name() -> None:
    with mock.patch.object(assets, "tiny_r1", return_value=Path("absent.gguf")):
        ran = refused()
    assert (ran.status, ran.err) == (2, "ktllama: --model: none is given, and this installation embeds none: name a GGUF file\n")  # fmt: skip


def test_the_executor_knows_every_option_that_it_is_given() -> None:
    from ktllama.runtime.executor_options import parse_options

    settings = ServeSettings(ctx=1024, parallel=3, ubatch=64, kv_type="q8_0", flash_attn="on", threads=1,
                             device_map=("cuda:0=RPC0",), budget=("cuda:0=1G",), stand_ins=True, load_mode="mmap")  # fmt: skip
    made = shared.planned(settings, str(smollm2.path()), "llama/cpu")
    parsed = parse_options(shared.executor_options(made, settings))
    assert (parsed.ctx, parsed.parallel, parsed.ubatch, parsed.kv_type, parsed.flash_attn, parsed.threads) == (1024, 3, 64, "q8_0", "on", 1)  # fmt: skip
    assert (parsed.device_map, parsed.budgets, parsed.stand_ins, parsed.load_mode) == ({"cuda:0": "RPC0"}, {"cuda:0": 1 << 30}, True, "mmap")  # fmt: skip
    assert Path(parsed.model) == smollm2.path().resolve()
    assert parsed.rules is not None
    assert parsed.rules.endswith("/rules/llama/cpu.yaml")


@pytest.mark.parametrize(("n_ctx", "n_ctx_train", "told"), [(8192, 4096, True), (4096, 4096, False), (8192, 0, False)])
def test_a_context_beyond_what_the_model_was_trained_for_is_told(
    n_ctx: int, n_ctx_train: int, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Terminal(keyed=False).ready(msgspec.structs.replace(MODEL, n_ctx=n_ctx, n_ctx_train=n_ctx_train))
    said = capsys.readouterr()
    assert f"{n_ctx} tokens of context. Try" in said.out
    expected = (
        "note: the model was trained for 4096 tokens of context; requests share the 8192, and one that goes beyond "
    )
    assert said.err == (f"{expected}what was trained gets worse answers\n" if told else "")


def test_the_engines_patience_is_that_of_the_settings() -> None:
    assert shared.heartbeat_of(ServeSettings()) == Heartbeat()
    chosen = ServeSettings(silence_timeout=0.5, step_timeout=7, hang_timeout=0)
    made = Heartbeat(beat_seconds=0.5, silent_seconds=0.5, step_seconds=7, hung_seconds=None)
    assert shared.heartbeat_of(chosen) == made
    plan = shared.planned(chosen, str(smollm2.path()), None)
    assert shared.launch_of(plan, chosen).heartbeat == made


def test_what_is_to_be_pasted_holds_no_key() -> None:
    lines = curl("http://127.0.0.1:1", keyed=True)
    assert "  -H 'Authorization: Bearer YOUR-KEY' \\" in lines
    assert "Authorization" not in "\n".join(curl("http://127.0.0.1:1", keyed=False))


# ── the real thing ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("# ours\nsk-test\n")
    words = ("--model", str(smollm2.path()), "--rules", "llama/cpu", "--port", "0", "--parallel", "2",
             "--api-key-file", str(keys), "--log-format", "json")  # fmt: skip
    environ = {"KTLLAMA_CTX": "1024", "KTLLAMA_THREADS": "1", "KTLLAMA_ALIAS": "smol"}
    with Served([sys.executable, "-m", "ktllama", "serve", *words], environ) as served:
        served.wait_until_ready()
        yield served


KEY = {"Authorization": "Bearer sk-test"}


def test_a_real_model_starts_with_its_plan(server: Served) -> None:
    said = "\n".join(server.said)
    assert f"92.1 MiB, under {ROOT}/rules/llama/cpu.yaml" in said
    assert "KV of 1024 tokens" in said
    assert "Ready after" in said
    assert "loading 75%" in server.lines


def test_a_real_model_answers_a_real_question(server: Served) -> None:
    assert server.get("/v1/models").status == 401
    assert server.get("/v1/models", **KEY).json()["data"][0]["id"] == "smol"
    asked = {"prompt": "The capital of France is", "max_tokens": 6, "temperature": 0}
    answer = server.post("/v1/completions", asked, **KEY)
    assert (answer.status, answer.json()["choices"][0]["text"]) == (200, " Paris.\n\nThe United")
    answer = server.post("/v1/chat/completions", say("Hello!", max_tokens=4, temperature=0), **KEY)
    assert answer.json()["usage"]["completion_tokens"] == 4
    props = server.get("/props", **KEY).json()
    assert props["plan"][0].startswith("CPU: 92.1 MiB of weights")
    assert "sk-test" not in json.dumps(props) + "\n".join(server.lines + server.said)


def test_the_real_api_process_is_small_and_holds_no_llama_cpp(server: Served) -> None:
    folder = Path(f"/proc/{server.process.pid}")
    assert "llama" not in "".join(line for line in (folder / "maps").read_text().splitlines() if ".so" in line)
    assert int((folder / "status").read_text().partition("VmRSS:")[2].split()[0]) < 120 * 1000


def test_a_real_signal_under_load_drains(server: Served) -> None:
    with server.stream({**say("Tell a story.")}) as unkeyed:
        assert unkeyed.status == 401
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    connection.request("POST", "/v1/chat/completions", json.dumps({**say("Tell a story.", max_tokens=8), "stream": True}), {"Content-Type": "application/json", **KEY})  # fmt: skip
    stream = events(connection.getresponse())
    next(stream)
    server.signal(signal.SIGTERM)
    found = list(stream)
    connection.close()
    assert found[-1] == "[DONE]"
    assert server.end() == 0
    assert "Traceback" not in "\n".join(server.lines)
