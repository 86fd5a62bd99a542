"""Keys and names: who gets in, and that no key gets out."""

from __future__ import annotations

import asyncio
import hmac
from pathlib import Path
from unittest import mock

import pytest

from ktllama.server.access import HostCheck, KeyCheck, KeyFileError, Keys, is_loopback, read_keys
from tests.server.asgi import Answer, call, says_ok, scope_of


def asked(path: str = "/v1/models", *headers: tuple[str, str]) -> Answer:
    app = KeyCheck(says_ok, Keys(["sk-one", "sk-two"]))
    return asyncio.run(call(app, scope_of(path, headers=headers)))


@pytest.mark.parametrize("value", ["Bearer sk-one", "Bearer sk-two", "bearer sk-one", "BEARER  sk-two "])
def test_a_known_key_gets_in(value: str) -> None:
    assert asked("/v1/models", ("authorization", value)).status == 200


@pytest.mark.parametrize(
    "value",
    ["Bearer sk-on", "Bearer sk-one2", "Bearer SK-ONE", "Basic sk-one", "sk-one", "Bearer", "Bearer ", "", "Bearer é",
     "Bearer " + "x" * 100_000],
)  # fmt: skip
def test_anything_else_does_not(value: str) -> None:
    answer = asked("/v1/models", ("authorization", value))
    assert (answer.status, answer.code, answer.headers["www-authenticate"]) == (401, "invalid_api_key", "Bearer")


def test_no_header_and_two_headers_do_not() -> None:
    assert asked().status == 401
    assert asked("/v1/models", ("authorization", "Bearer sk-one"), ("authorization", "Bearer sk-one")).status == 401


@pytest.mark.parametrize("path", ["/metrics", "/props", "/docs", "/openapi.json", "/v1/chat/completions", "/health/x"])
def test_only_health_is_open(path: str) -> None:
    assert asked(path).status == 401
    assert asked("/health").status == 200


def test_the_answer_never_repeats_the_key() -> None:
    assert b"sk-wrong" not in asked("/v1/models", ("authorization", "Bearer sk-wrong")).body


def test_every_key_is_compared_whichever_matches() -> None:
    keys = Keys([f"key-{number}" for number in range(5)])
    for given in (b"key-0", b"key-4", b"none"):
        with mock.patch.object(hmac, "compare_digest", wraps=hmac.compare_digest) as compared:
            assert (given in keys) is (given != b"none")
        assert compared.call_count == 5


def test_a_key_file_has_comments_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"\xef\xbb\xbf# ours\r\n\r\n  sk-one  \r\n#sk-two\nsk-three")
    keys = read_keys(str(path))
    assert len(keys) == 2
    assert b"sk-one" in keys
    assert b"sk-three" in keys
    assert b"sk-two" not in keys


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no key in it; write one a line"),
        (b"# only\n\n", "no key in it; write one a line"),
        (b"\xff", "not UTF-8"),
        (b"ok\ntwo words\n", "a key is one word of printable ASCII characters"),
        ("schlüssel".encode(), "a key is one word of printable ASCII characters"),
        (b"a\x00b", "a key is one word of printable ASCII characters"),
    ],
)
def test_a_key_file_that_cannot_be_used_says_why_and_shows_nothing(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(KeyFileError) as caught:
        read_keys(str(path))
    assert caught.value.reason == message
    assert "words" not in str(caught.value) or message in str(caught.value)


def test_a_key_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        read_keys(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("192.168.0.1", False), ("example.org", False), ("", False), ("127.0.0.1.nip.io", False)],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8080", 200), ("127.0.0.1", 200), ("[::1]:8080", 200), ("[::1]", 200), ("app.localhost:1", 200),
     ("box.lan:8080", 200), ("BOX.LAN", 200), ("evil.example", 403), ("evil.example:8080", 403),
     ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403), ("127.0.0.1:80:80", 403), ("evil.lan", 403)],
)  # fmt: skip
def test_a_page_of_another_name_is_refused(host: str, status: int) -> None:
    app = HostCheck(says_ok, ["box.lan"])
    assert asyncio.run(call(app, scope_of(headers=[("host", host)]))).status == status
    assert asyncio.run(call(app, scope_of("/health"))).status == 200
