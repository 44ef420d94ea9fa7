"""What all figures share: paper, colours, labels that do not cover each other, writing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from efficientnet_tf import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Can be told apart by colour-blind readers, on white (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
TEXT, SOFT = "#1d2430", "#66707f"
ENDINGS = (".png", ".pdf", ".svg")
_DPI = 120


def check_path(path: str | os.PathLike) -> None:
    """Refuses, before anything is computed, a path that no figure can be written to.

    Raises:
        ValueError: the ending is none of `ENDINGS`.
        OSError: there is no such folder, or it cannot be written to.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise ValueError(f"A figure's name must end in {', '.join(ENDINGS)}. Received: {path}")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.absolute().parent}")
    writing.check_writable(path.absolute().parent)


def new(width: float, height: float) -> Figure:
    """An empty figure of a size in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        # Not pyplot, which holds global state and may need X.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            'Figures are drawn by matplotlib: pip install "efficientnet_tf[train]"'
        ) from None
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)  # measures texts
    return figure


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure whole or not at all; its kind is the path's ending.

    Raises:
        OSError: it cannot be written.
    """
    with writing.whole(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:], dpi=_DPI)


def shortened(text: str, length: int) -> str:
    """The text, or its start and its end where it is longer."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def tidy(axes) -> None:
    """Takes off what says nothing: upper and right frame; a soft grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(colors=SOFT, labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def label_points(axes, points: Sequence[tuple[float, float, str, str]], size: float = 7) -> None:
    """Writes names beside points, each where it covers no other name, no point and no line.

    Args:
        axes: with its limits set and its lines drawn.
        points: (x, y, name, colour); the first ones choose first.
        size: of the letters, points.
    """
    figure = axes.figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    marks = [axes.transData.transform((x, y)) for x, y, _, _ in points]
    for line in axes.lines:
        if line.get_linestyle() != "None":
            marks += _along(axes.transData.transform(line.get_xydata()))
    taken: list = []
    inside = axes.get_window_extent(renderer)
    for x, y, name, color in points:
        best = None
        for offset, alignment in _places():
            text = axes.annotate(
                name,
                (x, y),
                offset,
                textcoords="offset points",
                fontsize=size,
                color=color,
                ha=alignment[0],
                va=alignment[1],
            )
            box = text.get_window_extent(renderer)
            wrong = sum(box.overlaps(other) for other in taken)
            wrong += sum(box.padded(2).contains(*mark) for mark in marks)
            wrong += not (inside.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y0 >= inside.y0)
            if best is None or wrong < best[0]:
                if best is not None:
                    best[1].remove()
                best = (wrong, text, box)
            else:
                text.remove()
            if best[0] == 0:
                break
        if best is not None:
            taken.append(best[2].padded(1))


def _along(corners) -> list:
    """Places on a line through corners, a few pixels apart."""
    found: list = []
    for start, end in itertools.pairwise(corners):
        count = int(max(abs(end - start)) // 4) + 1
        found += [start + (end - start) * step / count for step in range(count)]
    return found


def _places() -> Iterator[tuple[tuple[float, float], tuple[str, str]]]:
    """Offsets in points, from near to far, with the alignment of the text."""
    for distance in (4, 9, 15):
        yield (distance, 0), ("left", "center")
        yield (-distance, 0), ("right", "center")
        yield (0, distance), ("center", "bottom")
        yield (0, -distance), ("center", "top")
        for x, horizontal in ((distance, "left"), (-distance, "right")):
            for y, vertical in ((distance, "bottom"), (-distance, "top")):
                yield (0.7 * x, 0.7 * y), (horizontal, vertical)
