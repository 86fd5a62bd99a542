"""A plan as one HTML file that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Iterable

from ktllama import devices
from ktllama.explaining import page as placement_page
from ktllama.pages import page
from ktllama.pages.markup import entries, folded, table, text
from ktllama.planner import curves, wording
from ktllama.planner.memory_bars import bars
from ktllama.planner.plan import Plan
from ktllama.planner.survey import Survey
from ktllama.ruleset.wording import harmless, shown
from ktllama.units import counted, format_bytes, format_number

_SOURCES = page.Sources(
    package="ktllama.planner",
    styles=("base.css", "tips.css", "layers.css", "chart.css"),
    scripts=("base.js", "layers.js", "rules.js"),
)


def render(survey: Survey, model: str, output: str | None) -> str:
    """The page. ``model`` and ``output`` are where the model is, and where the rule file was written, if it was."""
    plan = survey.plan
    name = shown(plan.translation.model.name)
    parts = {
        "name": text(name),
        "facts": text(" · ".join(_facts(plan))),
        "totals": entries(_totals(plan)),
        "bars": bars(plan.memory, _swatches(plan), _llama_names(plan)),
        "memory": folded("Memory as a table", _memory_table(plan)),
        "cards": curves.card_chart(survey),
        "cardwords": _items(curves.card_sentences(survey)),
        "cardtable": folded("Cards as a table", curves.card_table(survey)),
        "contexts": curves.context_chart(survey),
        "contextwords": _items(curves.context_sentences(survey)),
        "contexttable": folded("Contexts as a table", curves.context_table(survey)),
        "devices": "".join(
            f'<span><i class="swatch" style="background:{colour}"></i>{text(device)}</span>'
            for device, colour in sorted(_swatches(plan).items(), key=lambda item: devices.order(item[0]))
        ),
        "settings": _pairs(wording.settings_rows(plan)),
        "notes": _items([*wording.predicted_lines(plan)[2:], *wording.note_lines(plan)]),
        "next": "\n".join(text(harmless(line)) for line in wording.next_lines(plan, model, output)),
        "candidates": folded("Ubatches that were weighed", _candidates(plan)),
        "rules": folded("The rule file", f"<pre>{text(plan.rules)}</pre>"),
    }
    return page.document(_SOURCES, f"{name} · ktllama plan", parts, _layers(plan))


def _layers(plan: Plan) -> dict[str, object]:
    """What the picture of the layers draws: the placement, with caches of the plan's context."""
    context = plan.context
    cache = placement_page.Cache(n_tokens=context.n_ctx, type_k=context.type_k, type_v=context.type_v)
    return {**placement_page.document(plan.translation, cache=cache), "devices": _devices(plan)}


def _devices(plan: Plan) -> list[str]:
    return sorted((one.device for one in plan.memory), key=devices.order)


def _swatches(plan: Plan) -> dict[str, str]:
    """The colours that the script gives to the same devices."""
    gpus = [name for name in _devices(plan) if name != devices.CPU]
    return {devices.CPU: "var(--cpu)", **{name: f"var(--gpu{number % 8})" for number, name in enumerate(gpus)}}


def _llama_names(plan: Plan) -> dict[str, str]:
    to_name = plan.translation.options.device_map.llama_name
    return {one.device: to_name(one.device) for one in plan.memory}


def _facts(plan: Plan) -> list[str]:
    model = plan.translation.model
    assumed = " (assumed sizes)" if plan.translation.assumed else ""
    host = plan.machine.cpu.memory_bytes
    return [
        f"{model.architecture}, {counted(model.n_layers, 'layer')}, {format_bytes(model.n_bytes)}{assumed}",
        *(f"{one.device} with {format_bytes(one.budget or 0)}" for one in plan.memory if one.device != devices.CPU),
        "as much RAM as it takes" if host is None else f"{format_bytes(host)} of RAM",
    ]


def _totals(plan: Plan) -> list[tuple[str, str]]:
    said, context = plan.prediction, plan.context
    return [
        ("decode", f"{format_number(said.decode_tokens_per_second)} tokens/s"),
        ("prefill", f"{format_number(said.prefill_tokens_per_second)} tokens/s"),
        ("context", f"{context.n_ctx} tokens" + (f", {context.n_seq_max} at once" if context.n_seq_max > 1 else "")),
        ("ubatch", str(context.n_ubatch)),
        ("host memory read", f"{format_bytes(round(said.host_read_bytes))} a token"),
        ("device changes", f"{said.crossings} a token"),
    ]


def _memory_table(plan: Plan) -> str:
    headers = ["", *(one.device for one in plan.memory)]
    rows = [(name, *sizes) for name, sizes in wording.memory_rows(plan.memory)]
    return table(headers, rows, caption="Memory by device", right=range(1, len(headers)))


def _candidates(plan: Plan) -> str:
    names = [one.device for one in plan.memory]
    rows = [
        (
            str(one.ubatch),
            "streamed to a GPU" if one.op_offload else "used where they are",
            format_number(one.decode_tokens_per_second),
            format_number(one.prefill_tokens_per_second),
            *(format_bytes(one.compute_bytes.get(name, 0)) for name in names),
        )
        for one in plan.candidates
    ]
    headers = ["ubatch", "host weights in prefill", "decode", "prefill", *(f"compute on {name}" for name in names)]
    caption = "Estimates before anything was placed, by which the ubatch was chosen; tokens a second"
    return table(headers, rows, caption=caption, right=range(2, len(headers)))


def _items(lines: Iterable[str]) -> str:
    return "".join(f"<li>{text(harmless(line))}</li>" for line in lines)


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    """A list of settings; overrides take whole lines."""
    found = []
    for name, value in rows:
        if name == "override":
            pattern, arrow, device = value.rpartition("  →  ")
            found.append(f'<dd class="override"><code>{text(pattern)}</code><span>{text(arrow + device)}</span></dd>')
        else:
            found.append(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>")
    return "".join(found)
