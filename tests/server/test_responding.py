"""What a lenient server says of the fields that it ignored."""

from __future__ import annotations

import pytest

from ktllama.server.responding import IGNORED_HEADER, ignored_header


def test_ignored_fields_are_named_in_the_header_and_the_log(caplog: pytest.LogCaptureFixture) -> None:
    assert ignored_header([]) == {}
    assert ignored_header(["a", "messages[0].é"]) == {IGNORED_HEADER: "a, messages[0].\\xe9"}
    assert caplog.messages == ["ignored the fields a, messages[0].é of a request"]


def test_a_million_ignored_fields_fill_neither(caplog: pytest.LogCaptureFixture) -> None:
    header = ignored_header([f"é{number}" for number in range(1_000_000)])[IGNORED_HEADER]

    assert len(header) == 1024
    assert len(caplog.messages[0]) < 1100
