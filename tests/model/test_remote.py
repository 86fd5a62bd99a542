from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack

import pytest

from ktllama.errors import ModelFileError
from ktllama.model import gguf
from ktllama.model.model_file import ModelFile
from ktllama.model.sources import is_remote, open_model
from tests.model import gguf_bytes as raw
from tests.model.http_files import Handler, Site, serving

MODEL = raw.complete(raw.header((*raw.LLAMA, raw.text("general.name", "Tiny"))))
HEADER_5_MB = raw.header(
    (raw.array("v", raw.STRING, 300_000, raw.string("123456789") * 300_000), *raw.LLAMA),
    (raw.tensor("token_embd.weight", (4_000_000,)),),
)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as served:
        yield served


def part(number: int, count: int = 3) -> bytes:
    split = (raw.u16("split.no", number - 1), raw.u16("split.count", count), raw.u16("split.tensors.count", count))
    return raw.complete(
        raw.header((*split, *(raw.LLAMA if number == 1 else ())), (raw.tensor(f"blk.{number}.weight"),))
    )


def reason(site: Site, source: str, **access: object) -> str:
    """The sentence that opening ``source`` raises, with the server's own address as URL."""
    with pytest.raises(ModelFileError) as caught:
        open_model(source, site.access(**access))
    return str(caught.value).replace(site.url, "URL")


# --- What is remote ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "remote"),
    [
        ("https://host/x.gguf", True),
        ("HTTP://host/x.gguf", True),
        ("hf:owner/repo", True),
        ("hf", False),
        ("./hf:x", False),
        ("ftp://x", False),
        (Path("x.gguf"), False),
    ],
)
def test_is_remote(source: str | Path, remote: bool) -> None:
    assert is_remote(source) is remote


def test_a_path_is_read_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(MODEL)
    assert open_model(path) == gguf.read(path)


