"""The folder of a run: what may be written there, and files that are always whole."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import keras

from efficientnet_tf import preprocessing as preprocessing_lib
from efficientnet_tf.train import report

CONFIG = "config.json"
BEST = "best.keras"
BEST_WEIGHTS = "best.weights.h5"
RAW_WEIGHTS = "best-raw.weights.h5"  # without the moving average
SUMMARY = "summary.html"
LABELS = "labels.txt"
PREPROCESSING = preprocessing_lib.FILE
BAD_PICTURES = "unreadable.txt"
TENSORBOARD = "tensorboard"  # folder
EXPORT = "export"  # folder for what is made from the model afterwards
_FOLDERS = (EXPORT, TENSORBOARD)
_FILES = (
    *report.METRICS,
    BEST,
    BEST_WEIGHTS,
    RAW_WEIGHTS,
    report.CURVES,
    SUMMARY,
    LABELS,
    PREPROCESSING,
    BAD_PICTURES,
    CONFIG,  # the last to be removed, because it marks the folder as a run's
)


def check_free(workdir: Path, overwrite: bool) -> None:
    """Refuses, before anything is read, a folder that the run could not or must not write to.

    Raises:
        FileExistsError: it holds a run, and `overwrite` is False; or files with the names of a
            run's results, but no run.
        NotADirectoryError: it is a file, or below one.
        PermissionError: it is read-only.
    """
    found = [name for name in (*_FOLDERS, *_FILES) if (workdir / name).exists()]
    if found and CONFIG not in found:
        # Without config.json it is no run of ours: "export" may be anything, and would be removed.
        raise FileExistsError(
            f"{workdir} holds {', '.join(found)}, but no {CONFIG}, and so no run that could be"
            " overwritten. Choose another workdir."
        )
    if found and not overwrite:
        raise FileExistsError(
            f"{workdir} holds a run already. Choose another workdir, or ask to overwrite it"
            " (--overwrite)."
        )
    nearest = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"workdir must be a folder. {nearest} is a file.")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"workdir must be a folder to write to. {nearest} is read-only.")


def claim(workdir: Path) -> None:
    """Makes the folder, and removes what an earlier run left; other files stay."""
    workdir.mkdir(parents=True, exist_ok=True)
    for name in _FOLDERS:
        if (workdir / name).exists():
            shutil.rmtree(workdir / name)
    for name in _FILES:
        (workdir / name).unlink(missing_ok=True)
        (workdir / f".writing-{name}").unlink(missing_ok=True)  # of a run that was killed


def save(model: keras.Model, workdir: Path) -> None:
    """Writes the model and its weights, each whole or not at all."""
    _write(workdir / BEST, model.save)
    _write(workdir / BEST_WEIGHTS, model.save_weights)


def save_raw(model: keras.Model, workdir: Path) -> None:
    """Writes the weights that the moving average is made of."""
    _write(workdir / RAW_WEIGHTS, model.save_weights)


def save_names(path: Path, names: Sequence[str]) -> None:
    """Writes names, one per line, each once; nothing where there are none."""
    if names:
        path.write_text("\n".join(dict.fromkeys(names)) + "\n", encoding="utf-8")


def _write(path: Path, write: Callable[[Path], None]) -> None:
    temporary = path.with_name(f".writing-{path.name}")  # Keras tells the format from the ending
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
