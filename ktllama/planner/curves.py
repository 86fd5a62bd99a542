"""A survey as charts, sentences and tables: tokens a second against cards, and against contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ktllama.pages.chart import Dot, Line, Tick, chart, linear_ticks, shares
from ktllama.pages.markup import table
from ktllama.planner.survey import Outcome, Point, Refusal, Survey
from ktllama.units import format_bytes, format_number

_GIB = 1 << 30

#: The card that is spoken of where there is none yet.
_USUAL_CARD = 24 * _GIB

#: A smaller difference is none: the model of cost is not that exact.
_WORTH_SAYING = 0.01

#: Labels of an axis that are nearer to each other than this share of it would touch.
_APART = 0.055

_HEADERS = ("decode", "change", "at its start", "prefill", "ubatch")

#: Refused plans of the second line are drawn this much above those of the first.
_STEP = 0.07


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    name: str
    points: tuple[Point, ...]


def card_chart(survey: Survey) -> str:
    """Predicted decode with another card in place of the smallest, and with one more."""
    return _chart(
        "Predicted tokens a second by the memory of a card",
        _card_series(survey),
        x_title="memory of that card, GiB",
        here=_there(survey),
        label=lambda n_bytes: f"{n_bytes / _GIB:.3g}",
        named=format_bytes,
        base=survey.plan.prediction.decode_tokens_per_second,
    )


def context_chart(survey: Survey) -> str:
    """Predicted decode by context, half full and at its start."""
    return _chart(
        "Predicted tokens a second by context",
        [_Series(name="context half full", points=survey.contexts)],
        x_title="context, tokens",
        here=survey.plan.context.n_ctx,
        label=_thousands,
        named=lambda n_tokens: f"{n_tokens} tokens",
        base=survey.plan.prediction.decode_tokens_per_second,
        start="at its start",
    )


def card_sentences(survey: Survey) -> Iterator[str]:
    """What another card would do, in words."""
    base, there = survey.plan.prediction.decode_tokens_per_second, _there(survey)
    larger = [point for point in survey.replaced if there is not None and point.amount > there]
    best = max((point.tokens_per_second or 0.0 for point in (*survey.added, *larger)), default=0.0)
    if best < base * (1 + _WORTH_SAYING):
        yield "No card, neither a larger one nor one more, makes decoding noticeably faster."
        return
    if survey.added:
        like = _USUAL_CARD if there is None else there
        added = min(survey.added, key=lambda point: abs(point.amount - like))
        what = "A card of" if there is None else "One more card of"
        yield f"{what} {format_bytes(added.amount)}: {_speed_and_change(added, base)}."
    for point in dict.fromkeys((*larger[:1], *larger[-1:])):
        place = f"in place of {survey.replaced_name}"
        yield f"A card of {format_bytes(point.amount)} {place}: {_speed_and_change(point, base)}."


def context_sentences(survey: Survey) -> Iterator[str]:
    """What a longer context costs, in words."""
    here, base = survey.plan.context.n_ctx, survey.plan.prediction.decode_tokens_per_second
    fitting = [point for point in survey.contexts if isinstance(point.found, Outcome)]
    longest = fitting[-1]
    if longest.amount > here and longest.tokens_per_second is not None:
        yield (
            f"{longest.amount} tokens instead of {here}: {_speed_and_change(longest, base)} with half of it full; "
            f"{_start(longest)} at its start."
        )
    refused = [point for point in survey.contexts if isinstance(point.found, Refusal) and point.amount > here]
    if refused:
        yield f"{refused[0].amount} tokens do not fit: {_refused(refused[0])}."
    if not refused and longest.amount == here:
        yield "The model was not trained for a longer context."


def card_table(survey: Survey) -> str:
    """Every number of the cards' chart."""
    base, there = survey.plan.prediction.decode_tokens_per_second, _there(survey)
    rows = []
    for number, series in enumerate(_card_series(survey)):
        for point in series.points:
            mark = ", this plan" if number == 0 and point.amount == there else ""
            rows.append((f"{format_bytes(point.amount)} {series.name}{mark}", *_cells(point, base)))
    return table(("card", *_HEADERS), rows, caption="Tokens a second, predicted", right=range(1, len(_HEADERS) + 1))


def context_table(survey: Survey) -> str:
    """Every number of the contexts' chart."""
    base, here = survey.plan.prediction.decode_tokens_per_second, survey.plan.context.n_ctx
    rows = [
        (f"{point.amount}{', this plan' if point.amount == here else ''}", *_cells(point, base))
        for point in survey.contexts
    ]
    return table(("context", *_HEADERS), rows, caption="Tokens a second, predicted", right=range(1, len(_HEADERS) + 1))


def _card_series(survey: Survey) -> list[_Series]:
    beside = {0: "as the only card", 1: "beside it"}.get(len(survey.plan.machine.gpus), "beside them")
    both = (
        _Series(name=f"in place of {survey.replaced_name}", points=survey.replaced),
        _Series(name=beside, points=survey.added),
    )
    return [one for one in both if one.points]


