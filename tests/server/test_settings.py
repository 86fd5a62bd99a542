"""Flags before variables before the file before defaults; nothing is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktllama.server.settings import Fault, ServeSettings, SettingsError, read


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("KTLLAMA_")]:
        monkeypatch.delenv(name)


def file_of(folder: Path, text: str) -> str:
    path = folder / "serve.toml"
    path.write_text(text)
    return str(path)


def faults_of(**given: object) -> tuple[Fault, ...]:
    file = given.pop("file", None)
    assert file is None or isinstance(file, str)
    with pytest.raises(SettingsError) as caught:
        read(given, file=file)
    return caught.value.faults


def test_defaults_are_loopback_and_keyless() -> None:
    settings = read({})
    assert (settings.host, settings.port, settings.api_key_file, settings.lenient) == ("127.0.0.1", 8080, None, False)
    assert settings.max_body == 32 * 1024 * 1024
    assert settings.cors_origin == ()


def test_a_flag_wins_over_a_variable_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(tmp_path, 'ctx = 1024\nparallel = 2\nubatch = 64\nalias = "file"\n')
    monkeypatch.setenv("KTLLAMA_CTX", "2048")
    monkeypatch.setenv("KTLLAMA_PARALLEL", "3")
    settings = read({"ctx": 4096}, file=file)
    assert (settings.ctx, settings.parallel, settings.ubatch, settings.alias) == (4096, 3, 64, "file")
    assert settings.queue_limit == ServeSettings.model_fields["queue_limit"].default


def test_the_file_may_be_named_by_a_variable_and_the_flag_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text("port = 1")
    second.write_text("port = 2")
    monkeypatch.setenv("KTLLAMA_CONFIG", str(first))
    assert read({}).port == 1
    assert read({}, file=str(second)).port == 2


def test_an_empty_variable_is_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTLLAMA_PORT", "")
    assert read({}).port == 8080


def test_lists_come_as_words_from_variables_and_as_arrays_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KTLLAMA_CORS_ORIGIN", "https://a.example, https://b.example")
    settings = read({}, file=file_of(tmp_path, 'device_map = ["cuda:0=Vulkan0", "cuda:1=Vulkan1"]'))
    assert settings.cors_origin == ("https://a.example", "https://b.example")
    assert settings.device_map == ("cuda:0=Vulkan0", "cuda:1=Vulkan1")


@pytest.mark.parametrize(("given", "n_bytes"), [("32M", 32 << 20), ("1.5k", 1536), (7, 7), ("1000", 1000)])
def test_sizes_read_as_elsewhere(given: object, n_bytes: int) -> None:
    assert read({"max_body": given}).max_body == n_bytes


def test_unknown_keys_and_variables_are_errors_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTLLAMA_QUEUE_LIMITS", "3")
    file = file_of(tmp_path, "max-body = 3\nzzz = 1\n")
    assert faults_of(file=file) == (
        Fault(where="KTLLAMA_QUEUE_LIMITS", message="no such setting; did you mean KTLLAMA_QUEUE_LIMIT?"),
        Fault(where=f"{file}: max-body", message="no such setting; did you mean max_body?"),
        Fault(where=f"{file}: zzz", message="no such setting"),
    )


def test_every_bad_value_is_told_with_the_place_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTLLAMA_CTX", "many")
    file = file_of(tmp_path, 'ubatch = 0\nmax_header = "big"\nkv_type = "q9"\nthreads = true\n')
    found = {fault.where: fault.message for fault in faults_of(port=65536, file=file)}
    assert found == {
        "--port": "input should be less than or equal to 65535, got 65536",
        "KTLLAMA_CTX": "input should be a valid integer, unable to parse string as an integer, got 'many'",
        f"{file}: ubatch": "input should be greater than or equal to 2, got 0",
        f"{file}: max_header": "'big' is no size; expected a number of bytes such as 33554432 or 32M",
        f"{file}: kv_type": found[f"{file}: kv_type"],
        f"{file}: threads": "true is not what is expected here",
    }
    assert found[f"{file}: kv_type"].startswith("'q9' is not one of f32, f16")


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "https://example.org/path", "null"])
def test_an_origin_is_a_scheme_and_a_host(origin: str) -> None:
    (fault,) = faults_of(cors_origin=(origin,))
    assert fault.where == "--cors-origin"


@pytest.mark.parametrize("text", ["port = ", "[[", "port = 1\nport = 2", "\x00"])
def test_a_file_that_is_no_toml_is_one_fault(tmp_path: Path, text: str) -> None:
    (fault,) = faults_of(file=file_of(tmp_path, text))
    assert fault.message.startswith("not TOML: ")


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path: Path) -> None:
    (missing,) = faults_of(file=str(tmp_path / "none.toml"))
    (folder,) = faults_of(file=str(tmp_path))
    assert (missing.message, folder.message) == ("No such file or directory", "Is a directory")


def test_a_file_of_bytes_is_one_fault(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_bytes(b"port = 1 # \xff\xfe")
    (fault,) = faults_of(file=str(path))
    assert fault.message.startswith("not TOML: ")


def test_what_clients_may_see_holds_no_path_of_a_secret() -> None:
    shown = read({"api_key_file": "/secret/keys", "model": "/home/me/model.gguf"}).public()
    assert shown["api_key"] is True
    assert not [value for value in shown.values() if isinstance(value, str) and "/" in value]