def test_reading_a_file_imports_nothing_of_the_web() -> None:
    code = (
        "import sys, ktllama.model.sources; print(sorted({'http.client', 'ssl', 'urllib.request'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


# --- Good servers -----------------------------------------------------------------------------------------------------


def test_a_model_by_address(site: Site, tmp_path: Path) -> None:
    site.files["/folder/tiny%20model.gguf"] = MODEL
    path = tmp_path / "x.gguf"
    path.write_bytes(MODEL)
    local = gguf.read(path)
    url = f"{site.url}/folder/tiny model.gguf"
    assert open_model(url, site.access()) == ModelFile(
        name="Tiny",
        architecture="llama",
        metadata=local.metadata,
        tensors=local.tensors,
        paths=(f"{site.url}/folder/tiny%20model.gguf",),
    )
    ((_, headers),) = site.asked
    assert headers["Range"] == "bytes=0-1048575"
    assert headers["Accept-Encoding"] == "identity"
    assert headers["User-Agent"].startswith("ktllama/")
    assert "Authorization" not in headers


def test_the_name_comes_from_the_address(site: Site) -> None:
    site.files["/a%20b.gguf"] = raw.complete(raw.header())
    assert open_model(f"{site.url}/a%20b.gguf?download=true#top", site.access()).name == "a b"


def test_little_more_than_the_header_is_fetched(site: Site) -> None:
    site.files["/x.gguf"] = raw.complete(HEADER_5_MB, 16_000_000)
    model = open_model(f"{site.url}/x.gguf", site.access())
    assert model.n_bytes == 16_000_000
    assert [headers["Range"] for _, headers in site.asked] == [
        "bytes=0-1048575",
        "bytes=1048576-3145727",
        "bytes=3145728-7340031",
    ]
    assert len(HEADER_5_MB) < site.n_sent < 2 * len(HEADER_5_MB)


def test_a_server_that_gives_less_than_asked(site: Site) -> None:
    content = raw.complete(HEADER_5_MB, 100)
    site.answers["/x.gguf"] = lambda handler: handler.ranged(content, most=1_000_003)
    assert open_model(f"{site.url}/x.gguf", site.access()).n_bytes == 16_000_000
    assert len(site.asked) == 6


def test_split_files(site: Site) -> None:
    for number in (1, 2, 3):
        site.files[f"/m/R1-0000{number}-of-00003.gguf"] = part(number) + bytes(10_000_000)
    model = open_model(f"{site.url}/m/R1-00001-of-00003.gguf?a=b", site.access())
    assert model.name == "R1"
    assert [(tensor.name, tensor.file_index) for tensor in model.tensors] == [
        ("blk.1.weight", 0),
        ("blk.2.weight", 1),
        ("blk.3.weight", 2),
    ]
    assert model.paths == tuple(f"{site.url}/m/R1-0000{number}-of-00003.gguf?…" for number in (1, 2, 3))
    assert all(path.endswith("?a=b") for path, _ in site.asked)
    assert site.n_sent == 1024**2 + 2 * 64 * 1024


def test_a_missing_part(site: Site) -> None:
    site.files["/R1-00001-of-00003.gguf"] = part(1)
    assert reason(site, f"{site.url}/R1-00001-of-00003.gguf") == (
        "URL/R1-00002-of-00003.gguf: the server answers HTTP 404 Not Found; check the address"
    )


def test_another_part_than_the_first(site: Site) -> None:
    site.files["/R1-00002-of-00003.gguf"] = part(2)
    assert reason(site, f"{site.url}/R1-00002-of-00003.gguf") == (
        "URL/R1-00002-of-00003.gguf: is part 2 of 3; give the first part instead: URL/R1-00001-of-00003.gguf"
    )


def without_ranges(content: bytes, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(200, content, **headers)


def test_a_server_without_ranges_is_read_only_as_far_as_needed(site: Site) -> None:
    n_written: list[int] = []

    def answer(handler: Handler) -> None:
        handler.answer(200, HEADER_5_MB, Content_Length=str(len(HEADER_5_MB) + 400 * 1024**2))
        try:
            for _ in range(400):
                handler.wfile.write(bytes(1024**2))
                n_written.append(1024**2)
        except ConnectionError:
            pass
        site.over.set()

    site.answers["/x.gguf"] = answer
    assert open_model(f"{site.url}/x.gguf", site.access()).n_bytes == 16_000_000
    assert site.over.wait(5)
    assert len(site.asked) == 1
    assert sum(n_written) < 32 * 1024**2  # what buffers between the two may hold


def test_a_server_that_tells_no_length(site: Site) -> None:
    site.answers["/x.gguf"] = without_ranges(HEADER_5_MB, Content_Length="")
    assert open_model(f"{site.url}/x.gguf", site.access()).n_bytes == 16_000_000


def test_a_range_of_unknown_total(site: Site) -> None:
    def answer(handler: Handler) -> None:
        first, last = handler.asked_range()
        piece = HEADER_5_MB[first : last + 1]
        handler.answer(206, piece, Content_Range=f"bytes {first}-{first + len(piece) - 1}/*")

    site.answers["/x.gguf"] = answer
    assert open_model(f"{site.url}/x.gguf", site.access()).n_bytes == 16_000_000


# --- Files that are no models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"<!doctype html>", b"GGUF\3\0", MODEL[:100], b"GGUF" + pack("<IQQ", 3, 9, 9)]
)
@pytest.mark.parametrize("answer", ["ranges", "whole", "no length", "unknown total"])
def test_what_is_no_model_is_told_as_of_a_file(site: Site, tmp_path: Path, content: bytes, answer: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as expected:
        gguf.read(path, header_only=True)

    def unknown_total(handler: Handler) -> None:
        first, last = handler.asked_range()
        piece = content[first : last + 1]
        if piece:
            handler.answer(206, piece, Content_Range=f"bytes {first}-{first + len(piece) - 1}/*")
        else:
            handler.answer(416, Content_Range=f"bytes */{len(content)}")

    site.answers["/x.gguf"] = {
        "ranges": lambda handler: handler.ranged(content),
        "whole": without_ranges(content),
        "no length": without_ranges(content, Content_Length=""),
        "unknown total": unknown_total,
    }[answer]
    said = reason(site, f"{site.url}/x.gguf").removeprefix("URL/x.gguf: ")
    exact = str(expected.value).removeprefix(f"{path}: ")
    if answer in ("no length", "unknown total"):  # counts cannot be held against the length before it is known
        assert said.partition("ends within")[0] == exact.partition("ends within")[0]
    else:
        assert said == exact


def test_a_header_without_end_is_given_up(site: Site) -> None:
    head = raw.header((*raw.LLAMA, raw.array("k", raw.STRING, 2**30, b"")), ())
    zeros = bytes(1024**2)

    def answer(handler: Handler) -> None:
        handler.answer(200, head, Content_Length=str(405 * 1024**3))
        while True:
            handler.wfile.write(zeros)

    site.answers["/x.gguf"] = answer
    said = reason(site, f"{site.url}/x.gguf")
    assert said.startswith("URL/x.gguf: is damaged: with metadata key 'k' its header is over 134,217,728 bytes")


# --- Bad servers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (401, {}, "HTTP 401 Unauthorized; the file needs a login: give the address as https://USER:PASSWORD@HOST/FILE"),
        (403, {}, "HTTP 403 Forbidden; the file needs a login: give the address as https://USER:PASSWORD@HOST/FILE"),
        (404, {}, "HTTP 404 Not Found; check the address"),
        (
            416,
            {},
            f"HTTP 416 {'Requested Range Not Satisfiable' if sys.version_info < (3, 13) else 'Range Not Satisfiable'}",
        ),
        (429, {}, "HTTP 429 Too Many Requests; try again later"),
        (429, {"Retry-After": "30"}, "HTTP 429 Too Many Requests; try again in 30 s"),
        (429, {"Retry-After": "Wed, 21 Oct"}, "HTTP 429 Too Many Requests; try again later"),
        (500, {}, "HTTP 500 Internal Server Error; try again later"),
        (503, {"Content-Encoding": "gzip"}, "HTTP 503 Service Unavailable; try again later"),
        (599, {}, "HTTP 599; try again later"),
        (204, {}, "HTTP 204 No Content"),
    ],
)
def test_status(site: Site, status: int, headers: dict[str, str], expected: str) -> None:
    site.answers["/x.gguf"] = lambda handler: handler.answer(status, b"", **headers)
    access = site.access()
    with pytest.raises(ModelFileError) as caught:
        open_model(f"{site.url}/x.gguf", type(access)(hub="https://huggingface.co", wait_seconds=5.0))
    assert str(caught.value) == f"{site.url}/x.gguf: the server answers {expected}"


