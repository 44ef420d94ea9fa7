"""Charts as inline SVG, whose colours are those of the page around them."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

_WIDTH, _HEIGHT = 420, 260  # of a line chart, in units that the page scales
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 22, 34  # margins
_HUES = 4
_MOST_POINTS = 120  # that are marked and tell their value
_LONGEST = 20  # letters of a class name beside a heat map


def line_chart(
    title: str,
    x_title: str,
    x: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    *,
    log: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Draws lines over a common axis.

    Args:
        title: plain text.
        x_title: plain text.
        x: at least one value, rising.
        series: name to one value for each of `x`; None and numbers that are not finite (or, with
            `log`, not above 0) are gaps.
        log: whether the y axis is logarithmic.
        marks: (x, text) of vertical lines.

    Returns:
        HTML, a figure.
    """
    lines = {name: _drawable(values, log) for name, values in series.items()}
    finite = [value for values in lines.values() for value in values if value is not None]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if log and finite:
        # At least from one tick to the next, so that both ends have a number.
        low, high = _log_floor(low), _log_ceiling(high)
    ticks = _log_ticks(low, high) if log and finite else _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    place_x = _scale(x[0], x[-1], _LEFT, _WIDTH - _RIGHT)
    scale = math.log if log and finite else float
    linear_y = _scale(scale(low), scale(high), _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        f'<text x="{_LEFT}" y="14" font-weight="600">{html.escape(title)}</text>',
    ]
    for tick in ticks:
        y = linear_y(scale(tick))
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, "var(--line)"))
        parts.append(_text(_LEFT - 6, y + 4, f"{tick:.4g}", "end"))
    for tick in _ticks(x[0], x[-1]) if len(x) > 1 else x:
        if x[0] <= tick <= x[-1] and tick == round(tick):
            parts.append(_text(place_x(tick), _HEIGHT - _BOTTOM + 15, f"{tick:g}", "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, x_title, "middle"))
    for position, text in marks:
        place = place_x(position)
        dash = ' stroke-dasharray="3 3"'
        parts.append(_line(place, _TOP, place, _HEIGHT - _BOTTOM, "var(--soft)", dash))
        parts.append(_text(place + 3, _TOP + 10, text, "start"))
    for index, (name, values) in enumerate(lines.items()):
        color = f"var(--c{index % _HUES})"
        places = [
            None if value is None else (place_x(at), linear_y(scale(value)))
            for at, value in zip(x, values, strict=True)
        ]
        parts.append(f'<path d="{_path(places)}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        for at, value, place in zip(x, values, places, strict=True):
            if place and len(x) <= _MOST_POINTS:
                told = html.escape(f"{name} {value:.4g} at {at:g}")
                parts.append(
                    f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="2.5" fill="{color}">'
                    f"<title>{told}</title></circle>"
                )
    # A single line needs no name.
    keys = _keys(["" if name == title else name for name in lines])
    return "\n".join(["<figure>", *parts, f"</svg>\n<figcaption>{keys}</figcaption></figure>"])


def scatter(
    title: str,
    x_title: str,
    y_title: str,
    series: Mapping[str, Sequence[tuple[float, float, str]]],
    *,
    joined: bool = False,
) -> str:
    """Draws points, each series with x values of its own.

    Args:
        title: plain text.
        x_title: plain text.
        y_title: plain text.
        series: name to (x, y, what a pointer over the point is told); finite numbers, at least one
            point in all.
        joined: whether lines join the points of a series, in their order.

    Returns:
        HTML, a figure.
    """
    points = [point for members in series.values() for point in members]
    x_ticks = _ticks(min(x for x, _, _ in points), max(x for x, _, _ in points))
    y_ticks = _ticks(min(y for _, y, _ in points), max(y for _, y, _ in points))
    place_x = _scale(x_ticks[0], x_ticks[-1], _LEFT, _WIDTH - _RIGHT)
    place_y = _scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        f'<text x="{_LEFT}" y="14" font-weight="600">{html.escape(title)}</text>',
    ]
    for tick in y_ticks:
        y = place_y(tick)
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, "var(--line)"))
        parts.append(_text(_LEFT - 6, y + 4, f"{tick:.4g}", "end"))
    for tick in x_ticks:
        parts.append(_text(place_x(tick), _HEIGHT - _BOTTOM + 15, f"{tick:.4g}", "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, x_title, "middle"))
    for index, members in enumerate(series.values()):
        color = f"var(--c{index % _HUES})"
        places = [(place_x(x), place_y(y)) for x, y, _ in members]
        if joined:
            parts.append(
                f'<path d="{_path(places)}" fill="none" stroke="{color}" stroke-width="1.8"/>'
            )
        for (x, y), (_, _, told) in zip(places, members, strict=True):
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}">'
                f"<title>{html.escape(told)}</title></circle>"
            )
    caption = f"<figcaption>{html.escape(y_title)}: {_keys(list(series))}</figcaption>"
    return "\n".join(["<figure>", *parts, f"</svg>\n{caption}</figure>"])


