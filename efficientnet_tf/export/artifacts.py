"""From a trained model to files that are proved to answer as it does."""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf.export import saved_model, tflite, verify

SAVED_MODEL = "saved_model"
TFLITE = "model.tflite"
REPORT = "report.json"

Batches = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]


def export(
    model: keras.Model,
    directory: str | os.PathLike,
    class_names: Sequence[str],
    batches: Batches,
    *,
    version: int = 1,
    tolerance: float = verify.TOLERANCE,
) -> tuple[verify.Report, ...]:
    """Writes a SavedModel and a TFLite file, and checks both against the model.

    Everything is written aside and checked there; only when all of it gives the model's answers is
    it renamed to saved_model/<version>/, model.tflite and report.json.

    Args:
        model: classifier from pictures in [0, 255] to probabilities.
        directory: folder to write to; other files in it stay.
        class_names: in the order of the outputs.
        batches: makes an iterable of (images float32 (batch, height, width, 3) in [0, 255], labels
            int (batch,)) to check on; it is called once for each artefact.
        version: of the SavedModel, for TensorFlow Serving.
        tolerance: see `verify.compare`.

    Returns:
        The reports of the SavedModel and of the TFLite file.

    Raises:
        FileExistsError: this version is there already.
        verify.ParityError: a file does not give the model's answers; nothing is put in place.
    """
    directory = Path(directory)
    place = directory / SAVED_MODEL / str(version)
    if place.exists():
        raise FileExistsError(f"{place} exists already. Give another version or folder.")
    directory.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=directory))
    verbosity = logging.get_verbosity()
    # TensorFlow tells about each missing gradient, which are left out on purpose.
    logging.set_verbosity(logging.ERROR)
    reduced = tf.config.experimental.tensor_float_32_execution_enabled()
    # GPUs round factors to 10 bits in it, which is coarser than the tolerance.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        saved_model.write(model, aside / SAVED_MODEL, class_names)
        tflite.write(aside / SAVED_MODEL, aside / TFLITE)
        expected = verify.keras_answers(model)
        reports = tuple(
            verify.compare(name, answers, expected, batches(), tolerance)
            for name, answers in (
                (SAVED_MODEL, verify.saved_model_answers(aside / SAVED_MODEL)),
                (TFLITE, verify.tflite_answers(aside / TFLITE)),
            )
        )
        content = json.dumps([dataclasses.asdict(report) for report in reports], indent=2)
        (aside / REPORT).write_text(content + "\n", encoding="utf-8")
        place.parent.mkdir(exist_ok=True)
        for name, target in (
            (SAVED_MODEL, place),
            (TFLITE, directory / TFLITE),
            (REPORT, directory / REPORT),
        ):
            os.replace(aside / name, target)
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(reduced)
        logging.set_verbosity(verbosity)
        shutil.rmtree(aside, ignore_errors=True)
    return reports


def table(reports: Sequence[verify.Report]) -> str:
    """Lays reports out as a table for people, the model itself in the first row."""
    rows = [("artefact", "accuracy", "difference", "same class")]
    rows.append(("keras", f"{reports[0].model_accuracy:.2%}", "", ""))
    for report in reports:
        rows.append(
            (
                report.name,
                f"{report.accuracy:.2%}",
                f"{report.difference:.1e}",
                f"{report.agreement:.2%}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