@pytest.mark.parametrize(
    ("said", "n_bytes", "length", "expected"),
    [
        ("", 100, "100", "the server gives a range of the file and does not say which"),
        ("bytes */500", 100, "100", "the server gives a range of the file and does not say which"),
        ("items 0-99/500", 100, "100", "the server gives a range of the file and does not say which"),
        ("bytes 1-100/500", 100, "100", "the server gives 'bytes 1-100/500', asked for bytes 0-1048575"),
        ("bytes 0-99/50", 100, "100", "the server gives 'bytes 0-99/50', asked for bytes 0-1048575"),
        ("bytes 0-1048576/2000000", 9, "9", "the server gives 'bytes 0-1048576/2000000', asked for bytes 0-1048575"),
        ("bytes 0-99/500", 100, "99", "the server gives 'bytes 0-99/500' in 99 bytes"),
        ("bytes 0-99/500", 60, "100", "the connection broke off after 60 of 100 bytes; try again"),
        ("bytes 0-99/500", 60, "", "the connection broke off after 60 of 100 bytes; try again"),
        ("bytes 0-99/500", 60, "-5", "the connection broke off after 60 of 100 bytes; try again"),
    ],
)
def test_wrong_ranges_and_lengths(site: Site, said: str, n_bytes: int, length: str, expected: str) -> None:
    site.answers["/x.gguf"] = lambda handler: handler.answer(
        206, MODEL[:n_bytes], Content_Range=said, Content_Length=length
    )
    assert reason(site, f"{site.url}/x.gguf") == f"URL/x.gguf: {expected}"


