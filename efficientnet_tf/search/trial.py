"""One short training of one network: the unit of every search."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from absl import logging

from efficientnet_tf import config as config_lib
from efficientnet_tf import paths
from efficientnet_tf.arch import Variant, files
from efficientnet_tf.arch.complexity import count
from efficientnet_tf.config import Config, StudentConfig
from efficientnet_tf.config.model import describe
from efficientnet_tf.data.sources import Source, open_source
from efficientnet_tf.search import timing
from efficientnet_tf.train import run as run_lib
from efficientnet_tf.train import workdir

RESULT = "result.json"
VARIANT = "variant.json"
# Of a network that was trained briefly; its metrics stay.
_LEFT_OVER = (workdir.BEST, workdir.BEST_WEIGHTS, workdir.RAW_WEIGHTS, workdir.SUMMARY)
_SHARED = ("image_size", "normalization", "sync_batch_norm")  # of the settings of the model


@dataclasses.dataclass(frozen=True)
class Trial:
    """What came of a network.

    Attributes:
        params: trainable parameters.
        macs: multiply-adds for one picture of the variant's resolution.
        accuracies: best validation accuracy of each seed's training; empty where the trial failed.
        step_seconds: median of a training step; None where it failed or was not measured.
        step: the same over the base network's; None likewise.
        seconds: that the trial took.
        failed: why it failed; empty where it did not.
    """

    params: int
    macs: int
    accuracies: tuple[float, ...] = ()
    step_seconds: float | None = None
    step: float | None = None
    seconds: float = 0.0
    failed: str = ""

    @property
    def accuracy(self) -> float:
        """Mean over the seeds, in [0, 1]; nan where the trial failed."""
        return statistics.mean(self.accuracies) if self.accuracies else float("nan")

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 for one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


def run(
    variant: Variant,
    config: Config,
    folder: str | os.PathLike,
    *,
    seeds: Sequence[int] = (0,),
    source: Source | None = None,
    strategy: tf.distribute.Strategy | None = None,
    base: Callable[[], float] | None = None,
) -> Trial:
    """Trains a network briefly, once for each seed, by `train.run.train`.

    The result is stored whole. A trial that ended is not run again, one that was killed goes on
    from its last checkpoint. Weights are removed; metrics stay.

    Args:
        variant: the network.
        config: of the training, see `settings`.
        folder: of this trial alone.
        seeds: of the trainings.
        source: of `config.data`, from `opened`, where it is open already.
        strategy: where to train; None is one device.
        base: from `timing.stepper`, to measure the step time beside; None to leave that out.

    Returns:
        What came of it: a training whose loss is no longer finite, or that needs too much memory,
        makes a trial that failed.

    Raises:
        Interrupted: SIGTERM came; the trial is saved.
        ValueError: the folder holds the trial of another network.
        OSError: the folder cannot be written to.
    """
    folder = paths.local(folder, "The folder of a search")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / VARIANT).exists():
        files.write(variant, folder / VARIANT)
    elif files.read(folder / VARIANT) != variant:
        raise ValueError(f"{folder} holds the trial of another network. Choose another folder.")
    result = folder / RESULT
    if result.exists():
        _remove_left_overs(folder)
        return _read(result)
    start = time.perf_counter()
    cost = count(variant).total
    trial = Trial(cost.trainable, cost.macs)
    source = source or opened(config)
    strategy = strategy or tf.distribute.get_strategy()
    try:
        if base is not None:
            measured = timing.measure(settings(config, variant, 0), base, source, strategy)
            trial = dataclasses.replace(trial, step_seconds=measured[0], step=measured[1])
        trainings = [
            _train(settings(config, variant, seed), folder / f"seed{seed}", source, strategy)
            for seed in seeds
        ]
        accuracies, seconds = zip(*trainings, strict=True)
        trial = dataclasses.replace(trial, accuracies=accuracies, seconds=sum(seconds))
    except (FloatingPointError, RuntimeError, ValueError, tf.errors.OpError) as error:
        logging.warning("%s failed: %s", folder, error)
        trial = dataclasses.replace(trial, failed=f"{type(error).__name__}: {error}")
    seconds = max(trial.seconds, time.perf_counter() - start)  # not the first try after a kill
    trial = dataclasses.replace(trial, seconds=round(seconds, 1))
    workdir.write_text(result, json.dumps(dataclasses.asdict(trial)) + "\n")
    _remove_left_overs(folder)  # after the result, without which the trial would need them
    return trial


def base_of(config: Config, classes: int, resolution: int | None = None) -> Variant:
    """The network that a configuration names, with its picture size and classes.

    Args:
        config: whose `model` it is.
        classes: of the data.
        resolution: pixels that it is meant for; None for `model.image_size`.

    Raises:
        ValueError: networks could not be compared with it.
    """
    if config.model.weights is not None:
        raise ValueError(
            "A search trains networks from random weights. Received:"
            f" model.weights={config.model.weights!r}"
        )
    if config.data.batch_size is None:
        raise ValueError(
            "The networks of a search have one data.batch_size. Received: data.batch_size=None"
        )
    if config.student != StudentConfig():
        raise ValueError("A search trains networks without a teacher: leave out student.*")
    size = resolution or config.model.image_size
    return dataclasses.replace(
        describe(config.model), resolution=size, train_resolution=size, classes=classes
    )


def settings(config: Config, variant: Variant, seed: int) -> Config:
    """Settings of the training of a network.

    Args:
        config: whose network is replaced; `model.image_size` stays.
        variant: the network.
        seed: of the training.
    """
    model = dataclasses.replace(
        config.model,
        variant=variant,
        width=None,
        depth=None,
        blocks=(),
        stem_filters=None,
        head_filters=None,
    )
    train = dataclasses.replace(config.train, seed=seed)
    return dataclasses.replace(config, model=model, train=train)


def shared(config: Config) -> dict[str, Any]:
    """What the trainings of a search have in common, as JSON has it.

    Networks are told apart by themselves, and where the pictures lie is each machine's own.
    """
    values = json.loads(config_lib.to_json(config))
    values["model"] = {name: values["model"][name] for name in _SHARED}
    del values["data"]["source"], values["data"]["data_dir"]
    for name in ("seed", "checkpoint_steps", "keep_checkpoints"):
        del values["train"][name]
    return values


def opened(config: Config) -> Source:
    """Opens the pictures of a search, which never looks at the test split.

    Every training ends with a test: one validation picture takes the place of the split.
    """
    source = open_source(config.data)

    def records(split: str, seed: int | None = None, start: int = 0):
        if split == "test":
            return source.records("validation", None).take(1).skip(start)
        return source.records(split, seed, start)

    return dataclasses.replace(
        source, records=records, num_examples={**source.num_examples, "test": 1}
    )


def _train(
    config: Config, folder: Path, source: Source, strategy: tf.distribute.Strategy
) -> tuple[float, float]:
    """Trains with one seed; returns the best validation accuracy, and seconds."""
    result = folder / RESULT
    if not result.exists():
        done = run_lib.train(config, folder, strategy=strategy, source=source)
        values = {"accuracy": done.validation.accuracy, "seconds": done.seconds}
        workdir.write_text(result, json.dumps(values) + "\n")
    values = json.loads(result.read_text(encoding="utf-8"))
    return values["accuracy"], values["seconds"]


def _remove_left_overs(trial: Path) -> None:
    for folder in trial.glob("seed*"):
        shutil.rmtree(folder / workdir.CHECKPOINTS, ignore_errors=True)
        for name in _LEFT_OVER:
            (folder / name).unlink(missing_ok=True)


def _read(path: Path) -> Trial:
    values = json.loads(path.read_text(encoding="utf-8"))
    return Trial(**values | {"accuracies": tuple(values["accuracies"])})
