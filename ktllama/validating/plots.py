"""The two plots of a validation as SVG: error against layer by device, and KL divergence against position."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ktllama import devices
from ktllama.validating.layers import flipped_positions
from ktllama.validating.report import Report, number

_WIDTH, _HEIGHT = 1080, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 20, 22, 40

#: What is smaller is drawn here: a logarithm has no zero.
_FLOOR = 1e-9
_CEILING = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axes:
    """From (index, value) to pixels; values are on a logarithmic scale of whole decades."""

    n_columns: int
    lowest: int
    highest: int

    def x(self, column: float) -> float:
        """The middle of a column."""
        return _LEFT + (column + 0.5) * (_WIDTH - _LEFT - _RIGHT) / self.n_columns

    def y(self, value: float) -> float:
        """The height of a value."""
        decade = min(max(math.log10(_clamped(value)), self.lowest), self.highest)
        return _TOP + (self.highest - decade) * (_HEIGHT - _TOP - _BOTTOM) / (self.highest - self.lowest)


def device_classes(report: Report) -> dict[str, str]:
    """The CSS class that colours each device of the report; GPUs are numbered in order."""
    names = {name for found in (*report.devices.values(), report.output_devices) for name in found}
    gpus = [name for name in sorted(names, key=devices.order) if name != devices.CPU]
    classes = {name: f"gpu{index % 8}" for index, name in enumerate(gpus)}
    return {**classes, devices.CPU: "cpu"} if devices.CPU in names else classes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """What is drawn for a layer or, last, for the output."""

    label: str
    devices: tuple[str, ...]
    median: float
    worst: float
    own: float
    expected: float


def layer_plot(report: Report) -> str:
    """Every layer's typical error as a dot in its device's colour, up to the worst token's; its own part as a dash."""
    columns = _columns(report)
    classes = device_classes(report)
    drawn = [value for column in columns for value in (column.median, column.worst, column.own, column.expected)]
    axes = _axes(len(columns), drawn)
    points = [(axes.x(index), axes.y(column.median)) for index, column in enumerate(columns)]
    parts = [_grid(axes), _labels(axes, [column.label for column in columns], "layer"), _path(points)]
    parts += _expectations(axes, columns)
    parts += [_dot(axes, index, column, classes) for index, column in enumerate(columns)]
    parts.append(_mark(axes, report, columns))
    return _svg("Relative error of every layer's output, by layer", parts)


def _columns(report: Report) -> list[_Column]:
    columns = [
        _Column(
            label=str(found.layer),
            devices=report.devices[found.layer],
            median=found.median,
            worst=found.worst,
            own=found.median_own,
            expected=report.comparison.expected(found.layer),
        )
        for found in report.layers
    ]
    relative = report.positions.relative
    output = _Column(
        label="out",
        devices=report.output_devices,
        median=float(np.median(relative)),
        worst=float(relative.max()),
        own=float(np.median(report.output)),
        expected=report.comparison.expected(None),
    )
    return [*columns, output]


def _expectations(axes: _Axes, columns: Sequence[_Column]) -> list[str]:
    """A line over every run of columns of which the same is expected."""
    lines = []
    for expected, run in itertools.groupby(range(len(columns)), lambda index: columns[index].expected):
        indices = list(run)
        ends = _edge(axes, indices[0]), _edge(axes, indices[-1] + 1)
        lines.append(_line(axes, expected, f"what a layer may add by itself {number(expected)}", ends))
    return lines


def position_plot(report: Report) -> str:
    """The KL divergence at every position; positions with flipped experts are rings."""
    kl = report.positions.kl.tolist()
    axes = _axes(len(kl), [*kl, report.max_kl])
    flipped = flipped_positions(report.layers, len(kl))
    parts = [_grid(axes), _labels(axes, [str(position) for position in range(len(kl))], "position")]
    parts.append(_line(axes, report.max_kl, f"limit of the mean {number(report.max_kl)}"))
    for position, value in enumerate(kl):
        kind = "flip" if flipped[position] else "kl"
        said = f"position {position}: {number(value)}{', other experts' if flipped[position] else ''}"
        at = f'cx="{axes.x(position):.1f}" cy="{axes.y(value):.1f}"'
        parts.append(f'<circle class="{kind}" {at} r="2.6">{_title(said)}</circle>')
    return _svg("KL divergence by position", parts)