def test_a_whole_file_that_breaks_off(site: Site) -> None:
    site.answers["/x.gguf"] = without_ranges(MODEL[:100], Content_Length="500")
    assert (
        reason(site, f"{site.url}/x.gguf") == "URL/x.gguf: the connection broke off after 100 of 500 bytes; try again"
    )


def test_a_file_that_changes_meanwhile(site: Site) -> None:
    def answer(handler: Handler) -> None:
        handler.ranged(HEADER_5_MB + bytes(len(site.asked)))

    site.answers["/x.gguf"] = answer
    assert reason(site, f"{site.url}/x.gguf") == "URL/x.gguf: changed while it was read; try again"


def test_ranges_that_end_after_the_first(site: Site) -> None:
    def answer(handler: Handler) -> None:
        if len(site.asked) == 1:
            handler.ranged(HEADER_5_MB)
        else:
            handler.answer(200, HEADER_5_MB)

    site.answers["/x.gguf"] = answer
    expected = "URL/x.gguf: the server gave a range of the file, then no longer; try again"
    assert reason(site, f"{site.url}/x.gguf") == expected


def test_compressed_bodies(site: Site) -> None:
    site.answers["/x.gguf"] = without_ranges(MODEL, Content_Encoding="gzip")
    expected = "URL/x.gguf: the server compresses the file, though it was asked not to, so it cannot be read"
    assert reason(site, f"{site.url}/x.gguf") == expected


