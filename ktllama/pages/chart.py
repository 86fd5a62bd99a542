"""Line charts in HTML that fit any width: what scales is a share of the chart, text is not scaled.

Every dot says its numbers to whoever points at it, walks to it with the keyboard or listens. Colours are those of the
page's style: line ``n`` has the class ``line-n``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ktllama.pages.markup import said, text

#: A dot; the one that everything is compared with; and one where there is nothing to show but why.
Kind = Literal["plain", "here", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A point of a line, ``x`` and ``y`` as shares of the chart from its lower left; ``title`` and ``pairs`` are said
    of it."""

    x: float
    y: float
    title: str
    pairs: tuple[tuple[str, str], ...]
    kind: Kind = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Dots with a line through them, refused ones left out. ``dashed`` lines have no dots of their own."""

    name: str
    dots: tuple[Dot, ...]
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A label at a share of an axis."""

    at: float
    label: str


def chart(
    title: str, lines: Sequence[Line], *, x: Sequence[Tick], y: Sequence[Tick], x_title: str, y_title: str
) -> str:
    """The chart with its legend. ``title`` is what it is called for those who do not see it."""
    rules = "".join(_rule(tick.at) for tick in y)
    curves = "".join(_curve(number, line) for number, line in enumerate(lines))
    dots = "".join(_dot(number, dot) for number, line in enumerate(lines) if not line.dashed for dot in line.dots)
    labels = "".join(f'<span class="y" style="bottom:{_percent(tick.at)}">{text(tick.label)}</span>' for tick in y)
    labels += "".join(f'<span class="x" style="left:{_percent(tick.at)}">{text(tick.label)}</span>' for tick in x)
    return (
        f'<div class="legend">{"".join(_entries(lines))}</div>'
        f'<div class="chart" role="group" aria-label="{text(title)}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{rules}{curves}</svg>'
        f'<span class="unit">{text(y_title)}</span>{labels}{dots}</div><p class="axis">{text(x_title)}</p>'
    )


def shares(values: Sequence[float]) -> list[float]:
    """Where values lie on a logarithmic axis with a little room at both ends."""
    low, high = math.log(min(values)), math.log(max(values))
    if high == low:
        return [0.5] * len(values)
    edge = 0.04
    return [edge + (1 - 2 * edge) * (math.log(value) - low) / (high - low) for value in values]


def linear_ticks(highest: float, n: int = 4) -> tuple[float, ...]:
    """From 0 in about ``n`` round steps to the first that is not below ``highest``."""
    rough = max(highest, 1e-9) / n
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * (1 - 1e-9))
    return tuple(step * number for number in range(math.ceil(highest / step - 1e-9) + 1))


def _entries(lines: Sequence[Line]) -> Iterator[str]:
    for number, line in enumerate(lines):
        mark = f"line-{number}{' dashed' if line.dashed else ''}"
        yield f'<span><svg viewBox="0 0 22 12"><path class="curve {mark}" d="M0 6H22"/></svg>{text(line.name)}</span>'
    kinds = {dot.kind for line in lines for dot in line.dots}
    if "here" in kinds:
        yield '<span><i class="dot here"></i>this plan</span>'
    if "refused" in kinds:
        yield '<span><i class="dot refused"></i>does not fit</span>'


def _rule(at: float) -> str:
    y = f"{100 - 100 * at:.2f}"
    return f'<line class="rule" x1="0" x2="100" y1="{y}" y2="{y}"/>'


def _curve(number: int, line: Line) -> str:
    points = [f"{100 * dot.x:.2f} {100 - 100 * dot.y:.2f}" for dot in line.dots if dot.kind != "refused"]
    if len(points) < 2:
        return ""
    return f'<path class="curve line-{number}{" dashed" if line.dashed else ""}" d="M{"L".join(points)}"/>'


def _dot(number: int, dot: Dot) -> str:
    at = f"left:{_percent(dot.x)};bottom:{_percent(dot.y)}"
    return f'<i class="dot {dot.kind} line-{number}" style="{at}" {said(dot.title, dot.pairs)}></i>'


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