def _clamped(value: float) -> float:
    return min(max(value, _FLOOR), _CEILING) if not math.isnan(value) else _CEILING


def _axes(n_columns: int, values: Sequence[float]) -> _Axes:
    shown = [_clamped(value) for value in values if value > 0] or [1.0]
    lowest, highest = math.floor(math.log10(min(shown))), math.ceil(math.log10(max(shown)))
    return _Axes(n_columns=n_columns, lowest=lowest, highest=max(highest, lowest + 1))


def _grid(axes: _Axes) -> str:
    step = max(1, math.ceil((axes.highest - axes.lowest) / 8))
    lines = []
    for decade in range(axes.lowest, axes.highest + 1, step):
        y = axes.y(10.0**decade)
        lines.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        power = f'10<tspan class="power" dy="-5">{decade}</tspan>'
        lines.append(f'<text class="tick" x="{_LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{power}</text>')
    return "".join(lines)


def _labels(axes: _Axes, labels: Sequence[str], what: str) -> str:
    wide = (_WIDTH - _LEFT - _RIGHT) / len(labels)
    every = next((n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if n * wide >= 30), 5000)
    last = len(labels) - 1
    shown = [column for column in range(len(labels)) if column % every == 0 and (last - column) * wide >= 30]
    ticks = [
        f'<text class="tick" x="{axes.x(column):.1f}" y="{_HEIGHT - 20}" text-anchor="middle">{labels[column]}</text>'
        for column in [*shown, last]
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return "".join(ticks) + f'<text x="{middle:.1f}" y="{_HEIGHT - 2}" text-anchor="middle">{what}</text>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return f'<path class="trace" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'


def _edge(axes: _Axes, column: int) -> float:
    """Where a column begins."""
    return axes.x(column - 0.5)


def _line(axes: _Axes, value: float, said: str, ends: tuple[float, float] = (_LEFT, _WIDTH - _RIGHT)) -> str:
    """A dashed line, with what it says at its right end."""
    y, (left, right) = axes.y(value), ends
    return (
        f'<line class="limit" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{right:.1f}" y="{y - 6:.1f}" text-anchor="end">{html.escape(said)}</text>'
    )


def _dot(axes: _Axes, index: int, column: _Column, classes: dict[str, str]) -> str:
    x, y = axes.x(index), axes.y(column.median)
    what = "output" if column.label == "out" else f"layer {column.label}"
    said = (
        f"{what} on {' and '.join(column.devices)}: typical token {number(column.median)}, "
        f"worst {number(column.worst)}, its own part {number(column.own)}"
    )
    inside, edge = classes[column.devices[0]], classes[column.devices[-1]]
    own, half = axes.y(column.own), min(6.0, (axes.x(1) - axes.x(0)) * 0.4)
    top = axes.y(column.worst)
    return (
        f'<g>{_title(said)}<line class="whisker s-{inside}" x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{top:.1f}"/>'
        f'<line class="own s-{inside}" x1="{x - half:.1f}" x2="{x + half:.1f}" y1="{own:.1f}" y2="{own:.1f}"/>'
        f'<circle class="dot f-{inside} s-{edge}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/></g>'
    )


def _mark(axes: _Axes, report: Report, columns: Sequence[_Column]) -> str:
    """A ring around the own part of the layer that goes wrong first."""
    found = report.suspect
    if found is None or not found.certain:
        return ""
    label = "out" if found.layer is None else str(found.layer)
    index = next(index for index, column in enumerate(columns) if column.label == label)
    x, y = axes.x(index), axes.y(columns[index].own)
    name = "the output" if found.layer is None else f"layer {found.layer}"
    anchor, side = ("end", -16) if index > len(columns) / 2 else ("start", 16)
    return (
        f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="10"/>'
        f'<text class="blame" x="{x + side:.1f}" y="{y - 10:.1f}" text-anchor="{anchor}">{name} goes wrong first</text>'
    )


def _title(text: str) -> str:
    return f"<title>{html.escape(text)}</title>"


def _svg(label: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
