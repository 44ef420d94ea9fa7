"""Checkpoints of a run: all that it needs to go on as if it had never stopped.

`tf.train.Checkpoint` leaves out the states of dropout's random numbers, and keeps the first
replica's value of what every replica has for itself (batch statistics, those states). Here every
value of every replica is an array of an uncompressed .npz file, whose members have checksums: of
one file, or where several workers train, of one part for each worker's replicas. A checkpoint
counts when all of its parts are whole.
"""

import dataclasses
import json
import re
import zipfile
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf import paths as paths_lib
from efficientnet_tf import writing
from efficientnet_tf.paths import AnyPath
from efficientnet_tf.train import average as average_lib
from efficientnet_tf.train import loop, workers
from efficientnet_tf.train.strategy import worker

FOLDER = "checkpoints"
_PROGRESS = "progress"  # member with a JSON text
_VERSION = 1
_PART = re.compile(r"(\d+-\d+)(?:\.worker-\d+-of-(\d+))?\.npz")
_DAMAGE = (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile)


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
    folder: AnyPath,
    progress: Progress,
    strategy: tf.distribute.Strategy,
    trainee: loop.Trainee,
    keep: int,
) -> AnyPath:
    """Writes a checkpoint, whole or not at all, and removes the oldest ones; called by all workers.

    Args:
        folder: of the checkpoints; made where it is missing.
        progress: of the run.
        strategy: that the trainee was made under.
        trainee: everything that changes while it trains.
        keep: how many checkpoints stay.

    Returns:
        Its path, or that of this worker's part.

    Raises:
        OSError: it could not be written, for example because the disk is full. The others stay.
        FloatingPointError: a value is not finite. The others stay.
    """
    arrays, me = {}, worker(strategy)
    first = strategy.num_replicas_in_sync // me.count * me.index
    for name, variable in _variables(trainee).items():
        for replica, value in enumerate(strategy.experimental_local_results(variable), first):
            array = value.numpy()
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise FloatingPointError(f"{name} is not finite; it is not saved.")
            arrays[f"{replica}/{name}"] = array
    text = json.dumps({"version": _VERSION, **dataclasses.asdict(progress)})
    arrays[_PROGRESS] = np.frombuffer(text.encode(), np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _parts(f"{progress.epoch:06d}-{progress.done:09d}", me.count)[me.index]
    try:
        with writing.whole(path) as temporary:
            np.savez(temporary, **arrays)
    except OSError as error:
        raise OSError(
            error.errno,
            f"the checkpoint could not be written ({error.strerror or error}); those before it are"
            " whole",
            str(folder),
        ) from error
    workers.wait(strategy)  # until all parts are there, what came before is needed
    if me.index == 0:
        listed = _listed(folder)
        kept = sorted({position for position, _ in listed})[-keep:]
        _remove(folder, [found for found in listed if found[0] not in kept])
    return path


def restore(
    folder: AnyPath, strategy: tf.distribute.Strategy, trainee: loop.Trainee
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
    me, listed, lost = worker(strategy), [], False
    if me.index == 0:
        writing.sweep(folder)
        listed = sorted(_listed(folder), reverse=True)
        # The first one lacks parts where workers ended while they wrote it. Later, one is whole.
        lost = any(not position.startswith(f"{1:06d}-") for position, _ in listed)
        listed = [found for found in listed if _has_all_parts(folder, *found)]
    # As the chief sees them: a file may take a moment to be seen by other machines.
    listed, lost = json.loads(workers.exchange(strategy, json.dumps([listed, lost]))[0])
    for position, count in listed:
        parts, reached, problem = [], [], ""
        try:
            parts = _read(folder, position, count, strategy)
            reached = [_progress(part.pop(_PROGRESS).tobytes()) for part in parts]
        except _DAMAGE as error:
            problem = str(error) or type(error).__name__
        problems = [found for found in workers.exchange(strategy, problem) if found]
        if problems:
            path = folder / _parts(position, count)[0]
            logging.warning("%s is damaged, and the one before is taken: %s", path, problems[0])
            continue
        _assign(parts, count, strategy, trainee, folder / position)
        workers.wait(strategy)  # until all have read
        if me.index == 0:
            # Parts of later ones and of what will be written must not come together, nor may they
            # count among the last ones.
            kept = (position, count)
            _remove(folder, [it for it in _listed(folder) if it[0] >= position and it != kept])
        bad = dict.fromkeys(name for progress in reached for name in progress.bad)
        return dataclasses.replace(reached[0], bad=tuple(bad))
    if listed or lost:
        raise ValueError(
            f"All checkpoints in {folder} are damaged or lack parts ({len(listed)} have all)."
            " Start anew (--overwrite)."
        )
    return None


def last(folder: AnyPath) -> AnyPath | None:
    """The last checkpoint, of several workers the chief's part; None where there is none."""
    whole = [found for found in _listed(folder) if _has_all_parts(folder, *found)]
    return folder / _parts(*whole[-1])[0] if whole else None


def _parts(position: str, count: int) -> list[str]:
    """Names of a checkpoint's files, by the number of workers that wrote it."""
    if count == 1:
        return [f"{position}.npz"]
    return [f"{position}.worker-{index}-of-{count}.npz" for index in range(count)]


def _listed(folder: AnyPath) -> list[tuple[str, int]]:
    """Position, and number of workers, of each checkpoint of which there is a part."""
    found = (_PART.fullmatch(path.name) for path in folder.glob("*.npz"))
    return sorted({(match[1], int(match[2] or 1)) for match in found if match})


def _has_all_parts(folder: AnyPath, position: str, count: int) -> bool:
    return all((folder / name).exists() for name in _parts(position, count))


def _remove(folder: AnyPath, listed: list[tuple[str, int]]) -> None:
    for position, count in listed:
        for name in _parts(position, count):
            (folder / name).unlink(missing_ok=True)


def _read(
    folder: AnyPath, position: str, count: int, strategy: tf.distribute.Strategy
) -> list[dict[str, np.ndarray]]:
    """Reads this worker's part, or all of them where other workers or replicas wrote them."""

    def load(name):
        with paths_lib.fetched(folder / name) as local, np.load(local) as file:
            return {name: file[name] for name in file.files}

    me, names = worker(strategy), _parts(position, count)
    if count == me.count:
        own = load(names[me.index])
        written = sum(name.endswith("/sums/loss") for name in own)
        if written * me.count == strategy.num_replicas_in_sync:
            return [own]
    return [load(name) for name in names]


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
        "scale": [trainee.loss_scale.value, trainee.loss_scale.good_steps]
        if trainee.loss_scale
        else [],
    }
    variables = {
        f"{group}/{index}": variable
        for group, members in groups.items()
        for index, variable in enumerate(members)
    }
    return variables | {f"sums/{name}": variable for name, variable in trainee.sums.items()}


def _assign(
    parts: list[dict[str, np.ndarray]],
    count: int,
    strategy: tf.distribute.Strategy,
    trainee: loop.Trainee,
    path: AnyPath,
) -> None:
    me = worker(strategy)
    saved: dict[str, list[np.ndarray]] = {}
    for part in parts:
        for name, array in part.items():  # replica 0 of all, then replica 1, ...
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
    own = replicas // me.count
    other = len(parts) == count and len(next(iter(saved.values()))) != replicas
    if other or count != me.count:
        what = "replicas" if other else "workers"
        logging.warning(
            "The checkpoint is of another number of %s than %d: the run goes on, but not to the"
            " same bits.",
            what,
            replicas if other else me.count,
        )
    if other:
        statistics = {id(v) for v in average_lib.moving_statistics(trainee.model)}
        averaged = average_lib.averaged_variables(trainee.model) if trainee.average else []
        groups = {"model": trainee.model.variables, "average": averaged}
        means = {
            f"{group}/{index}"
            for group, members in groups.items()
            for index, variable in enumerate(members)
            if id(variable) in statistics
        }
        saved = {name: _shared(name, values, means, replicas) for name, values in saved.items()}
    for name, variable in variables.items():
        values = saved[name]
        if len(values) > own:
            values = values[own * me.index :][:own]
        for value, local in zip(values, strategy.experimental_local_results(variable), strict=True):
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
