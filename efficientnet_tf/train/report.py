"""What a run shows and leaves behind: progress line, metrics files, TensorBoard, curves."""

import csv
import io
import json
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from efficientnet_tf import stores, writing
from efficientnet_tf.page.run import boundaries
from efficientnet_tf.paths import AnyPath, Remote

METRICS = ("metrics.jsonl", "metrics.csv")
CURVES = "curves.png"
_BAR = 24  # characters
_MOST_OFTEN = 0.1  # seconds between two drawings on a terminal
_LOG_EVERY = 60.0  # seconds between two lines in a file
_SHOWN = ("train_loss", "validation_loss", "validation_accuracy", "ema_accuracy")


class Progress:
    """One line that shows how far an epoch is: redrawn on terminals, one a minute elsewhere.

    Args:
        label: e.g. "epoch 3/30, stage 2/4, 185 px".
        steps: of the epoch.
        batch_size: pictures per step.
        stream: where it goes; None is standard output.
        steps_left: of the run, after this epoch.
    """

    def __init__(
        self,
        label: str,
        steps: int,
        batch_size: int,
        stream: TextIO | None = None,
        *,
        steps_left: int = 0,
    ):
        self.steps = steps
        self._label, self._batch_size, self._steps_left = label, batch_size, steps_left
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._start = self._drawn = time.perf_counter()
        self._first: tuple[int, float] | None = None
        self._width = 0

    def update(self, step: int, loss: float) -> None:
        """Shows that `step` steps are done, with this mean loss."""
        now = time.perf_counter()
        # The first call compiles, which can take minutes: speed is what came after it.
        self._first = self._first or (step, now)
        steps, seconds = step - self._first[0], now - self._first[1]
        if not steps:
            steps, seconds = step, now - self._start
        if now - self._drawn < (_MOST_OFTEN if self._terminal else _LOG_EVERY):
            return
        self._drawn = now
        pace = max(seconds, 1e-9) / steps
        text = f"{self._batch_size / pace:.0f} images/s  loss {loss:.4f}"
        left = (self.steps - step) * pace
        text += f"  {duration(left)} left"
        if self._steps_left:
            text += f", run {duration(left + self._steps_left * pace)}"
        self._write(step, text, "" if self._terminal else "\n")

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Shows the epoch's results, and the time left for the run, evaluation included."""
        shown = [f"{name} {metrics[name]:.4f}" for name in _SHOWN if name in metrics]
        text = "  ".join([f"{metrics['images_per_second']:.0f} images/s", *shown])
        if self._steps_left:
            pace = (time.perf_counter() - self._start) / self.steps
            text += f"  run {duration(self._steps_left * pace)} left"
        self._write(self.steps, text, "\n")

    def _write(self, step: int, text: str, end: str) -> None:
        columns = shutil.get_terminal_size().columns - 1 if self._terminal else sys.maxsize
        count = f"{step}/{self.steps}"
        # A line that wraps could not be drawn over: the bar gives way.
        room = min(_BAR, columns - len(f"{self._label} [] {count}  {text}"))
        bar = f"[{('=' * (room * step // self.steps)).ljust(room)}] " if room > 3 else ""
        line = f"{self._label} {bar}{count}  {text}"
        if not end:
            line = line[:columns]
        start = "\r" if self._terminal else ""
        self._stream.write(start + line.ljust(self._width if self._terminal else 0) + end)
        self._stream.flush()
        self._width = len(line)


def duration(seconds: float) -> str:
    """Says a time span in its two largest units.

    >>> duration(7), duration(200), duration(7500), duration(200_000)
    ('7 s', '3 min 20 s', '2 h 5 min', '2 d 7 h')
    """
    whole = round(seconds)
    for size, unit, small, small_unit in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small} {small_unit}"
    return f"{whole} s"


def append_metrics(workdir: AnyPath, metrics: Mapping[str, float]) -> None:
    """Adds one epoch to metrics.jsonl and metrics.csv. All epochs must have the same names.

    JSON has no nan: it is null there.
    """
    lines, table = (workdir / name for name in METRICS)
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    writing.append(lines, json.dumps(finite, allow_nan=False) + "\n")
    rows = io.StringIO(newline="")
    writer = csv.DictWriter(rows, list(metrics))
    if not table.exists():
        writer.writeheader()
    writer.writerow(metrics)
    writing.append(table, rows.getvalue())


def write_metrics(workdir: AnyPath, history: Sequence[Mapping[str, float]]) -> None:
    """Makes the files hold these epochs and no others."""
    for name in METRICS:
        (workdir / name).unlink(missing_ok=True)
    for metrics in history:
        append_metrics(workdir, metrics)


class TensorBoard:
    """Writes each epoch's metrics for TensorBoard, which is needed to look at them only.

    The folder gets the runs "train", "validation" and "ema", whose "loss" and "accuracy"
    TensorBoard draws into common charts; what belongs to none of them is in "train".

    Args:
        folder: to write to.

    Raises:
        ValueError: it is a URL that TensorFlow's file systems do not know.
    """

    def __init__(self, folder: AnyPath):
        if isinstance(folder, Remote) and not stores.read_by_tensorflow(folder.scheme):
            raise ValueError(
                f"TensorFlow, which writes for TensorBoard, does not know {folder.scheme}://. Leave"
                " out --tensorboard, or choose another workdir."
            )
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def write(self, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of an epoch at its step, metrics["step"], and writes them out."""
        import tensorflow as tf

        # As `tf.summary.scalar` writes them, which fails where TensorBoard is not installed.
        kind = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"}, data_class=1)
        for name, value in metrics.items():
            run, _, tag = name.partition("_")
            if run not in ("train", "validation", "ema"):
                run, tag = "train", name
            if tag == "step":
                continue
            if run not in self._writers:
                folder = str(self._folder / run)
                self._writers[run] = tf.summary.create_file_writer(folder)
            with self._writers[run].as_default():
                value = tf.constant(value, tf.float32)
                tf.summary.write(tag, value, step=int(metrics["step"]), metadata=kind)
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()


def require_matplotlib() -> None:
    """Raises ImportError, before hours of training, where curves could not be drawn after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError(
            "The curves are drawn by matplotlib, which is not installed: pip install matplotlib"
        ) from None


def draw_curves(history: Sequence[Mapping[str, float]], path: AnyPath) -> None:
    """Draws loss, accuracy and learning rate over the epochs, and picture size if it varies.

    Vertical lines stand where a new stage begins.

    Args:
        history: one mapping per epoch, as `append_metrics` takes them.
        path: of the PNG file.
    """
    from matplotlib.figure import Figure  # not pyplot, which holds global state and may need X

    drawn = [("loss", "nats"), ("accuracy", "share"), ("learning_rate", "per step")]
    if len({row.get("image_size") for row in history}) > 1:
        drawn.append(("image_size", "px"))
    figure = Figure(figsize=(4 * len(drawn), 3.6), layout="constrained")
    panels = figure.subplots(1, len(drawn))
    epochs = [row["epoch"] for row in history]
    for axes, (title, unit) in zip(panels, drawn, strict=True):
        for name in (name for name in history[0] if name.endswith(title)):
            label = name.removesuffix(title).rstrip("_").replace("ema", "validation, average")
            axes.plot(epochs, [row[name] for row in history], marker=".", label=label or None)
        for boundary, _ in boundaries(history):
            axes.axvline(boundary, color="gray", linestyle=":")
        axes.set(xlabel="epoch", ylabel=unit, title=title.replace("_", " "))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    panels[0].set_yscale("log")
    with writing.whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