def drip(site: Site, begin: bytes) -> Callable[[Handler], None]:
    """Sends ``begin``, then a byte now and then."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(begin)
        while not site.over.wait(0.05):
            handler.wfile.write(b"x")

    return answer


@pytest.mark.parametrize(
    "begin",
    [b"HTTP/1.0 200 OK\r\nX: ", b"HTTP/1.0 200 OK\r\n\r\nGGUF"],
    ids=["within the headers", "within the body"],
)
def test_a_server_that_drips(site: Site, begin: bytes) -> None:
    site.answers["/x.gguf"] = drip(site, begin)
    start = time.monotonic()
    expected = "URL/x.gguf: the server is too slow: not done within 0.5 s"
    assert reason(site, f"{site.url}/x.gguf", total_seconds=0.5) == expected
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    "begin", [b"", b"HTTP/1.0 200 OK\r\nContent-Length: 500\r\n\r\nGGUF"], ids=["before the headers", "within the body"]
)
def test_a_server_that_falls_silent(site: Site, begin: bytes) -> None:
    def answer(handler: Handler) -> None:
        handler.wfile.write(begin)
        site.over.wait(10)

    site.answers["/x.gguf"] = answer
    expected = "URL/x.gguf: the server is too slow: nothing came for 0.2 s"
    assert reason(site, f"{site.url}/x.gguf", wait_seconds=0.2) == expected


def raw_answer(sent: bytes) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.wfile.write(sent)

    return answer


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", "the server closed the connection without an answer"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "the server's answer is not HTTP (BadStatusLine)"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nGGUF\r\n",
            "the connection broke off; try again",
        ),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "the server's answer is not HTTP (LineTooLong)"),
    ],
)
def test_no_http(site: Site, sent: bytes, expected: str) -> None:
    site.answers["/x.gguf"] = raw_answer(sent)
    assert reason(site, f"{site.url}/x.gguf") == f"URL/x.gguf: {expected}"


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.gguf"
    with pytest.raises(ModelFileError, match="cannot be reached: Connection refused"):
        open_model(url)


def test_an_unknown_host() -> None:
    with pytest.raises(ModelFileError) as caught:
        open_model("http://no-such-host.invalid/x.gguf")
    assert (
        str(caught.value)
        == "http://no-such-host.invalid/x.gguf: the host's name cannot be resolved; is there a network?"
    )


def test_https_to_a_server_without_tls(site: Site) -> None:
    url = site.url.replace("http:", "https:") + "/x.gguf"
    with pytest.raises(ModelFileError, match=f"^{url}: no secure connection: "):
        open_model(url)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody signed, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    subprocess.run(["openssl", *new.split(), *names], check=True, capture_output=True)
    return folder / "cert", folder / "key"


@pytest.fixture
def secure(certificate: tuple[Path, Path]) -> Iterator[Site]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with serving(context) as served:
        yield served


def test_a_certificate_that_is_not_trusted(secure: Site) -> None:
    expected = "URL/x.gguf: the server's certificate is not trusted: self-signed certificate"
    assert reason(secure, f"{secure.url}/x.gguf") == expected


def test_tls(secure: Site, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    secure.files["/x.gguf"] = raw.complete(HEADER_5_MB)
    assert open_model(f"{secure.url}/x.gguf", secure.access()).n_bytes == 16_000_000
    secure.answers["/away.gguf"] = redirect(f"{site.url}/x.gguf")
    assert reason(secure, f"{secure.url}/away.gguf") == "URL/away.gguf: redirects from https to http, which is refused"
    secure.answers["/slow.gguf"] = drip(secure, b"HTTP/1.0 200 OK\r\n\r\nGGUF")
    expected = "URL/slow.gguf: the server is too slow: not done within 0.5 s"
    assert reason(secure, f"{secure.url}/slow.gguf", total_seconds=0.5) == expected
    assert site.asked == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://", "https://"),
        ("http:///x.gguf", "http:///x.gguf"),
        ("https://host:port/x.gguf", "https://host:port/x.gguf"),
        ("https://me:secret@host:99999/x?sig=1", "https://host:99999/x"),
        ("https://[::1/x.gguf", "https://[::1/x.gguf"),
        ("https://a b/x.gguf", "https://a b/x.gguf"),
        ("https://a\x07/x.gguf", "https://a_/x.gguf"),
    ],
)
def test_no_address(url: str, shown: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        open_model(url)
    assert str(caught.value) == f"{shown}: is no address that can be read; expected https://HOST/FILE.gguf"


# --- Redirects and credentials ----------------------------------------------------------------------------------------


def redirect(location: str, status: int = 302) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(status, Location=location)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(site: Site, status: int) -> None:
    site.answers["/a/x.gguf"] = redirect("../b/y.gguf?signature=1", status)
    site.files["/b/y.gguf"] = raw.complete(HEADER_5_MB)
    model = open_model(f"{site.url}/a/x.gguf", site.access())
    assert (model.name, model.paths) == ("x", (f"{site.url}/a/x.gguf",))
    # Later ranges go straight to where the first one was.
    assert [path for path, _ in site.asked] == ["/a/x.gguf", *["/b/y.gguf?signature=1"] * 3]


def test_five_redirects_are_followed_and_no_sixth(site: Site) -> None:
    for number in range(6):
        site.answers[f"/{number}"] = redirect(f"/{number + 1}")
    site.files["/6"] = MODEL
    assert open_model(f"{site.url}/1", site.access()).name == "Tiny"
    assert reason(site, f"{site.url}/0") == "URL/0: redirects more than 5 times"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("", "the server answers HTTP 302 Found and does not say where to"),
        ("file:///etc/passwd", "redirects to no address that can be read; expected https://HOST/FILE.gguf"),
        ("http://host:x/", "redirects to no address that can be read; expected https://HOST/FILE.gguf"),
    ],
)
def test_bad_redirects(site: Site, location: str, expected: str) -> None:
    site.answers["/x.gguf"] = redirect(location)
    assert reason(site, f"{site.url}/x.gguf") == f"URL/x.gguf: {expected}"


def test_credentials_stay_with_their_server(site: Site) -> None:
    with serving() as other:
        other.files["/y.gguf"] = MODEL
        site.answers["/x.gguf"] = redirect("/again.gguf")
        site.answers["/again.gguf"] = redirect(f"{other.url}/y.gguf")
        host = site.url.removeprefix("http://")
        model = open_model(f"http://me:s%40cret@{host}/x.gguf", other.access())
        assert model.paths == (f"{site.url}/x.gguf",)
        basic = "Basic bWU6c0BjcmV0"
        assert [headers.get("Authorization") for _, headers in site.asked] == [basic, basic]
        assert [headers.get("Authorization") for _, headers in other.asked] == [None]


def test_credentials_and_queries_are_not_shown(site: Site) -> None:
    host = site.url.removeprefix("http://")
    said = reason(site, f"http://me:secret@{host}/none.gguf?X-Amz-Signature=secret")
    assert said == "URL/none.gguf?…: the server answers HTTP 404 Not Found; check the address"
    assert "token" not in repr(site.access(hub_token="token"))


# --- The Hugging Face Hub ---------------------------------------------------------------------------------------------


def listing(site: Site, *files: str, revision: str = "main") -> None:
    content = json.dumps({"id": "o/r", "siblings": [{"rfilename": file} for file in files]}).encode()
    site.files[f"/api/models/o/r/revision/{revision}"] = content


def test_a_file_of_a_repository(site: Site) -> None:
    site.files["/o/r/resolve/main/Q4/x.gguf"] = MODEL
    model = open_model("hf:o/r:Q4/x.gguf", site.access())
    assert model.paths == (f"{site.url}/o/r/resolve/main/Q4/x.gguf",)
    assert len(site.asked) == 1


def test_a_revision(site: Site) -> None:
    site.files["/o/r/resolve/refs%2Fpr%2F1/x.gguf"] = MODEL
    listing(site, "x.gguf", revision="refs%2Fpr%2F1")
    assert open_model("hf:o/r@refs/pr/1", site.access()) == open_model("hf:o/r:x.gguf@refs/pr/1", site.access())


def test_the_only_model_of_a_repository(site: Site) -> None:
    listing(site, "README.md", "mmproj-F16.gguf", "sub/mmproj.gguf", "imatrix_unsloth.gguf", "x.gguf")
    site.files["/o/r/resolve/main/x.gguf"] = MODEL
    assert open_model("hf:o/r", site.access()).name == "Tiny"


def test_the_only_split_model_of_a_repository(site: Site) -> None:
    names = [f"d/R1-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    listing(site, *names)
    for number, name in enumerate(names, start=1):
        site.files[f"/o/r/resolve/main/{name}"] = part(number)
    assert open_model("hf:o/r", site.access()).name == "R1"


def test_a_part_of_a_name_chooses(site: Site) -> None:
    listing(site, "m-Q4_K_M.gguf", "m-Q8_0.gguf")
    site.files["/o/r/resolve/main/m-Q8_0.gguf"] = MODEL
    assert open_model("hf:o/r:q8_0", site.access()).name == "Tiny"


@pytest.mark.parametrize(
    ("source", "files", "expected"),
    [
        ("hf:o/r", ("README.md", "mmproj.gguf"), "the repository has no GGUF file"),
        (
            "hf:o/r",
            ("b.gguf", "a-00001-of-00002.gguf", "a-00002-of-00002.gguf"),
            "2 models fit; name one, as in hf:o/r:FILE.gguf: 'a-00001-of-00002.gguf', 'b.gguf'",
        ),
        ("hf:o/r:Q9", ("a.gguf",), "no model of the 1 there fits; name one, as in hf:o/r:FILE.gguf: 'a.gguf'"),
        (
            "hf:o/r",
            tuple(f"{number:02d}.gguf" for number in range(30)),
            "30 models fit; name one, as in hf:o/r:FILE.gguf: "
            + ", ".join(f"'{number:02d}.gguf'" for number in range(20))
            + " and 10 more",
        ),
    ],
)
def test_which_model_of_a_repository(site: Site, source: str, files: tuple[str, ...], expected: str) -> None:
    listing(site, *files)
    assert reason(site, source) == f"{source}: {expected}"


@pytest.mark.parametrize(
    "content", [b"<html>", b"[]", b"{}", b'{"siblings": 3}', b'{"siblings": [{"rfilename": 3}]}', b"[" * 100_000]
)
def test_a_listing_that_is_none(site: Site, content: bytes) -> None:
    site.files["/api/models/o/r/revision/main"] = content
    expected = "hf:o/r: the hub's answer is not a list of files; name the file: hf:OWNER/REPO:FILE"
    assert reason(site, "hf:o/r") == expected


def test_a_listing_without_end(site: Site) -> None:
    site.files["/api/models/o/r/revision/main"] = b" " * (17 * 1024**2)
    assert reason(site, "hf:o/r") == "hf:o/r: the server's answer is over 16,777,216 bytes"


@pytest.mark.parametrize("status", [401, 403])
def test_gated_repositories(site: Site, status: int) -> None:
    site.answers["/api/models/o/r/revision/main"] = lambda handler: handler.answer(status)
    site.answers["/o/r/resolve/main/x.gguf"] = lambda handler: handler.answer(status)
    advice = "the repository is private or gated, or does not exist: set HF_TOKEN to a token that may read it"
    words = {401: "HTTP 401 Unauthorized", 403: "HTTP 403 Forbidden"}[status]
    assert reason(site, "hf:o/r") == f"hf:o/r: the server answers {words}; {advice}"
    assert reason(site, "hf:o/r:x.gguf") == f"URL/o/r/resolve/main/x.gguf: the server answers {words}; {advice}"


def test_the_token_goes_to_the_hub_only(site: Site) -> None:
    with serving() as cdn:
        listing(site, "x.gguf")
        site.answers["/o/r/resolve/main/x.gguf"] = redirect(f"{cdn.url}/x.gguf?signature=1")
        cdn.files["/x.gguf"] = raw.complete(HEADER_5_MB)
        access = site.access(hub_token="t0ken")
        open_model("hf:o/r", access)
        assert [headers.get("Authorization") for _, headers in site.asked] == ["Bearer t0ken"] * 2
        open_model(f"{cdn.url}/x.gguf", access)
        assert [headers.get("Authorization") for _, headers in cdn.asked] == [None] * 6


def test_the_page_of_a_file_leads_to_the_file(site: Site) -> None:
    site.files["/o/r/resolve/main/x.gguf"] = MODEL
    assert open_model(f"{site.url}/o/r/blob/main/x.gguf", site.access(hub_token="t0ken")).name == "Tiny"
    assert site.asked[0][1]["Authorization"] == "Bearer t0ken"


@pytest.mark.parametrize("source", ["hf:", "hf:o", "hf:o/", "hf:o/r/x.gguf", "hf:o/r:", "hf:o/r@", "hf:o/r:x@\x07"])
def test_no_reference(source: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        open_model(source)
    shown = source.replace("\x07", "\\x07")
    expected = "is no model; expected hf:OWNER/REPO, hf:OWNER/REPO:FILE.gguf or …@REVISION"
    assert str(caught.value) == f"'{shown}': {expected}"


def test_no_thread_is_left(site: Site) -> None:
    site.files["/x.gguf"] = MODEL
    before = {thread.name for thread in threading.enumerate() if isinstance(thread, threading.Timer)}
    open_model(f"{site.url}/x.gguf", site.access())
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for timer in timers:
        timer.join(1)
    assert {timer.name for timer in timers if timer.is_alive()} <= before
