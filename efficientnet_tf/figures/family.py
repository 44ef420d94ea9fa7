"""The papers' figures of accuracy against size and work (V1 Fig. 1 and 5, V2 Fig. 5).

Parameters and multiply-adds of our networks are counted, accuracies are what the publishers report
(`weights.registry`), and other networks are as the papers quote them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from efficientnet_tf.arch.complexity import count
from efficientnet_tf.arch.published import PEERS, Reported
from efficientnet_tf.figures import drawing
from efficientnet_tf.weights import registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# fmt: off
# Name of the curve: variants, and the tag of the weights whose accuracy is meant.
CURVES = {
    "V1": ([f"efficientnet-b{n}" for n in range(8)], "imagenet"),
    "V2": ([f"efficientnetv2-{n}" for n in ("s", "m", "l")], "imagenet"),
    "V2, ImageNet-21k": (
        [f"efficientnetv2-{n}" for n in ("s", "m", "l", "xl")],
        "imagenet21k-ft1k",
    ),
    "V2-B": ([f"efficientnetv2-b{n}" for n in range(4)], "imagenet"),
}
# fmt: on
_MARKERS = {"V1": "o", "V2": "s", "V2, ImageNet-21k": "^", "V2-B": "D"}


def points(curve: str) -> list[Reported]:
    """The networks of one of `CURVES`, counted at the size of their evaluation."""
    variants, tag = CURVES[curve]
    found = []
    for variant in variants:
        record = registry.find(variant, tag)
        if record.top1 is None:
            raise ValueError(f"No accuracy is reported for {variant} with {tag!r}")
        total = count(variant, record.resolution).total
        name = variant.removeprefix("efficientnet").removeprefix("v2").removeprefix("-").upper()
        found.append(Reported(name, total.trainable / 1e6, total.macs / 1e9, record.top1))
    return found


def family() -> Figure:
    """Draws four panels: V1 among its peers above, V2 and V1 below; parameters, multiply-adds.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = drawing.new(11.5, 9.6)
    panels = figure.subplots(2, 2, sharey="row")
    every = {name: points(name) for name in CURVES}
    labels = []
    for row, curves, peers in zip(panels, ({"V1": every["V1"]}, every), (PEERS, ()), strict=True):
        for axes, value in zip(row, ("params", "flops"), strict=True):
            labels.append((axes, _panel(axes, value, curves, peers)))
    panels[0][0].set_title("EfficientNet and its peers (V1 Fig. 1)", fontsize=10, loc="left")
    panels[0][1].set_title("the same, by multiply-adds (V1 Fig. 5)", fontsize=10, loc="left")
    panels[1][0].set_title("EfficientNetV2 (V2 Fig. 5)", fontsize=10, loc="left")
    panels[1][1].set_title("the same, by multiply-adds", fontsize=10, loc="left")
    figure.subplots_adjust(left=0.06, right=0.99, top=0.96, bottom=0.06, wspace=0.06, hspace=0.22)
    for axes, names in labels:
        drawing.label_points(axes, names)
    return figure


def _panel(
    axes, value: str, curves: dict[str, list[Reported]], peers: tuple[Reported, ...]
) -> list:
    axes.set_xscale("log")
    labels = []
    for color, (name, row) in zip(drawing.COLORS, curves.items(), strict=False):
        xs = [getattr(point, value) for point in row]
        ys = [point.top1 for point in row]
        axes.plot(xs, ys, color=color, marker=_MARKERS[name], ms=5, lw=1.6, label=name)
        labels += [(x, y, point.network, color) for x, y, point in zip(xs, ys, row, strict=True)]
    known = [point for point in peers if getattr(point, value) is not None]
    if known:
        xs, ys = [getattr(p, value) for p in known], [p.top1 for p in known]
        axes.plot(xs, ys, "x", color=drawing.SOFT, ms=5, label="others (V1 Table 2)")
        labels += [(x, y, p.network, drawing.SOFT) for x, y, p in zip(xs, ys, known, strict=True)]
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.08, high * 1.25)
    unit = {"params": "parameters, millions", "flops": "multiply-adds, billions"}[value]
    axes.set_xlabel(unit, color=drawing.TEXT, fontsize=9)
    if axes.get_subplotspec().is_first_col():
        axes.set_ylabel("ImageNet top-1, %, as reported", color=drawing.TEXT, fontsize=9)
    ticks = [n for n in (0.3, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low <= n <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    drawing.tidy(axes)
    axes.legend(
        loc="upper left" if known else "lower right",
        fontsize=8,
        frameon=False,
        labelcolor=drawing.TEXT,
    )
    return labels
