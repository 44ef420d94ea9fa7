"""What a run shows and leaves behind: progress line, metrics files, curves."""

import csv
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

METRICS = ("metrics.jsonl", "metrics.csv")
_BAR = 24  # characters
_MOST_OFTEN = 0.1  # seconds between two drawings


class Progress:
    """One line that shows how far an epoch is, redrawn on terminals and printed once elsewhere.

    Args:
        label: e.g. "epoch 3/30".
        steps: of the epoch.
        batch_size: pictures per step.
        stream: where it goes; None is standard output.
    """

    def __init__(self, label: str, steps: int, batch_size: int, stream: TextIO | None = None):
        self.steps = steps
        self._label, self._batch_size = label, batch_size
        self._stream = stream or sys.stdout
        self._start = time.perf_counter()
        self._drawn = 0.0
        self._width = 0

    def update(self, step: int, loss: float) -> None:
        """Shows that `step` steps are done, with this mean loss."""
        now = time.perf_counter()
        if not self._stream.isatty() or now - self._drawn < _MOST_OFTEN:
            return
        self._drawn = now
        rate = step * self._batch_size / max(now - self._start, 1e-9)
        left = (self.steps - step) * self._batch_size / max(rate, 1e-9)
        self._write(
            f"{self._bar(step)} {rate:7.0f} images/s  loss {loss:.4f}  {left:.0f} s left", ""
        )

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Shows the epoch's results and ends the line."""
        rate = metrics["images_per_second"]
        shown = [f"{name} {value:.4f}" for name, value in metrics.items() if _is_shown(name)]
        self._write(f"{self._bar(self.steps)} {rate:7.0f} images/s  {'  '.join(shown)}", "\n")

    def _bar(self, step: int) -> str:
        full = _BAR * step // self.steps
        return f"{self._label} [{'=' * full}{' ' * (_BAR - full)}] {step}/{self.steps}"

    def _write(self, text: str, end: str) -> None:
        start = "\r" if self._stream.isatty() else ""
        self._stream.write(start + text.ljust(self._width) + end)
        self._stream.flush()
        self._width = len(text)


def _is_shown(name: str) -> bool:
    return name in ("train_loss", "validation_loss", "validation_accuracy", "ema_accuracy")


def append_metrics(workdir: Path, metrics: Mapping[str, float]) -> None:
    """Adds one epoch to metrics.jsonl and metrics.csv. All epochs must have the same names."""
    lines, table = (workdir / name for name in METRICS)
    with open(lines, "a", encoding="utf-8") as file:
        file.write(json.dumps(metrics) + "\n")
    fresh = not table.exists()
    with open(table, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(metrics))
        if fresh:
            writer.writeheader()
        writer.writerow(metrics)


def require_matplotlib() -> None:
    """Raises ImportError, before hours of training, where curves could not be drawn after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError(
            "The curves are drawn by matplotlib, which is not installed: pip install matplotlib"
        ) from None


def draw_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws loss, accuracy and learning rate over the epochs.

    Args:
        history: one mapping per epoch, as `append_metrics` takes them.
        path: of the PNG file.
    """
    from matplotlib.figure import Figure  # not pyplot, which holds global state and may need X

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]
    for axes, title, unit in zip(
        panels, ("loss", "accuracy", "learning_rate"), ("nats", "share", "per step"), strict=True
    ):
        for name in (name for name in history[0] if name.endswith(title)):
            label = name.removesuffix(title).rstrip("_").replace("ema", "validation, average")
            axes.plot(epochs, [row[name] for row in history], marker=".", label=label or None)
        axes.set(xlabel="epoch", ylabel=unit, title=title.replace("_", " "))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    panels[0].set_yscale("log")
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=120)
    os.replace(temporary, path)
