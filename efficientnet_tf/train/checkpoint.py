"""Checkpoints of a run: all that it needs to go on as if it had never stopped.

`tf.train.Checkpoint` leaves out the states of dropout's random numbers, and keeps the first
replica's value of what every replica has for itself (batch statistics, those states). Here every
value of every replica is an array of one uncompressed .npz file, whose members have checksums.
"""

import dataclasses
import json
import zipfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf import writing
from efficientnet_tf.train import average as average_lib
from efficientnet_tf.train import loop

FOLDER = "checkpoints"
_PROGRESS = "progress"  # member with a JSON text
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        epoch: that is being trained, from 1.
        done: steps of it that are done; where all are, it has yet to be evaluated.
        epoch_seconds: that these steps have taken.
        seconds: that the run has taken so far.
        history: metrics of the epochs before this one.
        best: epoch and scores of the best model so far; None where there is none yet.
        bad: names of unreadable pictures that were found so far.
        data: what identifies the pictures: number per split, and classes.
    """

    epoch: int = 1
    done: int = 0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    history: tuple[dict[str, float], ...] = ()
    best: tuple[int, loop.Scores] | None = None
    bad: tuple[str, ...] = ()
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def save(
    folder: Path,
    progress: Progress,
    strategy: tf.distribute.Strategy,
    trainee: loop.Trainee,
    keep: int,
) -> Path:
    """Writes a checkpoint, whole or not at all, and removes the oldest ones.

    Args:
        folder: of the checkpoints; made where it is missing.
        progress: of the run.
        strategy: that the trainee was made under.
        trainee: everything that changes while it trains.
        keep: how many checkpoints stay.

    Returns:
        Its path.

    Raises:
        OSError: it could not be written, for example because the disk is full. The others stay.
        FloatingPointError: a value is not finite. The others stay.
    """
    arrays = {}
    for name, variable in _variables(trainee).items():
        for replica, value in enumerate(strategy.experimental_local_results(variable)):
            array = value.numpy()
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise FloatingPointError(f"{name} is not finite; it is not saved.")
            arrays[f"{replica}/{name}"] = array
    text = json.dumps({"version": _VERSION, **dataclasses.asdict(progress)})
    arrays[_PROGRESS] = np.frombuffer(text.encode(), np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{progress.epoch:06d}-{progress.done:09d}.npz"
    try:
        with writing.whole(path) as temporary:
            np.savez(temporary, **arrays)
    except OSError as error:
        raise OSError(
            error.errno,
            f"the checkpoint could not be written ({error.strerror}); those before it are whole",
            str(folder),
        ) from error
    for old in sorted(folder.glob("*.npz"))[:-keep]:
        old.unlink(missing_ok=True)
    return path


def restore(
    folder: Path, strategy: tf.distribute.Strategy, trainee: loop.Trainee
) -> Progress | None:
    """Puts the last checkpoint that is whole into a trainee.

    Args:
        folder: of the checkpoints.
        strategy: that the trainee was made under. With another number of replicas than the
            checkpoint's, each starts from the mean of their batch statistics and with dropout
            masks of its own.
        trainee: is changed.

    Returns:
        How far the run had come; None where there is no checkpoint.

    Raises:
        ValueError: no checkpoint is whole, or the last one belongs to another network.
    """
    writing.sweep(folder)
    paths = sorted(folder.glob("*.npz"), reverse=True)
    for path in paths:
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
            progress = _progress(arrays.pop(_PROGRESS).tobytes())
        except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
            logging.warning("%s is damaged, and the one before is taken: %s", path, error)
            continue
        _assign(arrays, strategy, trainee, path)
        return progress
    if paths:
        raise ValueError(
            f"All {len(paths)} checkpoints in {folder} are damaged. Start anew (--overwrite)."
        )
    return None


def _progress(text: bytes) -> Progress:
    fields = json.loads(text)
    if fields.pop("version") != _VERSION:
        raise ValueError("it was written by another version of this package")
    best = fields["best"]
    fields["best"] = best and (best[0], loop.Scores(**best[1]))
    fields["history"], fields["bad"] = tuple(fields["history"]), tuple(fields["bad"])
    return Progress(**fields)


def _variables(trainee: loop.Trainee) -> dict[str, Any]:
    """Everything that changes while a trainee trains; Keras' own names differ from run to run."""
    groups = {
        "model": [variable.value for variable in trainee.model.variables],
        "optimizer": [variable.value for variable in trainee.optimizer.variables],
        "average": trainee.average.averages if trainee.average else [],
    }
    variables = {
        f"{group}/{index}": variable
        for group, members in groups.items()
        for index, variable in enumerate(members)
    }
    return variables | {f"sums/{name}": variable for name, variable in trainee.sums.items()}


def _assign(
    arrays: dict[str, np.ndarray],
    strategy: tf.distribute.Strategy,
    trainee: loop.Trainee,
    path: Path,
) -> None:
    saved: dict[str, list[np.ndarray]] = {}
    for name, array in arrays.items():  # replica 0 of all, then replica 1, ...
        saved.setdefault(name.partition("/")[2], []).append(array)
    variables = _variables(trainee)
    differing = [
        name
        for name in (*saved, *variables)
        if name not in saved
        or name not in variables
        or saved[name][0].shape != tuple(variables[name].shape)
    ]
    if differing:
        raise ValueError(
            f"{path} is of another network or optimizer: {len(differing)} arrays differ, such as"
            f" {differing[0]}. Start anew (--overwrite), or choose another workdir."
        )
    replicas = strategy.num_replicas_in_sync
    other = len(next(iter(saved.values()))) != replicas
    if other:
        logging.warning(
            "The checkpoint is of another number of replicas than %d: the run goes on, but not to"
            " the same bits.",
            replicas,
        )
        statistics = {id(v) for v in average_lib.moving_statistics(trainee.model)}
        means = {f"model/{i}" for i, v in enumerate(trainee.model.variables) if id(v) in statistics}
        saved = {name: _shared(name, values, means, replicas) for name, values in saved.items()}
    for name, variable in variables.items():
        locals_ = strategy.experimental_local_results(variable)
        for value, local in zip(saved[name], locals_, strict=True):
            local.assign(tf.cast(value, local.dtype))
    if other:
        loop.separate_dropout(strategy, trainee.model)


def _shared(
    name: str, values: list[np.ndarray], means: Container[str], replicas: int
) -> list[np.ndarray]:
    """Values for another number of replicas than they are of."""
    if name.startswith("sums/"):
        return [np.sum(values, 0), *[np.zeros_like(values[0])] * (replicas - 1)]
    return [np.mean(values, 0) if name in means else values[0]] * replicas