def heat_map(matrix: np.ndarray, names: Sequence[str]) -> str:
    """Draws a confusion matrix: the stronger a cell, the larger its share of the row.

    Args:
        matrix: int (classes, classes), pictures of the row's class taken for the column's.
        names: of the classes, plain text.

    Returns:
        HTML, an SVG that is as wide as it needs to be.
    """
    count = len(names)
    cell = 34 if count <= 12 else 22 if count <= 30 else 15
    short = [n if len(n) <= _LONGEST else n[: _LONGEST - 1] + "…" for n in names]
    margin = 12 + 7 * max(map(len, short))
    size = margin + cell * count + 4
    parts = [
        f'<svg viewBox="0 0 {size} {size}" style="width:{size}px;max-width:none" role="img"'
        ' aria-label="confusion matrix">',
        f'<rect x="{margin}" y="{margin}" width="{cell * count}" height="{cell * count}"'
        ' fill="var(--panel)"/>',
    ]
    for index, name in enumerate(short):
        place = margin + cell * (index + 0.5) + 4
        parts.append(_text(margin - 6, place, name, "end"))
        turned = f' transform="rotate(-90 {place:.1f} {margin - 6})"'
        parts.append(_text(place, margin - 6, name, "start", turned))
    totals = matrix.sum(1)
    for row, column in np.argwhere(matrix).tolist():
        value = int(matrix[row, column])
        share = value / totals[row]
        color = "var(--good)" if row == column else "var(--bad)"
        x, y = margin + cell * column, margin + cell * row
        told = f"{names[row]} taken for {names[column]}: {value} ({share:.1%})"
        parts.append(
            f'<rect x="{x + 0.5}" y="{y + 0.5}" width="{cell - 1}" height="{cell - 1}"'
            f' fill="{color}" fill-opacity="{0.12 + 0.88 * share:.2f}">'
            f"<title>{html.escape(told)}</title></rect>"
        )
        if cell >= 20:
            dark = ' style="fill:var(--text);pointer-events:none"'
            parts.append(_text(x + cell / 2, y + cell / 2 + 4, str(value), "middle", dark))
    return "\n".join(['<div class="wide">', *parts, "</svg></div>"])


def _keys(names: Sequence[str]) -> str:
    """The colours of series and their names; none for one without a name."""
    return "".join(
        f'<span class="key" style="background:var(--c{index % _HUES})"></span>{html.escape(name)}'
        for index, name in enumerate(names)
        if name
    )


def _drawable(values: Sequence[float | None], log: bool) -> list[float | None]:
    return [
        None if value is None or not math.isfinite(value) or (log and value <= 0) else float(value)
        for value in values
    ]


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers, of which the outer ones enclose the range."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_floor(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= value * 1.0001)


def _log_ceiling(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return min(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * 0.9999)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from low to high, or the powers alone where they are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(powers) > 4 else (1, 2, 5)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [t for t in ticks if low * 0.9999 <= t <= high * 1.0001] or [low, high]


def _scale(low: float, high: float, start: float, end: float):
    """The straight line that takes low to start and high to end."""
    span = (high - low) or 1.0
    middle = 0.5 if high == low else 0.0  # a single value stands in the middle
    return lambda value: start + (end - start) * ((value - low) / span + middle)


def _path(places: Sequence[tuple[float, float] | None]) -> str:
    commands, pen_up = [], True
    for place in places:
        if place is not None:
            commands.append(f"{'M' if pen_up else 'L'}{place[0]:.1f} {place[1]:.1f}")
        pen_up = place is None
    return " ".join(commands)


def _line(x1, y1, x2, y2, color: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"{more}/>'


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{html.escape(text)}</text>'