def _there(survey: Survey) -> int | None:
    """The memory of the card that may be replaced."""
    sizes = {gpu.name: gpu.memory_bytes for gpu in survey.plan.machine.gpus}
    return sizes.get(survey.replaced_name or "")


def _chart(
    title: str,
    series: Sequence[_Series],
    *,
    x_title: str,
    here: int | None,
    label: Callable[[int], str],
    named: Callable[[int], str],
    base: float,
    start: str | None = None,
) -> str:
    amounts = sorted({point.amount for one in series for point in one.points})
    at = dict(zip(amounts, shares(amounts), strict=True))
    outcomes = [point.found for one in series for point in one.points if isinstance(point.found, Outcome)]
    speeds = [base, *(one.prediction.decode_tokens_per_second for one in outcomes)]
    speeds += [one.start_tokens_per_second for one in outcomes if start is not None]
    ticks = linear_ticks(max(speeds))
    lines = [
        Line(
            name=one.name,
            dots=tuple(
                _dot(point, number, at[point.amount], ticks[-1], f"{named(point.amount)}, {one.name}", base,
                     here=point.amount == here and number == 0)
                for point in one.points
            ),
        )
        for number, one in enumerate(series)
    ]  # fmt: skip
    if start is not None:
        lines.append(Line(name=start, dots=tuple(_start_dots(series[0].points, at, ticks[-1])), dashed=True))
    return chart(
        title,
        lines,
        x=[Tick(at=at[amount], label=label(amount)) for amount in _kept(amounts, at, here)],
        y=[Tick(at=tick / ticks[-1], label=f"{tick:g}") for tick in ticks],
        x_title=x_title,
        y_title="tokens/s",
    )


def _kept(amounts: Sequence[int], at: dict[int, float], here: int | None) -> list[int]:
    """The amounts that have room for a label; the plan's own comes first."""
    kept: list[int] = [here] if here in at else []
    for amount in amounts:
        if all(abs(at[amount] - at[other]) >= _APART for other in kept):
            kept.append(amount)
    return kept


def _dot(point: Point, number: int, x: float, highest: float, title: str, base: float, *, here: bool) -> Dot:
    found = point.found
    if isinstance(found, Refusal):
        pairs: tuple[tuple[str, str], ...] = (("", found.reason),)
        return Dot(x=x, y=number * _STEP, title=f"{title}: does not fit", pairs=pairs, kind="refused")
    speed = found.prediction.decode_tokens_per_second
    pairs = (
        ("decode", f"{format_number(speed)} tokens/s{'' if here else f', {_change(speed, base)}'}"),
        ("at its start", f"{format_number(found.start_tokens_per_second)} tokens/s"),
        ("prefill", f"{format_number(found.prediction.prefill_tokens_per_second)} tokens/s"),
        ("ubatch", _ubatch(point)),
        ("read of host memory", f"{format_bytes(round(found.prediction.host_read_bytes))} a token"),
    )
    return Dot(x=x, y=speed / highest, title=title, pairs=pairs, kind="here" if here else "plain")


def _start_dots(points: Sequence[Point], at: dict[int, float], highest: float) -> Iterator[Dot]:
    for point in points:
        if isinstance(point.found, Outcome):
            yield Dot(x=at[point.amount], y=point.found.start_tokens_per_second / highest, title="", pairs=())


def _cells(point: Point, base: float) -> tuple[str, ...]:
    """What :data:`_HEADERS` name."""
    if isinstance(point.found, Refusal):
        return ("does not fit", _refused(point), "", "", "")
    said = point.found.prediction
    speed = said.decode_tokens_per_second
    return (
        format_number(speed),
        _change(speed, base),
        _start(point),
        format_number(said.prefill_tokens_per_second),
        _ubatch(point),
    )


def _refused(point: Point) -> str:
    assert isinstance(point.found, Refusal)
    missing = point.found.missing_bytes
    return f"{format_bytes(missing)} of host memory too little" if missing else point.found.reason


def _speed_and_change(point: Point, base: float) -> str:
    speed = point.tokens_per_second
    return "does not fit" if speed is None else f"{format_number(speed)} tokens/s, {_change(speed, base)}"


def _start(point: Point) -> str:
    return format_number(point.found.start_tokens_per_second) if isinstance(point.found, Outcome) else ""


def _ubatch(point: Point) -> str:
    if isinstance(point.found, Refusal):
        return ""
    return f"{point.found.ubatch}{', streamed' if point.found.op_offload else ''}"


def _change(speed: float, base: float) -> str:
    """``5% faster``; small differences are none."""
    ratio = speed / base
    if ratio >= 2:
        return f"{ratio:.1f} times as fast"
    if abs(ratio - 1) < _WORTH_SAYING / 2:
        return "as fast"
    return f"{abs(ratio - 1):.0%} {'faster' if ratio > 1 else 'slower'}"


def _thousands(n_tokens: int) -> str:
    return f"{n_tokens // 1024}k" if n_tokens % 1024 == 0 else str(n_tokens)
