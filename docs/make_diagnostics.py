"""Write ``docs/diagnostics.md`` from the catalogue of codes: ``python docs/make_diagnostics.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ktllama.codes import CATALOGUE, IMPORT_CODES, LOWERING_CODES, MODEL_CODES, PLACEMENT_CODES, RULESET_CODES
from ktllama.diagnostics import CodeInfo

PAGE = Path(__file__).with_name("diagnostics.md")

_INTRODUCTION = """\
# Diagnostics

Every finding has a code. Codes are stable: they are not renamed, and none gets another meaning.

- An **error** makes the settings unusable. `translate` prints none and exits with status 1.
- A **warning** means that the file probably does not say what its author wants. `--strict` treats it as an error.
- A **note** explains something that is all right.

An entry says so where a finding may have another severity than the one listed.
This page is written by `docs/make_diagnostics.py` from `ktllama/codes.py`.
"""

_SECTIONS: tuple[tuple[str, str, Mapping[str, CodeInfo]], ...] = (
    ("Reading the rule file", "`ktllama.ruleset`: the text alone, without a model.", RULESET_CODES),
    ("Placement", "`ktllama.placing`: the rules held against a model, and the plan that results.", PLACEMENT_CODES),
    ("Lowering", "`ktllama.lower`: what the chosen target cannot express.", LOWERING_CODES),
    ("Importing", "`ktllama.importing`: what of a llama.cpp command line rules cannot say.", IMPORT_CODES),
    ("Model", "The choice of the model.", MODEL_CODES),
)


def page() -> str:
    """The whole page."""
    assert {code for _, _, codes in _SECTIONS for code in codes} == set(CATALOGUE), "a section is missing here"
    return "\n".join([_INTRODUCTION, *(line for section in _SECTIONS for line in _section(*section))])


def _section(title: str, about: str, codes: Mapping[str, CodeInfo]) -> Iterator[str]:
    yield from (f"## {title}", "", about, "")
    for code, info in codes.items():
        yield from (
            f"### `{code}`",
            "",
            f"- Severity: {info.severity}",
            f"- Meaning: {info.meaning}",
            f"- Remedy: {info.remedy}",
            "",
        )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
