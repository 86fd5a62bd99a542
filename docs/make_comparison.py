"""Writes ``docs/comparison.md``: for each family a shipped rule file beside the llama.cpp command that it becomes.

python docs/make_comparison.py
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

from ktllama import shipped_rules
from ktllama.lower.emit import server_options
from ktllama.lower.settings import LlamaSettings
from ktllama.shipped_rules import ShippedRules
from ktllama.translation import Options, translate

PAGE = Path(__file__).with_name("comparison.md")

_INTRODUCTION = """# Rules on one side, the llama.cpp command on the other

For each family that ktllama ships rules for, one of its files and the options that
`ktllama translate NAME --format argv` makes of it, one a line. `ktllama rules` lists all of the files.
Made by `python docs/make_comparison.py`.
"""


def page() -> str:
    """The whole page."""
    families: dict[str, ShippedRules] = {}
    for shipped in shipped_rules.every():
        family = shipped.name.partition("/")[0]
        if family not in families or _is_better(shipped, families[family]):
            families[family] = shipped
    return "\n".join([_INTRODUCTION, *(line for shipped in families.values() for line in _section(shipped))])


def _is_better(one: ShippedRules, other: ShippedRules) -> bool:
    """Files for one card show most; of those, the one for 24 GB."""

    def rank(shipped: ShippedRules) -> tuple[bool, bool]:
        name = shipped.name.partition("/")[2]
        return (name.startswith("1x24"), name.startswith("1x"))

    return rank(one) > rank(other)


def _section(shipped: ShippedRules) -> Iterator[str]:
    translation = translate(shipped.path, options=Options(target="llama-server"))
    rules = shipped.path.read_text(encoding="utf-8").rstrip()
    command = "llama-server --model MODEL.gguf \\\n  " + " \\\n  ".join(_words(translation.settings))
    yield f"## {shipped.name}"
    yield ""
    yield shipped.summary
    yield ""
    yield '<table><tr><th>rules</th><th>llama.cpp</th></tr><tr><td valign="top">'
    yield ""
    yield from ("```yaml", rules, "```")
    yield ""
    yield '</td><td valign="top">'
    yield ""
    yield from ("```sh", command, "```")
    yield ""
    for found in translation.lowering.diagnostics:
        yield f"{found.severity}: {html.escape(found.message)}"
        yield ""
    yield "</td></tr></table>"
    yield ""


def _words(settings: LlamaSettings) -> Iterator[str]:
    for option, value in server_options(settings):
        if value in ("true", "false"):
            yield f"--{'no-' if value == 'false' else ''}{option}"
        elif option == "override-tensor":
            yield f"--{option} '{value}'"
        else:
            yield f"--{option} {value}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
