"""Curves of training runs, and the schedules of a run before it is started."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from efficientnet_tf import stages as stages_lib
from efficientnet_tf.config import Config
from efficientnet_tf.figures import drawing
from efficientnet_tf.page.run import boundaries
from efficientnet_tf.stages import Stage
from efficientnet_tf.train import setup
from efficientnet_tf.train.average import decay_at
from efficientnet_tf.train.report import METRICS
from efficientnet_tf.train.schedule import WarmupSchedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 2000  # of a curve

History = Sequence[Mapping[str, float]]


def read_history(run: str | os.PathLike) -> list[dict[str, float]]:
    """Reads what a run recorded, a mapping per epoch; values that were not finite are nan.

    Args:
        run: its folder, or its metrics.jsonl.

    Raises:
        ValueError: it has no whole epoch, or is something else.
        OSError: it cannot be read.
    """
    path = Path(run)
    if path.is_dir():
        path /= METRICS[0]
        if not path.is_file():
            raise ValueError(f"{run} is no run, or has not finished an epoch: no {METRICS[0]}")
    history = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            history.append({key: math.nan if v is None else float(v) for key, v in row.items()})
        except (ValueError, TypeError, AttributeError):
            if number == len(lines) and history:
                break  # is being written
            raise ValueError(f"{path}, line {number}: not the metrics of an epoch") from None
    if not history or "epoch" not in history[0]:
        raise ValueError(f"{path}: not the metrics of a run")
    return history


def curves(runs: Mapping[str, History]) -> Figure:
    """Draws the curves of one or more runs over each other.

    Args:
        runs: name to `read_history`'s.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are more runs than colours.
    """
    if not 1 <= len(runs) <= len(drawing.COLORS):
        raise ValueError(
            f"From 1 to {len(drawing.COLORS)} runs can be told apart. Received: {len(runs)}"
        )
    sizes = {row.get("image_size") for history in runs.values() for row in history}
    panels: list[tuple[str, str, bool, list[tuple[str, str]]]] = [
        ("loss", "nats", True, [("train_loss", ":"), ("validation_loss", "-"), ("ema_loss", "--")]),
        ("accuracy", "share", False, [("validation_accuracy", "-"), ("ema_accuracy", "--")]),
        ("learning rate", "per step", False, [("learning_rate", "-")]),
    ]
    if len(sizes) > 1:
        panels.append(("training pictures", "px", False, [("image_size", "steps")]))
    columns = 2
    rows = -(-len(panels) // columns)
    figure = drawing.new(5 * columns, 3.1 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, unit, log, lines) in zip(grid.flat, panels, strict=False):
        for color, history in zip(drawing.COLORS, runs.values(), strict=False):
            _draw_run(axes, history, lines, color)
        if log:
            axes.set_yscale("log")
            _plain_ticks(axes)
        axes.set_title(f"{title} ({unit})", fontsize=10, loc="left", color=drawing.TEXT)
        axes.set_xlabel("epoch", fontsize=9, color=drawing.TEXT)
        drawing.tidy(axes)
    _legend(figure, runs)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.42 / figure.get_figheight()))
    return figure


def _draw_run(axes, history: History, lines, color: str) -> None:
    epochs = [row["epoch"] for row in history]
    for name, style in lines:
        values = [row.get(name, math.nan) for row in history]
        if np.isnan(values).all():
            continue
        if style == "steps":
            axes.step(epochs, values, where="mid", color=color, lw=1.6)
        else:
            mark = "." if len(epochs) == 1 else None
            axes.plot(epochs, values, style, color=color, lw=1.5, marker=mark)
    for place, _ in boundaries(history):
        axes.axvline(place, color=color, lw=0.6, alpha=0.35)


def _plain_ticks(axes) -> None:
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()


def _legend(figure, runs: Mapping[str, History]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, lw=3, label=drawing.shortened(name, 40))
        for color, name in zip(drawing.COLORS, runs, strict=False)
    ]
    styles = {":": "training", "-": "validation", "--": "validation, moving average"}
    with_average = any("ema_loss" in row for history in runs.values() for row in history)
    for style, name in styles.items():
        if style != "--" or with_average:
            handles.append(Line2D([], [], color=drawing.SOFT, ls=style, lw=1.5, label=name))
    figure.legend(
        handles=handles, loc="upper left", ncols=6, fontsize=8.5, frameon=False,
        labelcolor=drawing.TEXT,
    )  # fmt: skip


def schedules(config: Config, pictures: int) -> Figure:
    """Draws what changes in the course of a run, computed by the training's own code.

    Args:
        config: of the run.
        pictures: in its training split.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the batch size is chosen when training starts, or the numbers do not fit.
    """
    if pictures < 1:
        raise ValueError(f"There must be pictures to train on. Received: pictures={pictures}")
    steps, epochs = setup.length(config, pictures)
    found = stages_lib.expand(config, epochs)
    panels = _panels(config, found, steps, epochs)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = drawing.new(3.9 * columns, 2.3 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, draw) in zip(grid.flat, panels.items(), strict=False):
        draw(axes)
        axes.set_title(title, fontsize=10, loc="left", color=drawing.TEXT)
        axes.set_xlim(0, epochs)
        axes.set_xlabel("epochs", fontsize=8.5, color=drawing.TEXT)
        drawing.tidy(axes)
        axes.grid(visible=False, axis="x")
        for stage in found[1:]:
            axes.axvline(stage.first_epoch - 1, color=drawing.SOFT, lw=0.6, ls=":")
    told = f"{epochs} epochs of {steps:,} steps, {config.batch_size:,} pictures each"
    figure.text(0.01, 1 - 0.2 / figure.get_figheight(), told, va="center", fontsize=9.5)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.34 / figure.get_figheight()))
    return figure


def values(config: Config, steps: int, epochs: int, at: np.ndarray) -> dict[str, np.ndarray]:
    """What is computed for each step.

    Args:
        config: of the run.
        steps: of an epoch.
        epochs: of the run.
        at: steps, counted from 0.

    Returns:
        "learning rate" and, where the run has a moving average, "its decay", as long as `at`.
    """
    schedule = WarmupSchedule(config.train, config.scaled_learning_rate, steps, epochs)
    found = {"learning rate": np.asarray(schedule(at))}
    if config.train.ema_decay:
        found["its decay"] = np.asarray(decay_at(config.train.ema_decay, at + 1))
    return found


def _panels(config: Config, found: Sequence[Stage], steps: int, epochs: int):
    """Title to a function that draws on axes."""
    total = steps * epochs
    # The first ones are dense: there the rate rises, and the average's decay does.
    at = (
        np.unique(np.r_[np.geomspace(1, total, 400), np.linspace(1, total, _POINTS)].astype(int))
        - 1
    )
    computed = values(config, steps, epochs, at)
    panels: dict[str, Callable] = {
        "learning rate": lambda axes: axes.plot(
            at / steps, computed["learning rate"], color=drawing.COLORS[0], lw=1.6
        )
    }
    if "its decay" in computed:

        def average(axes):
            left = 1 - computed["its decay"]
            axes.plot(at / steps, left, color=drawing.COLORS[2], lw=1.6)
            axes.set_yscale("log")
            axes.minorticks_off()

        panels["moving average: share of the new weights"] = average
    fields = {
        "training pictures, px": "image_size",
        "dropout": "dropout_rate",
        "drop connect (last block)": "drop_connect_rate",
        "magnitude of RandAugment": "magnitude",
        "mixup, alpha": "mixup",
        "cutmix, alpha": "cutmix",
    }
    for title, field in fields.items():
        row = [getattr(stage, field) for stage in found]
        if any(row):
            panels[title] = lambda axes, row=row: _stairs(axes, found, row)
    return panels


def _stairs(axes, found: Sequence[Stage], row: Sequence[float]) -> None:
    edges = [0, *(stage.last_epoch for stage in found)]
    axes.stairs(row, edges, baseline=None, color=drawing.COLORS[1], lw=1.8)
    for stage, value in zip(found, row, strict=True):
        middle = (stage.first_epoch - 1 + stage.last_epoch) / 2
        axes.annotate(
            f"{value:.3g}", (middle, value), (0, 3), textcoords="offset points", ha="center",
            fontsize=8, color=drawing.TEXT,
        )  # fmt: skip
    axes.set_ylim(0, max(row) * 1.25)
