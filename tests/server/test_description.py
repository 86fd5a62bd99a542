"""/docs works offline, and the description is OpenAPI that its page understands."""

from __future__ import annotations

import json
import re

import jsonschema
from starlette.testclient import TestClient

from ktllama.server.app import create_app
from ktllama.server.protocol.answers import EXAMPLES
from ktllama.server.state import ServerState
from tests.server.recording import RecordingClient


def client() -> TestClient:
    return TestClient(create_app(ServerState(client=RecordingClient())))


def test_docs_load_nothing_from_elsewhere() -> None:
    http = client()
    page = http.get("/docs").text

    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(addresses) == 3
    for address in addresses:
        assert address.startswith("/docs/assets/")
        assert http.get(address).status_code == 200
    assert "https://" not in page


def test_every_body_has_a_schema_that_its_example_fits() -> None:
    made = client().get("/openapi.json").json()

    assert made["openapi"] == "3.0.3"
    bodies = {
        path: operation["post"]["requestBody"]["content"]["application/json"]
        for path, operation in made["paths"].items()
        if "post" in operation
    }
    assert set(bodies) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/tokenize",
        "/detokenize",
        "/apply-template",
    }
    for body in bodies.values():
        name = body["schema"]["$ref"].rpartition("/")[2]
        assert body["example"] == EXAMPLES[name]
        schema = {**made["components"]["schemas"][name], "components": made["components"]}
        jsonschema.Draft4Validator(schema).validate(body["example"])


def test_no_word_of_newer_openapi_is_left() -> None:
    text = client().get("/openapi.json").text

    assert '"type":"null"' not in text
    assert '"const"' not in text
    assert set(re.findall(r"#/components/schemas/([^\"/]+)", text)) <= set(json.loads(text)["components"]["schemas"])


def test_head_is_answered_wherever_get_is_and_is_not_described() -> None:
    http = client()

    for path in ("/health", "/v1/models", "/v1/models/recorded", "/props", "/docs", "/openapi.json"):
        got, head = http.get(path), http.head(path)
        assert (head.status_code, head.headers["content-type"]) == (200, got.headers["content-type"]), path
    assert http.head("/v1/chat/completions").status_code == 405
    assert http.head("/nothing").status_code == 404
    assert not [path for path, found in http.get("/openapi.json").json()["paths"].items() if "head" in found]


def test_every_endpoint_stands_under_a_heading_with_words_of_its_own() -> None:
    paths = client().get("/openapi.json").json()["paths"]

    said = {
        path: (operation["tags"], operation["summary"]) for path, found in paths.items() for operation in found.values()
    }
    assert said["/v1/chat/completions"] == (["answers"], "Answer a conversation")
    assert {tag for tags, _ in said.values() for tag in tags} == {"answers", "tokens", "server", "models"}
    assert len({summary for _, summary in said.values()}) == len(said)
