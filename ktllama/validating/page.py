"""A validation as one HTML file that needs nothing but a browser, and no script."""

from __future__ import annotations

import numpy as np

from ktllama.pages import page
from ktllama.pages.markup import entries, text
from ktllama.ruleset.wording import shown
from ktllama.units import counted
from ktllama.validating.plots import device_classes, layer_plot, position_plot
from ktllama.validating.report import Report, flips, number, sources, suspicion, totals, verdict

_SOURCES = page.Sources(package="ktllama.validating", styles=("base.css",))
_SIGNS = (
    "dot: the typical token, with all errors up to here",
    "bar: up to the worst token",
    "dash: what the layer adds by itself",
    "rim of another colour: parts of the layer are there",
)


_ACTIVATIONS = {
    "exact": "exact",
    "llama.cpp": "rounded as llama.cpp rounds them",
    "mixed": "rounded as llama.cpp rounds them on the CPU",
}


def render(report: Report) -> str:
    """The page."""
    parts = {
        "name": text(shown(report.name)),
        "facts": text(" · ".join(facts(report))),
        "mood": "good" if report.ok else "bad",
        "verdict": text(verdict(report)),
        "said": _said(report),
        "totals": entries(totals(report)),
        "legend": _legend(report),
        "layers": layer_plot(report),
        "positions": position_plot(report),
        "sources": "".join(f"<li>{text(line)}</li>" for line in sources(report)),
        "table": _table(report),
    }
    return page.document(_SOURCES, f"{shown(report.name)} · ktllama validate", parts)


def facts(report: Report) -> list[str]:
    """What was compared, in a few words each."""
    compared = report.comparison
    against = [f"against {shown(report.reference)}"] if report.reference != report.model else []
    return [
        f"{report.architecture}, {counted(len(report.layers), 'layer')}",
        counted(len(report.tokens), "token"),
        f"weights {compared.weights}",
        *against,
        f"reference in {compared.dtype}",
        f"activations {_ACTIVATIONS[report.activations]}",
        f"KV cache {compared.kv_type}",
        f"flash attention {'on' if compared.flash_attention else 'off'}",
        f"rules {shown(report.rules)}",
    ]


def _said(report: Report) -> str:
    found = report.suspect
    lines = []
    if (line := suspicion(report)) is not None:
        kind = "said bad" if found is not None and found.certain else "said"
        lines.append(f'<p class="{kind}">{text(line)}</p>')
    if (line := flips(report)) is not None:
        lines.append(f'<p class="said">{text(line)}</p>')
    return "".join(lines)


def _legend(report: Report) -> str:
    signs = [
        f'<span><svg viewBox="0 0 12 12"><circle class="f-{kind}" cx="6" cy="6" r="5"/></svg>{text(name)}</span>'
        for name, kind in device_classes(report).items()
    ]
    signs += [f"<span>{text(sign)}</span>" for sign in _SIGNS]
    return "".join(signs)


def _table(report: Report) -> str:
    found = report.suspect
    rows = []
    for one in report.layers:
        bad = found is not None and found.certain and found.layer == one.layer
        flipped = "-" if one.flipped is None else str(one.n_flipped)
        cells = (str(one.layer), ", ".join(report.devices[one.layer]), number(one.median), number(one.worst))
        rows.append(_row((*cells, str(one.worst_position), number(one.median_own), flipped), bad=bad))
    relative = report.positions.relative
    bad = found is not None and found.certain and found.layer is None
    middle, worst, own = float(np.median(relative)), float(relative.max()), float(np.median(report.output))
    cells = ("output", ", ".join(report.output_devices), number(middle), number(worst))
    return "".join([*rows, _row((*cells, str(int(relative.argmax())), number(own), "-"), bad=bad)])


def _row(cells: tuple[str, ...], *, bad: bool) -> str:
    opened = ["<td>" if column == 1 else '<td class="n">' for column in range(len(cells))]
    made = "".join(f"{tag}{text(cell)}</td>" for tag, cell in zip(opened, cells, strict=True))
    return f'<tr class="bad">{made}</tr>' if bad else f"<tr>{made}</tr>"
