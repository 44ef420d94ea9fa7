"""The page of a training run."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from efficientnet_tf import stages as stages_lib
from efficientnet_tf.arch import Variant
from efficientnet_tf.config import Config
from efficientnet_tf.config.text import to_text
from efficientnet_tf.page import charts, document
from efficientnet_tf.stages import Stage

# What the curves are called, by the ending of a metric's name.
_SERIES = {
    "train": "training",
    "validation": "validation",
    "ema": "validation, moving average",
    "": "",
}
_MOST_EPOCHS = 30  # that are shown without asking


def run_page(
    *,
    title: str,
    result: str,
    history: Sequence[Mapping[str, float]],
    stages: Sequence[Stage],
    config: Config,
    environment: Mapping[str, object],
    sections: Sequence[str] = (),
) -> str:
    """Makes the page of a run.

    Args:
        title: e.g. "digits, efficientnet-b0".
        result: the most important line, e.g. "Test accuracy 98.9 %, 212 s".
        history: one mapping per epoch, at least one, as `train.report.append_metrics` takes them.
        stages: of the run.
        config: of the run; what is not the default stands out.
        environment: names and values, such as `document.environment()` and the run's seconds.
        sections: HTML for between the curves and the details: `evaluation.evaluation_sections`.

    Returns:
        A whole HTML page, which needs no other file.
    """
    return document.document(
        title,
        result,
        [
            document.section("Curves", _curves(history, stages)),
            *sections,
            document.section("Stages", document.table(stages_lib.COLUMNS, stages_lib.rows(stages))),
            document.section("Epochs", _epochs(history)),
            document.section("Configuration", *_config(config)),
            document.section("Environment", document.mapping_table(environment)),
        ],
    )


def boundaries(history: Sequence[Mapping[str, float]]) -> list[tuple[float, str]]:
    """Where stages begin, but for the first: (between two epochs, "185 px" or "stage 2")."""
    found = []
    for before, row in itertools.pairwise(history):
        if row.get("stage") != before.get("stage"):
            text = f"stage {row['stage']:g}"
            if row.get("image_size") != before.get("image_size"):
                text = f"{row['image_size']:g} px"
            found.append(((before["epoch"] + row["epoch"]) / 2, text))
    return found


def _curves(history, stages: Sequence[Stage]) -> str:
    epochs = [row["epoch"] for row in history]
    names = list(history[0])
    marks = boundaries(history) if len(stages) > 1 else []

    def chart(title: str, ending: str, log: bool = False) -> str:
        series = {}
        for name in names:
            start = name.removesuffix(ending).rstrip("_")
            if name.endswith(ending) and start in _SERIES:
                series[_SERIES[start] or title] = [row.get(name) for row in history]
        if not series:
            return ""
        return charts.line_chart(title, "epoch", epochs, series, log=log, marks=marks)

    drawn = [
        chart("loss (nats)", "loss", log=True),
        chart("accuracy", "accuracy"),
        chart("top-5 accuracy", "top5"),
        chart("learning rate per step", "learning_rate"),
        chart("pictures per second", "images_per_second"),
    ]
    if len({row.get("image_size") for row in history}) > 1:
        drawn.append(chart("size of training pictures (px)", "image_size"))
    return "\n".join(['<div class="charts">', *filter(None, drawn), "</div>"])


def _epochs(history: Sequence[Mapping[str, float]]) -> str:
    headers = [name.replace("_", " ") for name in history[0]]
    rows = [[row.get(name) for name in history[0]] for row in history]
    whole = document.table(headers, rows)
    if len(rows) <= _MOST_EPOCHS:
        return whole
    return document.folded(f"All {len(rows)} epochs", whole)


def _config(config: Config) -> list[str]:
    changed, kept = [], []
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        for field in dataclasses.fields(values):
            name, value = f"{section.name}.{field.name}", getattr(values, field.name)
            if value == field.default:
                kept.append((name, _plain(value)))
            else:
                changed.append((name, _plain(value), _plain(field.default)))
    parts = [document.paragraph("Every setting has its default.")]
    if changed:
        parts = [document.table(("setting", "value", "default"), changed)]
    return [*parts, document.folded("Settings at their default", document.table((), kept))]


def _plain(value: object) -> object:
    """None is said here, where it is a value."""
    if isinstance(value, Variant):
        return to_text(value)
    return "none" if value is None else value
