"""The folder of a run: what may be written there, and files that are always whole."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import keras
from absl import logging

from efficientnet_tf import classifier, paths, writing
from efficientnet_tf import preprocessing as preprocessing_lib
from efficientnet_tf.config import Config, differences, from_json
from efficientnet_tf.labels import printable
from efficientnet_tf.paths import AnyPath, Remote
from efficientnet_tf.train import checkpoint, report

CONFIG = classifier.CONFIG
BEST = classifier.BEST
BEST_WEIGHTS = "best.weights.h5"
RAW_WEIGHTS = "best-raw.weights.h5"  # without the moving average
SUMMARY = "summary.html"
LABELS = classifier.LABELS
PREPROCESSING = preprocessing_lib.FILE
BAD_PICTURES = "unreadable.txt"
BROKEN_BATCH = "broken-batch.txt"  # pictures of the step whose loss was not finite
RECORD = "record.json"
TENSORBOARD = "tensorboard"  # folder
EXPORT = "export"  # folder for what is made from the model afterwards
CHECKPOINTS = checkpoint.FOLDER
_FOLDERS = (EXPORT, TENSORBOARD, CHECKPOINTS)
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
    BROKEN_BATCH,
    RECORD,
    CONFIG,  # the last to be removed, because it marks the folder as a run's
)


@contextlib.contextmanager
def locked(workdir: AnyPath) -> Iterator[None]:
    """Makes the folder, and keeps other processes from running in it.

    A folder in which nothing was written is removed again. Stores behind URLs have no locks.

    Raises:
        BlockingIOError: one runs in it.
    """
    with writing.made(workdir), writing.lock(workdir, wait=False) as ours:
        if ours is False:
            raise BlockingIOError(
                f"Another process is running in {workdir}. Choose another workdir."
            )
        if isinstance(workdir, Remote):
            logging.warning(
                "%s cannot be locked: see to it that no other run writes there.", workdir
            )
        yield


def begun(workdir: AnyPath, config: Config, overwrite: bool) -> Config | None:
    """Finds the run in a folder that goes on with a configuration.

    Args:
        workdir: the folder.
        config: of the run that is asked for.
        overwrite: whether another run may be removed.

    Returns:
        The configuration of the run that was begun there, with what was chosen when it began. None
        where a new one may begin.

    Raises:
        FileExistsError: the folder holds a run with other settings or without checkpoints, and
            `overwrite` is False; or files with the names of a run's results, but no run.
    """
    found = [name for name in (*_FOLDERS, *_FILES) if (workdir / name).exists()]
    if found and CONFIG not in found:
        # Without config.json it is no run of ours: "export" may be anything, and would be removed.
        raise FileExistsError(
            f"{workdir} holds {', '.join(found)}, but no {CONFIG}, and so no run that could be"
            " overwritten. Choose another workdir."
        )
    if not found or overwrite:
        return None
    saved = from_json((workdir / CONFIG).read_text(encoding="utf-8"))
    other = _differences(saved, config)
    if other:
        raise FileExistsError(
            f"{workdir} holds a run already, with other settings: {', '.join(other)}. Choose"
            " another workdir, give that run's settings to go on with it, or ask to overwrite it"
            " (--overwrite)."
        )
    if (workdir / CHECKPOINTS).exists():
        return saved
    if any((workdir / name).exists() for name in (BEST, *report.METRICS)):
        raise FileExistsError(
            f"{workdir} holds a run already, without {CHECKPOINTS} to go on from. Choose another"
            " workdir, or ask to overwrite it (--overwrite)."
        )
    return None  # it ended before its first checkpoint


def _differences(saved: Config, config: Config) -> list[str]:
    """Settings that would give another run."""
    batch_size = config.data.batch_size or saved.data.batch_size  # chosen when a run begins
    train = dataclasses.replace(
        config.train,
        checkpoint_steps=saved.train.checkpoint_steps,
        keep_checkpoints=saved.train.keep_checkpoints,
        **({"precision": saved.train.precision} if config.train.precision == "auto" else {}),
    )
    data = dataclasses.replace(config.data, batch_size=batch_size)
    return differences(saved, dataclasses.replace(config, data=data, train=train))


def claim(workdir: AnyPath) -> None:
    """Makes the folder, and removes what an earlier run left; other files stay."""
    workdir.mkdir(parents=True, exist_ok=True)
    writing.sweep(workdir)
    for name in _FOLDERS:
        paths.remove_tree(workdir / name)
    for name in _FILES:
        (workdir / name).unlink(missing_ok=True)


def save(model: keras.Model, workdir: AnyPath) -> None:
    """Writes the model and its weights, each whole or not at all."""
    with writing.whole(workdir / BEST) as temporary:
        model.save(temporary)
    _save_weights(model, workdir / BEST_WEIGHTS)


def save_raw(model: keras.Model, workdir: AnyPath) -> None:
    """Writes the weights that the moving average is made of."""
    _save_weights(model, workdir / RAW_WEIGHTS)


def save_names(path: AnyPath, names: Sequence[str]) -> None:
    """Writes names as they are printed, one per line, each once; nothing where there are none."""
    if names:
        write_text(path, "".join(f"{name}\n" for name in dict.fromkeys(map(printable, names))))


def write_text(path: AnyPath, text: str) -> None:
    """Writes a text, whole or not at all."""
    with writing.whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _save_weights(model: keras.Model, path: AnyPath) -> None:
    with writing.whole(path) as temporary:
        model.save_weights(temporary)
